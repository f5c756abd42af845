"""``selfedit eval``: tables that compare methods."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from selfedit.cli.common import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    GraderOption,
    ModelOption,
    ResumeOption,
    SeedOption,
    SlotsOption,
    StyleOption,
    WorkBar,
    WorkersOption,
    build_config,
    check_writable,
    estimates,
    make_grader,
    narrow_table,
    open_run,
    out,
    print_config,
    run_config,
    styles_from,
)
from selfedit.config import EvalConfig
from selfedit.errors import DataError
from selfedit.runs import keep_data, write_json

app = typer.Typer(help="Compare methods on a data set.", no_args_is_help=True)


@app.callback()
def _eval() -> None:
    """Compare methods on a data set."""


@app.command("knowledge")
def knowledge_command(
    data: Annotated[str | None, typer.Option(help="almanac, squad, or a JSON file (flat form or SQuAD's).")] = None,
    split: Annotated[str | None, typer.Option(help="train, dev or test, for almanac and squad (or almanac:dev).")] = None,
    methods: Annotated[str | None, typer.Option(help="Methods (below), joined by commas.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "--n", min=0, help="The first so many passages; 0: all.")] = None,
    setting: Annotated[str | None, typer.Option(help="single: an adapter a passage; corpus: one for all passages.")] = None,
    full: Annotated[bool | None, typer.Option("--full", help="In a corpus: train all weights, no adapter.")] = None,
    writer: Annotated[str | None, typer.Option(help="Run of selfedit train, or a policy's folder.")] = None,
    external: Annotated[str | None, typer.Option(help="File with self-edits, or URL of an OpenAI-compatible server.")] = None,
    model: ModelOption = None,
    edits: Annotated[int | None, typer.Option(help="Self-edits a passage of each writer; averaged, never selected.")] = None,
    style: StyleOption = None,
    grader: GraderOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    slots: SlotsOption = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/eval-TIME.")] = None,
    resume: ResumeOption = False,
    config: ConfigOption = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: settings.epochs=5, edit.form=plain.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table there.")] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Measures what a model knows of passages that it doesn't see in the exam.

    * none: nothing is trained
    * passage: trained on the passage alone
    * passage-matched: the passage alone, with as many optimiser steps and about as many tokens as self had
    * self: trained on its own self-edits, the mean of --edits of them
    * external: trained on what another model wrote (--external)
    * seal-writer: the policy (--writer) writes, the base is trained
    * policy-none, policy-passage, seal: none, passage and self of the policy itself
    * context: nothing is trained, the passage stands in the prompt

    self, external, seal-writer and seal take a style: self:rewrite.

    Example: selfedit eval knowledge --data almanac --split dev --limit 4 --methods none,passage,self --json table.json
    Example: selfedit eval knowledge --writer runs/train-1 --methods none,passage,self,seal-writer,seal
    Example: selfedit eval knowledge --methods none,passage,self --setting corpus --n 40 --edits 5
    """
    from selfedit.tasks.knowledge.data import flat_dataset, load_dataset
    from selfedit.tasks.knowledge.prompts import check_styles

    flags: dict[str, Any] = {
        "data": data,
        "split": split,
        "methods": tuple(part.strip() for part in methods.split(",")) if methods else None,
        "limit": limit,
        "setting": setting,
        "corpus.full": full,
        "writer": writer,
        "external": external,
        "model": model,
        "edits": edits,
        "grader": grader,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "slots": slots,
        "edit.styles": styles_from(style),
    }
    config = run_config(run, resume, config)
    resolved = build_config(EvalConfig, config, flags, sets or [])
    check_styles([*resolved.edit.styles, *(style for _, _, style in (m.partition(":") for m in resolved.methods) if style)])
    if dry_run:
        print_config(resolved)
        from selfedit.estimate import estimate_evaluation

        on_hub = resolved.data.partition(":")[0] == "squad"
        if on_hub and not resolved.limit:
            typer.echo("# no estimate: how many passages there are is known once they are fetched; give --limit")
            return
        found = resolved.limit if on_hub else len(load_dataset(resolved.data, resolved.split))
        count = min(found, resolved.limit or found)
        estimates(resolved.model, lambda known: estimate_evaluation(resolved, known, count))
        return
    from selfedit.corpus import evaluate_corpus, trainings
    from selfedit.evaluate import ON_POLICY, check_writers, evaluate, method_name
    from selfedit.lm.load import identify
    from selfedit.runs import policy_of

    check_writers(resolved)
    names = {method_name(method) for method in resolved.methods}
    for option, given, takers in (("--writer", writer, {"seal-writer", *ON_POLICY}), ("--external", external, {"external"})):
        if given and not takers & names:
            raise DataError(f"{option} is given, but no method takes it; add {' or '.join(sorted(takers))} to --methods")
    # The run may get further rounds; what is measured here stays this policy.
    resolved = resolved.model_copy(update={"writer": policy_of(resolved.writer, identify(resolved.model).fingerprint).folder or ""})
    passages = load_dataset(resolved.data, resolved.split)
    passages, others = (passages[: resolved.limit], passages[resolved.limit :]) if resolved.limit else (passages, [])
    folder = run or Path("runs") / time.strftime("eval-%Y%m%d-%H%M%S")
    check_writable(json_file)
    grading = make_grader(resolved.grader, resolved.judge)
    opened, resolved = open_run(folder, resolved, resume)
    corpus = resolved.setting == "corpus"
    # What is disturbed elsewhere is asked of the others, too.
    keep_data(folder, flat_dataset([*passages, *others] if corpus else passages))
    what = "passages, then trainings" if corpus else "passages"
    total = len(passages) + (trainings(resolved) if corpus else 0)
    with WorkBar(what) as bar:
        task = bar.add_task("", total=total)
        measured = partial(evaluate_corpus, others=others) if corpus else evaluate
        result = measured(resolved, passages, grading, opened, workers, lambda count: bar.update(task, completed=count))
    write_json(folder / "table.json", result)
    if json_file is not None:
        write_json(json_file, result)
    show(result)


def print_cost(cost: dict[str, float]) -> None:
    """What a run has cost in all."""
    total = f"{cost['trainings']} trainings, {cost['tokens']:,} labelled tokens, {cost['seconds']:,.0f} worker-seconds"
    out.print(f"in total: {total}", highlight=False)


def interval_cells(row: dict[str, Any], scale: float = 100, digits: int = 1) -> tuple[str, str]:
    """A paired difference with its interval, and its p where there is one; of one alone there is neither."""
    if row["n"] < 2:
        return f"{scale * row['mean']:+.{digits}f}", "-"
    mean, low, high = (f"{scale * row[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    p = "-" if math.isnan(row["p"]) else "<.001" if row["p"] < 0.001 else f"{row['p']:.3f}".lstrip("0")
    return f"{mean} [{low}, {high}]", p


def mean_cell(value: dict[str, float] | None, scale: int, digits: int) -> str:
    """A mean with its standard error, where there is one."""
    if value is None:
        return "-"
    error = "" if value["se"] is None or math.isnan(value["se"]) else f" ± {scale * value['se']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{error}"


def show(result: dict[str, Any]) -> None:
    """Prints the means, what they cost, and the paired differences; 80 columns are enough."""
    config = result["config"]
    out.print(
        f"[bold]{escape(config['data'])} {config['split']}[/]: {result['n']} passages, {result['questions']} questions, seed "
        f"{config['seed']}; mean ± standard error over passages. paraphrased: the questions in other words; no title: the question "
        "alone; exact: word for word; log-prob: of the gold answer's tokens; elsewhere: of questions about other passages.",
        highlight=False,
    )
    means = method_table("correct %", "paraphrased %", "no title %", "F1 %", "exact %")
    golds, costs = method_table("log-prob", "elsewhere", "elsewhere %"), method_table("failed %", "tokens", "steps", "seconds")
    for method, of in result["methods"].items():
        shares = [mean_cell(of.get(name), 100, 1) for name in ("accuracy", "paraphrased", "question_alone", "f1", "exact")]
        means.add_row(method, *shares)
        far = mean_cell(of.get("locality_logprob"), 1, 2), mean_cell(of.get("locality"), 100, 1)
        golds.add_row(method, mean_cell(of.get("logprob"), 1, 2), *far)
        spent = (f"{of[name]['mean']:.0f}" for name in ("tokens", "steps", "seconds"))
        costs.add_row(method, f"{100 * of['failed']['mean']:.0f}", *spent)
    out.print(means)
    out.print("The gold answers here and elsewhere; questions right elsewhere:")
    out.print(golds)
    out.print("Trials that failed; of one trial labelled tokens, steps, seconds with exam:")
    out.print(costs)
    print_cost(result["cost"])
    if not result["differences"]:
        return
    out.print("Paired differences in points, 95 % interval, two-sided sign-flip p:")
    differences = method_table("correct", "p", "F1", "p")
    rows = result["differences"]
    for accuracy in (row for row in rows if row["measure"] == "accuracy"):
        f1 = next(row for row in rows if row["measure"] == "f1" and all(row[k] == accuracy[k] for k in ("method", "control")))
        cells = [text for row in (accuracy, f1) for text in interval_cells(row)]
        differences.add_row(f"{accuracy['method']} - {accuracy['control']}", *cells)
    out.print(differences)


def method_table(*names: str) -> Table:
    """A narrow table, its first column the methods' names, which are folded rather than cut."""
    table = narrow_table()
    table.add_column(max_width=25, overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table
