"""``selfedit bench``: how fast this machine trains self-edits, how that compares with other ways, and what rewards are worth."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from selfedit.bench import EXAM_QUESTIONS
from selfedit.cli.common import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    ModelOption,
    ResumeOption,
    SeedOption,
    SlotsOption,
    WorkBar,
    WorkersOption,
    build_config,
    check_writable,
    err,
    estimates,
    narrow_table,
    open_run,
    out,
    print_config,
    print_table,
    run_config,
)
from selfedit.config import DEFAULT_MODEL, RewardBenchConfig
from selfedit.errors import DataError
from selfedit.runs import write_json

app = typer.Typer(help="Measure speed, and what rewards are worth.", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure speed, and what rewards are worth."""


@app.command("inner")
def inner_command(
    model: Annotated[str, typer.Option(help="builtin:smollm2-135m, a folder, a .gguf file, or a hub id.")] = DEFAULT_MODEL,
    notes: Annotated[Path | None, typer.Option(help="Passages with self-edits (JSON); default: almanac's sentences.")] = None,
    edits: Annotated[int, typer.Option(min=1, help="Self-edits to train.")] = 8,
    documents: Annotated[int, typer.Option(min=1, help="Most notes of a self-edit, its passage on top.")] = 30,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over each self-edit's documents (the paper: 10).")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each row; the median counts.")] = 3,
    last: Annotated[int, typer.Option(min=1, help="N of the row stacked-last: the last N layers are adapted.")] = 15,
    slots: Annotated[int, typer.Option(min=1, help="Adapters side by side in the stacked rows.")] = 8,
    quick: Annotated[
        bool, typer.Option("--quick", help="At most 4 self-edits of 5 notes, 3 epochs, 1 turn: within 10 minutes on two cores.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="The stacked rows' layers through torch.compile.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table there.")] = None,
) -> None:
    """Times the ways to train one self-edit's adapter on the same documents, interleaved in one run, one thread each.

    * reference-qv: HF Trainer, padded to 2048 tokens with loss on the padding, q and v (a few steps, extrapolated)
    * peft-qv, peft: PEFT one after the other without padding; q and v, or all linear layers
    * trl: TRL's SFTTrainer, all linear layers
    * stacked-qv, stacked: all self-edits side by side; stacked-last: in the last N layers

    Example: selfedit bench inner --quick --json bench.json
    """
    missing = [name for name in ("peft", "trl", "datasets", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"the other ways need {', '.join(missing)}: pip install 'selfedit[bench]'")
    check_writable(json_file)
    from selfedit.bench import bench_inner, workload

    if quick:
        edits, documents, epochs, repeats = min(edits, 4), min(documents, 5), min(epochs, 3), 1
    work = workload(model, str(notes) if notes else None, edits, documents, epochs, 1 if quick else 2, last, slots, compiled)
    with err.status("starting") as status:
        result = bench_inner(work, repeats, status.update)
    if json_file is not None:
        write_json(json_file, result)
    show(result, quick)


@app.command("rewards")
def rewards_command(
    data: Annotated[str | None, typer.Option(help="Data sets with questions, by commas: almanac, squad, JSON files.")] = None,
    split: Annotated[str | None, typer.Option(help="train, dev or test, for almanac and squad (or almanac:dev).")] = None,
    passages: Annotated[int | None, typer.Option(help="Passages, each with 4 questions or more.")] = None,
    edits: Annotated[int | None, typer.Option(help="Self-edits a passage.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Seeds of training of each self-edit.")] = None,
    screened: Annotated[int | None, typer.Option(help="Self-edits that a screen lets through.")] = None,
    model: ModelOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    workers: WorkersOption = None,
    slots: SlotsOption = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/rewards-TIME.")] = None,
    resume: ResumeOption = False,
    config: ConfigOption = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Any setting: settings.epochs=4, quiz.passes=2.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table there.")] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Compares every reward and every screen on the same trials: which finds the self-edit that teaches, and at what cost?

    Half of each passage's questions may choose; what a self-edit is worth is its accuracy on the other half, with seeds that did
    not choose it. A quarter of each passage's sentences is left out of its own lesson (edit.held_out). A stopped run goes on with
    --run RUN --resume.

    Example: selfedit bench rewards --data almanac --split dev --passages 12 --run runs/rewards
    """
    flags: dict[str, Any] = {
        "data": tuple(part.strip() for part in data.split(",")) if data else None,
        "split": split,
        "passages": passages,
        "edits": edits,
        "repeats": repeats,
        "screened": screened,
        "model": model,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "slots": slots,
    }
    resolved = build_config(RewardBenchConfig, run_config(run, resume, config), flags, sets or [])
    if dry_run:
        print_config(resolved)
        from selfedit.estimate import estimate_rewards

        estimates(resolved.model, lambda known: estimate_rewards(resolved, known))
        return
    check_writable(json_file)
    from selfedit.bench_rewards import bench_rewards
    from selfedit.executors.local import LocalExecutor, ModelChoice
    from selfedit.tasks.knowledge.data import load_dataset

    contexts = [load_dataset(name, resolved.split) for name in resolved.data]
    folder = run or Path("runs") / time.strftime("rewards-%Y%m%d-%H%M%S")
    opened, resolved = open_run(folder, resolved, resume)
    choice = ModelChoice(resolved.model, resolved.device, resolved.dtype)
    with WorkBar("passages") as bar, LocalExecutor(choice, workers) as executor:
        task = bar.add_task("passages", total=None)
        result = bench_rewards(resolved, contexts, opened, executor, lambda done, of: bar.update(task, completed=done, total=of))
    write_json(folder / "table.json", result)
    if json_file is not None:
        write_json(json_file, result)
    show_rewards(result)


def show_rewards(result: dict[str, Any]) -> None:
    """Prints the tables."""
    from selfedit.report.read import RunData
    from selfedit.report.rewards import rewards_tables
    from selfedit.runs import without_nan

    for table in rewards_tables(RunData("", Path(), "rewards", {}, table=without_nan(result))):
        print_table(table)


def show(result: dict[str, Any], quick: bool) -> None:
    """Prints the table."""
    machine = result["machine"]
    out.print(
        f"{machine['cpu']}, {machine['cores']} cores ({machine['capability']}), one thread; torch {machine['torch']}; "
        f"matrix products {result['peak_gflops']:.0f} GFLOP/s; {result['edits']} self-edits, {result['documents']} documents, "
        f"{result['epochs']} epochs, {result['tokens_per_edit']:.0f} tokens a self-edit{'; quick' if quick else ''}",
        highlight=False,
    )
    table = narrow_table()
    table.add_column("", no_wrap=True)
    for name in ("s/edit", "tok/s", "x ref", "x PEFT", "of peak", "MiB", "weights", "exam"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        difference = row["max_weight_diff"]
        table.add_row(
            row["name"],
            f"{row['seconds_per_edit']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['ratio_reference']:.2f}",
            f"{row['ratio_peft']:.2f}",
            f"{row['peak_share']:.0%}",
            f"{row['peak_memory_mb']:.0f}",
            "-" if difference is None else f"{difference:.1e}",
            "-" if row["exam_share"] is None else f"{row['exam_share']:.0%}",
        )
    out.print(table)
    stacked = next(row for row in result["rows"] if row["name"] == "stacked")
    out.print(f"{result['slots']} slots of stacked add {stacked['slots_add_mb']:.0f} MiB to one slot's peak.", highlight=False)
    out.print(
        "s/edit: seconds to train one self-edit; x ref, x PEFT: times as fast as reference-qv, as peft(-qv); MiB: peak memory; "
        f"weights: largest difference to peft(-qv); exam: {EXAM_QUESTIONS} questions, as a share of the training time; "
        f"reference-qv: {result['reference_steps_timed']} steps timed, extrapolated",
        highlight=False,
    )
