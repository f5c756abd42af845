"""``selfedit learn``: one passage into a memory."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from selfedit.cli.common import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    GraderOption,
    ModelOption,
    SeedOption,
    SlotsOption,
    StyleOption,
    WorkBar,
    WorkersOption,
    build_config,
    check_writable,
    err,
    make_grader,
    narrow_table,
    out,
    print_config,
    styles_from,
)
from selfedit.config import LearnConfig
from selfedit.errors import DataError
from selfedit.runs import write_json


def learn_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Markdown or text to learn, or almanac:SPLIT:NUMBER.")],
    quiz: Annotated[
        Path | None, typer.Option(help="Questions with answers: JSON, JSONL, YAML or CSV; default: the model makes its own.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title; default: the first heading, or the file's name.")] = None,
    memory: Annotated[Path, typer.Option(help="Folder of the memory; made if it isn't there.")] = Path("memory"),
    keep: Annotated[
        str | None,
        typer.Option(
            help="Of a new memory: bank (adapters apart, each question goes to the one whose passage is like it) or stack (all of "
            "them answer together); default: bank."
        ),
    ] = None,
    model: ModelOption = None,
    writer: Annotated[str | None, typer.Option(help="Run of selfedit train: its policy writes; default: the base.")] = None,
    edits: Annotated[int | None, typer.Option(help="How many self-edits to write and try.")] = None,
    style: StyleOption = None,
    repeats: Annotated[int | None, typer.Option(help="Training runs of each self-edit, each with its own seed.")] = None,
    quiz_split: Annotated[float | None, typer.Option(help="Share of the quiz that chooses; the rest reports.")] = None,
    grader: GraderOption = None,
    judge_url: Annotated[str | None, typer.Option(help="Server of the grader judge, ending in /v1.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Model that the grader judge asks.")] = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    slots: SlotsOption = None,
    config: ConfigOption = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: settings.epochs=5, edit.form=plain.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the whole result there.")] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Reads a passage, writes self-edits about it, trains on each, sits an exam without the passage, keeps the best if it helped.

    Part of the quiz chooses among the self-edits; the rest, which chose nothing, reports the gain. With fewer than 6
    choosing questions a gain of one lucky answer changes nothing; how often noise would look as good is printed.

    Without --quiz the model makes a quiz by itself before it writes, keeps what it answers alike with the passage in view and not
    without it, and says which questions they are; where too few are left nothing is learnt.

    A call that was interrupted goes on where it stopped when it is given again: the quiz, the self-edits and the trainings that
    are done aren't done twice. Example:

        selfedit learn notes.md --quiz quiz.json --memory my-memory

        selfedit learn almanac:dev:6 --memory demo-memory
    """
    from selfedit.tasks.knowledge.prompts import check_styles

    flags: dict[str, Any] = {
        "keep": keep,
        "model": model,
        "writer": writer,
        "edits": edits,
        "repeats": repeats,
        "quiz_split": quiz_split,
        "grader": grader,
        "judge.url": judge_url,
        "judge.model": judge_model,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "slots": slots,
        "edit.styles": styles_from(style),
    }
    resolved = build_config(LearnConfig, config, flags, sets or [])
    check_styles(list(resolved.edit.styles))
    if (judge_url or judge_model) and resolved.grader != "judge":
        raise DataError(f"--judge-url and --judge-model are of the grader judge, not of {resolved.grader}; give --grader judge")
    if dry_run:
        print_config(resolved)
        return
    from selfedit.tasks.knowledge.data import almanac_passage, load_passage, load_quiz

    embedded = almanac_passage(file)
    if embedded is not None and title is not None:
        raise DataError(f"--title {title}: {file} has its own title; leave --title out")
    passage = embedded or load_passage(Path(file), title)
    questions = load_quiz(quiz) if quiz is not None else passage.questions
    check_writable(json_file)
    from selfedit.learn import learn

    with WorkBar("{task.description}") as bar:
        task = bar.add_task("loading the model", total=None)

        def progress(event: str, details: dict[str, Any]) -> None:
            if event == "waiting":
                err.print(f"{details['folder']} is in use by another process; waiting for it to finish", markup=False)
            elif event == "going on":
                err.print(
                    f"going on where this call was interrupted; done already: {', '.join(sorted(details['done']))}", markup=False
                )
            elif event == "started":
                if details["parts"] > 1:
                    err.print(f"the passage is longer than half the model's window; split into {details['parts']} parts")
                writing = f"writing {resolved.edits} self-edits, sitting the exam before"
                bar.update(task, description=writing if details["quiz"] else "making a quiz")
            elif event == "quiz":
                made = details["quiz"]
                if not made.reason:
                    passed = f"{len(made.questions)} of {made.asked} questions that the model made passed"
                    err.print(f"no --quiz: {passed}", highlight=False)
                    bar.update(task, description=f"writing {resolved.edits} self-edits")
            elif event == "left":
                if not isinstance(details["left"], str):
                    err.print(f"{len(details['left'])} of them stand in no self-edit and are the exam", highlight=False)
            elif event == "preparing":
                bar.update(
                    task, description="sitting the exam before; at a base's first use reading what it is familiar with (minutes)"
                )
            elif event == "wrote":
                bar.update(task, description="training on each self-edit, then the exam after", total=details["steps"])
            elif event == "steps":
                bar.update(task, completed=details["done"])
            elif event == "decided":
                bar.update(task, description="committing" if details["accepted"] else "done")

        result = learn(resolved, passage, questions, memory, make_grader(resolved.grader, resolved.judge), progress, workers)
    if json_file is not None:
        write_json(json_file, result)
    _show(result, memory)


def _show(result: dict[str, Any], memory: Path) -> None:
    """The candidates, then the exam before and after side by side."""
    if result["decision"] == "no-quiz":
        title, where = escape(result["passage"]["title"]), escape(str(memory))
        out.print(
            f"[bold yellow]Nothing learnt[/]: no quiz about {title} could be made; {escape(result['reason'])}.", highlight=False
        )
        refused = result["quiz"]["made"]["refused"]
        if refused:
            out.print("refused: " + ", ".join(f"{count} {escape(why)}" for why, count in refused.items()), highlight=False)
        if "can't read it" in result["reason"]:
            larger = ", or a larger --model, or a higher quiz.most_bits"
        elif "no sentence of it" in result["reason"]:
            # Nor would a larger model be asked anything.
            larger = ""
        else:
            larger = ", or --set quiz.url=URL --set quiz.model=NAME for a larger one"
        out.print(f"Nothing in {where} has changed. Give --quiz FILE with questions and answers{larger}.", highlight=False)
        return
    base = result["baseline"]["accuracy"]
    title = escape(result["passage"]["title"])
    out.print(f"[bold]Self-edits about {title}[/] (on the choosing questions; before: {base:.0%})", highlight=False)
    table = narrow_table()
    for name in ("", "style", "lessons", "correct", "gain", "F1", "log-prob", "tokens", "seconds", "status"):
        table.add_column(name, justify="left" if name in ("style", "status") else "right", no_wrap=name not in ("style", "status"))
    for index, row in enumerate(result["candidates"]):
        kept = index == result["best"] and result["decision"] == "accepted"
        ok = row["status"] == "ok"
        table.add_row(
            f"{'*' if kept else ''}{index + 1}",
            escape(row["style"]) if len(row["style"]) < 30 else "template",
            str(row["documents"]),
            f"{row['accuracy']:.0%}" if ok else "-",
            f"{100 * row['gain']:+.0f}" if ok else "-",
            f"{row['f1']:.2f}" if ok else "-",
            f"{row['logprob']:.2f}" if ok else "-",
            str(row["tokens"]),
            f"{row['seconds']:.0f}",
            row["status"] if ok else escape(f"{row['status']}: {row['reason']}"),
            style="bold" if kept else None,
        )
    out.print(table)
    report = result["report"]
    made = result["quiz"]["made"]
    if made:
        out.print(
            f"[bold]The quiz is the model's own[/] ({len(result['quiz']['choosing'])} chose, {report['n']} report): its questions, "
            "and its answers with the passage in view",
            highlight=False,
        )
        own = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for name in ("question that chose", "answer", "before", "after"):
            own.add_column(name)
        after = result["candidates"][result["best"]]["questions"] if result["best"] is not None else []
        for index, row in enumerate(result["baseline"]["questions"]):
            new = after[index]["answer"] if after else "-"
            own.add_row(escape(row["question"]), escape(row["gold"]), escape(row["answer"][:60]), escape(new[:60]))
        out.print(own)
    best = result["best"]
    chosen = best + 1 if best is not None else "-"
    wordings = f" in {report['wordings']} wordings" if report["wordings"] > report["n"] else ""
    out.print(
        f"[bold]The exam without the passage[/], on questions that chose nothing (n={report['n']}{wordings}, self-edit {chosen})",
        highlight=False,
    )
    exam = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in ("question", "gold", "before", "after"):
        exam.add_column(name)
    for row in report["questions"]:
        exam.add_row(escape(row["question"]), escape(row["gold"]), _answer(row, "before"), _answer(row, "after"))
    exam.add_section()
    exam.add_row("[bold]correct[/]", "", f"[bold]{report['before']:.0%}[/]", f"[bold]{report['after']:.0%}[/]")
    alone = report["question_alone"]
    exam.add_row("correct, question without title", "", f"{alone['before']:.0%}", f"{alone['after']:.0%}")
    out.print(exam)
    right, text = report["general"]["right"], report["general"]["text"]
    likelier = (text["after"] - text["before"]) / abs(text["before"])
    after = "after" if result["decision"] == "accepted" else f"with self-edit {chosen}"
    out.print(
        f"General questions (n={report['general']['n']}), as the memory answers: {right['before']:.0%} right before, "
        f"{right['after']:.0%} {after}; log-probability of plain text {text['before']:.2f} before, {text['after']:.2f} {after} "
        f"({likelier:+.1%})",
        highlight=False,
    )
    if result["earlier"]:
        shares = [fmean(row[when] for row in result["earlier"]) for when in ("before", "after")]
        worst = min(result["earlier"], key=lambda row: row["after"] - row["before"])
        right = f"{len(result['earlier'])} earlier entries, right: {shares[0]:.0%}"
        if result["decision"] == "accepted":
            fall = f"most changed: {escape(worst['title'])}, {worst['before']:.0%} to {worst['after']:.0%}"
            out.print(f"{right} before, {shares[1]:.0%} after; {fall}", highlight=False)
        else:
            would = f"; with self-edit {chosen} it would be {shares[1]:.0%}" if best is not None else ""
            out.print(f"{right}, as before{would}", highlight=False)
    chance, tried = result["chance_by_noise"], result["tried"]
    luck = "less than 1%" if chance is not None and chance < 0.005 else f"about {chance:.0%}" if chance is not None else ""
    noise = f" The best of {tried} useless self-edits would look as good in {luck} of cases." if tried else ""
    where = escape(str(memory))
    if result["decision"] == "accepted":
        out.print(f"[bold green]Kept[/] as entry {result['memory']['entry']} of {where}.{noise}")
        asked = next((row for row in report["questions"] if row["after_correct"]), report["questions"][0])
        options = ["--memory", str(memory), "--title", result["passage"]["title"]]
        program = "python -m selfedit" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
        typer.echo(f"Ask it: {program} ask {shlex.join([asked['question'], *options])}")
    elif result["over_budget"]:
        out.print(
            f"[bold yellow]Nothing kept[/]: earlier entries would lose more than budget={result['config']['budget']:g}; {where} is "
            "as it was. In a stack --set replay=0.5 mixes their lessons in.",
            highlight=False,
        )
    elif tried:
        out.print(f"[bold yellow]Nothing kept[/]: no self-edit gained enough; {where} is as it was.{noise}")
    else:
        out.print(f"[bold yellow]Nothing kept[/]: no self-edit could be tried (see status); {where} is as it was.")


def _answer(row: dict[str, Any], when: str) -> str:
    mark = "[green]v[/]" if row[f"{when}_correct"] else "[red]x[/]"
    return f"{mark} {escape(row[when][:80])}"
