"""What one lesson teaches and what it breaks, by the share of the base's own answers that is trained on beside it.

    .venv/bin/python benchmarks/rehearsal.py --squad squad_dev.json --run runs/rehearsal --resume
    .venv/bin/python benchmarks/rehearsal.py --run runs/rehearsal-2 --settings rehearsal=0 rehearsal=0.3 rehearsal=0.3,epochs=12

almanac dev and the first passages of a SQuAD file in the flat form; one self-edit of the model's own a passage, one training of
each by the defaults but for what a variant says. Then the exam with title and without, every third general question, and eight
plain texts. Differences are paired by passage, to the first variant named.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from selfedit import seeds
from selfedit.config import EditConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import TrainingPlan
from selfedit.errors import DivergedError, InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.text import RecallGrader
from selfedit.inner import Trial, run_trials
from selfedit.lm.load import LanguageModel
from selfedit.marks import mark_sitting
from selfedit.memory.compose import Kept, sample_kept
from selfedit.runs import Run, write_json
from selfedit.samplers.local import write_edits
from selfedit.stats import mean_and_error, paired_difference
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.exam import asked_in
from selfedit.tasks.knowledge.task import KnowledgeTask

# Passages whose adapters are trained side by side.
TOGETHER = 4
MEASURES = ("titled", "bare", "probability", "general", "text")


class RehearsalConfig(BaseModel):
    """What decides the rows."""

    squad: str | None
    squad_passages: int
    settings: list[str]


def settings_of(variant: str) -> Settings:
    """``rehearsal=0.3,epochs=12`` in the place of the defaults."""
    return Settings.model_validate(dict(pair.split("=") for pair in variant.split(",")))


def try_passages(lm: LanguageModel, passages: Sequence[tuple[Passage, str]], config: RehearsalConfig) -> list[dict[str, Any]]:
    """A lease: one self-edit of each passage under every variant."""
    rows: list[dict[str, Any]] = []
    how, grader = EditConfig(), RecallGrader()
    task = KnowledgeTask(how)
    bare = replace(task, form="bare")
    for passage, source in passages:
        text = write_edits(lm, task, passage, 1, how.sampling, 0)[0].edit.text
        rows.append({"passage": passage.id, "source": source, "edit": text, "trials": []})
    for variant in config.settings:
        with tempfile.TemporaryDirectory() as scratch:
            planned = []
            for at, (passage, _) in enumerate(passages):
                try:
                    documents = task.compile(lm, passage, rows[at]["edit"], Settings(), 0).documents
                except InvalidEditError as error:
                    rows[at]["invalid"] = str(error)
                    continue
                plan = TrainingPlan(documents, settings_of(variant), seeds.derive(0, passage.id))
                planned.append((rows[at], Trial(passage, plan, f"{scratch}/{at}")))
            outcomes = run_trials(lm, [task, bare], [trial for _, trial in planned], len(planned))
            for (row, trial), outcome in zip(planned, outcomes, strict=True):
                if outcome.status != "ok":
                    raise DivergedError(outcome.reason)
                asked = task.asked(trial.context)
                titled = mark_sitting(grader, asked, outcome.sittings[0])
                general = sample_kept(lm, Kept("stack", on_top=trial.adapter_folder))
                row["trials"].append(
                    {
                        "variant": variant,
                        "titled": titled.accuracy,
                        "bare": mark_sitting(grader, asked_in("bare", asked), outcome.sittings[1]).accuracy,
                        "probability": titled.probability,
                        "general": general["right"],
                        "text": general["text"],
                        "answers": outcome.sittings[0].answers,
                        "tokens": outcome.tokens,
                        "seconds": round(outcome.seconds, 2),
                    }
                )
    return rows


def base(lm: LanguageModel) -> dict[str, float]:
    """A job: the general questions and texts before any lesson."""
    return sample_kept(lm, Kept("stack"))


def summary(rows: Sequence[dict[str, Any]], config: RehearsalConfig, before: dict[str, float]) -> dict[str, Any]:
    """Means of each variant and the paired differences to the first, over all passages and by source."""
    tables: dict[str, Any] = {"base": before}
    first, *others = config.settings
    for source in ("all", *dict.fromkeys(row["source"] for row in rows)):
        tried = [row for row in rows if row["trials"] and source in ("all", row["source"])]
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in tried:
            for trial in row["trials"]:
                for measure in (*MEASURES, "tokens", "seconds"):
                    values[trial["variant"]][measure].append(trial[measure])
        tables[source] = {
            "n": len(tried),
            "means": {name: {m: asdict(mean_and_error(v)) for m, v in of.items()} for name, of in values.items()},
            "differences": {
                f"{name} - {first}": {m: asdict(paired_difference(values[name][m], values[first][m])) for m in MEASURES}
                for name in others
            },
        }
    return tables


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", help="flat data set of dev passages; default: almanac dev alone")
    parser.add_argument("--passages", type=int, default=12, help="passages of --squad")
    parser.add_argument("--settings", nargs="+", default=["rehearsal=0", "rehearsal=0.3"], help="variants, the control first")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, help="processes, one core each; default: as many as a short timing says")
    arguments = parser.parse_args()
    config = RehearsalConfig(squad=arguments.squad, squad_passages=arguments.passages, settings=arguments.settings)
    run = Run(arguments.run, config, arguments.resume)
    done = {row["passage"] for row in run.rows}
    passages = [(passage, "almanac") for passage in load_dataset("almanac", "dev")]
    if config.squad:
        passages += [(passage, "squad") for passage in load_dataset(config.squad)[: config.squad_passages]]
    waiting = [one for one in passages if one[0].id not in done]
    leases = [(waiting[at : at + TOGETHER], config) for at in range(0, len(waiting), TOGETHER)]
    console = Console()
    with LocalExecutor(ModelChoice("builtin:smollm2-135m", dtype="float32"), arguments.workers) as executor:
        before = next(executor.map(base, [()]))
        for rows in executor.map(try_passages, leases):
            for row in rows:
                run.append(row)
            console.print(f"{len(run.rows)} of {len(passages)}", highlight=False)
    result = summary(run.rows, config, before)
    write_json(run.folder / "table.json", result)
    for source, table in result.items():
        console.print(source, table, highlight=False)


if __name__ == "__main__":
    main()
