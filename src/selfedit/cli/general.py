"""``selfedit eval general``: what a memory, or a trained writer, has broken of what the base knew."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from selfedit.cli.common import check_writable, err, narrow_table, out
from selfedit.cli.evaluate import interval_cells, mean_cell
from selfedit.config import DEFAULT_MODEL
from selfedit.runs import write_json
from selfedit.stats import paired_difference


def eval_general_command(
    memory: Annotated[Path | None, typer.Option(help="Folder of a memory.")] = None,
    writer: Annotated[str, typer.Option(help="Run of selfedit train, or a policy's folder.")] = "",
    model: Annotated[
        str | None, typer.Option(help="The base: builtin:smollm2-135m, a folder, a .gguf file, or a hub id; default: the memory's.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Over 200 short general questions and sentences to complete, and the perplexity of plain text: the base, and what it became.

    Example: selfedit eval general --memory my-memory
    """
    check_writable(json_file)
    from selfedit.lm.adapter import load_adapter, standing
    from selfedit.lm.load import load_model
    from selfedit.memory.compose import general_kept, kept_by
    from selfedit.memory.ledger import Base, Memory
    from selfedit.runs import policy_of
    from selfedit.tasks.general import General, by_item, marked, sit_general

    opened = Memory.open(memory) if memory else None
    with err.status("loading the model") as status:
        lm = load_model(model or (opened.base.name if opened else DEFAULT_MODEL), device, dtype)
        if opened:
            opened.check_base(Base(lm.name, lm.fingerprint))
        policy = policy_of(writer, lm.fingerprint)
        status.update("asking the base")
        sat: dict[str, General] = {"base": sit_general(lm)}
        if opened and opened.state.slots:
            status.update("asking the memory")
            kept = kept_by(opened)
            with standing(lm, [load_adapter(Path(folder)) for folder in kept.stack]):
                sat["memory"] = general_kept(lm, kept)
        if policy.folder:
            status.update("asking the writer")
            with standing(lm, [load_adapter(Path(policy.folder))]):
                sat["writer"] = sit_general(lm)
    found: dict[str, dict[str, Any]] = {name: marked(one) for name, one in sat.items()}
    for name in [name for name in found if name != "base"]:
        now, before = by_item(sat[name]), by_item(sat["base"])
        found[name]["change"] = {key: paired_difference(now[key], before[key]) for key in now}
    show(found)
    if json_file is not None:
        write_json(json_file, {name: {key: _plain(value) for key, value in of.items()} for name, of in found.items()})


def show(found: dict[str, dict[str, Any]]) -> None:
    """One row each, then the changes, each paired by item."""
    table, changes = narrow_table(), narrow_table()
    for name in ("", "right %", "log-prob", "perplexity"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name in ("", "right, points", "log-prob", "text"):
        changes.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, of in found.items():
        table.add_row(
            escape(name),
            mean_cell(asdict(of["right"]), 100, 1),
            mean_cell(asdict(of["logprob"]), 1, 2),
            f"{of['perplexity']:.2f} ± {of['perplexity'] * of['loss'].se:.2f}",
        )
        if "change" in of:
            change = of["change"]
            changes.add_row(
                escape(name),
                interval_cells(asdict(change["right"]), 100, 1)[0],
                interval_cells(asdict(change["logprob"]), 1, 3)[0],
                interval_cells(asdict(change["text"]), 1, 3)[0],
            )
    n = next(iter(found.values()))["n"]
    out.print(f"{n} questions and sentences to complete; mean ± standard error; log-prob: of the right answer")
    out.print(table)
    if changes.row_count:
        out.print("Changes to the base, paired by question or text, 95 % intervals; log-prob and text (a token's) in nats:")
        out.print(changes)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
