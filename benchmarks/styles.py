"""What the model writes: coverage and faithfulness of every style on almanac dev.

coverage: share of a passage's gold answers that occur in the self-edit; in lessons: in what it compiles to (chat form, grounded).
unfaithful: share of the self-edit's content words that don't come from the passage or its title.

    .venv/bin/python benchmarks/styles.py --run runs/styles --resume
    .venv/bin/python benchmarks/styles.py --run runs/policy --styles details+self-qa --passages 16 --writer runs/train
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from selfedit.config import EditConfig
from selfedit.contexts import Passage
from selfedit.errors import InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.lm.adapter import load_adapter, standing
from selfedit.lm.load import LanguageModel
from selfedit.report.read import covered, unfaithful
from selfedit.runs import Run, policy_of, write_json
from selfedit.samplers.local import write_edits
from selfedit.stats import mean_and_error
from selfedit.tasks.knowledge.compile import compile_edit
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.prompts import STYLES
from selfedit.tasks.knowledge.task import KnowledgeTask, read_plan

MEASURES = ("coverage", "coverage_in_lessons", "unfaithful", "words", "lessons")


class StylesConfig(BaseModel):
    """What decides the rows."""

    styles: tuple[str, ...] = (*STYLES, "details+self-qa")
    passages: int = 6
    edits: int = 2
    seed: int = 0
    writer: str = ""
    temperature: float = EditConfig().sampling.temperature


def write_and_measure(lm: LanguageModel, passage: Passage, style: str, config: StylesConfig) -> list[dict[str, Any]]:
    """A lease: a passage's self-edits in one style, as texts with their measures."""
    how = EditConfig(styles=(style,))
    sampling = how.sampling.model_copy(update={"temperature": config.temperature})
    policy = policy_of(config.writer, lm.fingerprint).folder
    with standing(lm, [load_adapter(Path(policy))] if policy else []):
        found = write_edits(lm, KnowledgeTask(how), passage, config.edits, sampling, config.seed)
    rows = []
    for index, written in enumerate(found):
        edit = written.edit
        try:
            lessons = compile_edit([passage], read_plan(edit.text)[0], how, lm.chat)[:-1]
        except InvalidEditError:
            lessons = ()
        compiled = "\n".join(document.text for document in lessons)
        rows.append(
            {
                "lease": f"{passage.id} {index} {style}",
                "passage": passage.id,
                "style": style,
                "coverage": covered(passage, edit.text),
                "coverage_in_lessons": covered(passage, compiled),
                "unfaithful": unfaithful(passage, edit.text) or 0.0,
                "words": len(edit.text.split()),
                "lessons": len(lessons),
                "edit": edit.text,
            }
        )
    return rows


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--styles", help="some of them, by commas")
    parser.add_argument("--passages", type=int)
    parser.add_argument("--edits", type=int)
    parser.add_argument("--writer", help="run of selfedit train; default: the base writes")
    parser.add_argument("--temperature", type=float)
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("passages", "edits", "writer", "temperature")}
    if arguments.styles:
        chosen["styles"] = tuple(arguments.styles.split(","))
    config = StylesConfig(**{name: value for name, value in chosen.items() if value is not None})
    run = Run(arguments.run, config, arguments.resume)
    done = {row["lease"] for row in run.rows}
    leases = [
        (passage, style, config)
        for style in config.styles
        for passage in load_dataset("almanac", "dev")[: config.passages]
        if not {f"{passage.id} {index} {style}" for index in range(config.edits)} <= done
    ]
    console = Console()
    with LocalExecutor(ModelChoice("builtin:smollm2-135m", dtype="float32")) as executor:
        for rows in executor.map(write_and_measure, leases):
            for row in rows:
                if row["lease"] not in done:
                    run.append(row)
            console.print(f"{len(run.rows)} {rows[0]['style']}: {rows[0]['coverage']:.2f}", highlight=False)
    result = []
    table = Table("style", *MEASURES)
    for style in config.styles:
        means: dict[str, list[float]] = defaultdict(list)
        for passage_id in dict.fromkeys(row["passage"] for row in run.rows):
            own = [row for row in run.rows if row["passage"] == passage_id and row["style"] == style]
            for measure in MEASURES:
                means[measure].append(fmean(row[measure] for row in own))
        line = {measure: asdict(mean_and_error(means[measure])) for measure in MEASURES}
        result.append({"style": style, **line})
        table.add_row(style, *(f"{line[m]['mean']:.2f} ± {line[m]['se']:.2f}" for m in MEASURES))
    write_json(run.folder / "table.json", {"n": config.passages, "edits": config.edits, "styles": result})
    console.print(table)


if __name__ == "__main__":
    main()
