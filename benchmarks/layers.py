"""The last N layers against all of them, at the same self-edits: does the cheaper adapter answer as many questions?

    .venv/bin/python benchmarks/layers.py --squad squad_dev.json --run runs/layers --resume

almanac dev and the first 40 passages of a SQuAD file in the flat form; one self-edit of the model's own a passage, two seeds of
training. The paired difference is over passages, each the mean of its seeds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from selfedit import seeds
from selfedit.cli.common import write_json
from selfedit.config import EditConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import TrainingPlan
from selfedit.errors import DivergedError, InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.text import RecallGrader
from selfedit.inner import Trial, run_trials
from selfedit.lm.load import LanguageModel
from selfedit.marks import mark_sitting
from selfedit.runs import Run
from selfedit.samplers.local import write_edits
from selfedit.stats import mean_and_error, paired_difference
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.task import KnowledgeTask

SETTINGS: dict[str, dict[str, Any]] = {
    "last 10": {"layers": "last:10", "epochs": 8, "learning_rate": 2e-3},
    "all": {"layers": "all", "epochs": 8, "learning_rate": 1e-3},
}
# Passages whose adapters are trained side by side.
TOGETHER = 4
MEASURES = ("accuracy", "f1", "logprob")


class LayersConfig(BaseModel):
    """What decides the rows."""

    squad: str
    squad_passages: int = 40
    seeds: int = 2
    settings: dict[str, dict[str, Any]] = SETTINGS


def try_passages(lm: LanguageModel, passages: Sequence[tuple[Passage, str]], config: LayersConfig) -> list[dict[str, Any]]:
    """A lease: one self-edit of each passage under every setting and seed, side by side."""
    rows: list[dict[str, Any]] = []
    planned: list[tuple[dict[str, Any], str, int, Trial]] = []
    how = EditConfig()
    task = KnowledgeTask(how)
    for passage, source in passages:
        (written,) = write_edits(lm, task, passage, 1, how.sampling, 0)
        rows.append({"passage": passage.id, "source": source, "edit": written.edit.text, "trials": []})
        try:
            documents = task.compile(lm, passage, written.edit.text, Settings(), 0).documents
        except InvalidEditError as error:
            rows[-1]["invalid"] = str(error)
            continue
        for name in config.settings:
            for seed in range(config.seeds):
                plan = TrainingPlan(documents, Settings(**config.settings[name]), seeds.derive(seed, passage.id))
                planned.append((rows[-1], name, seed, Trial(passage, plan)))
    outcomes = run_trials(lm, [task], [trial for *_, trial in planned], config.seeds * len(passages))
    for (row, name, seed, trial), outcome in zip(planned, outcomes, strict=True):
        if outcome.status != "ok":
            raise DivergedError(outcome.reason)
        sitting = outcome.sittings[0]
        marks = mark_sitting(RecallGrader(), task.asked(trial.context), sitting)
        row["trials"].append(
            {
                "setting": name,
                "seed": seed,
                "accuracy": marks.accuracy,
                "f1": marks.f1,
                "logprob": marks.log_probability,
                "answers": sitting.answers,
                "steps": len(outcome.losses),
                "seconds": round(outcome.seconds, 2),
            }
        )
    return rows


def summary(rows: Sequence[dict[str, Any]], config: LayersConfig) -> dict[str, Any]:
    """Means of each setting and the paired differences to full depth, over all passages and by source."""
    tables: dict[str, Any] = {}
    for source in ("all", *dict.fromkeys(row["source"] for row in rows)):
        tried = [row for row in rows if row["trials"] and source in ("all", row["source"])]
        values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in tried:
            for name in config.settings:
                own = [trial for trial in row["trials"] if trial["setting"] == name]
                for measure in (*MEASURES, "seconds"):
                    values[name][measure].append(fmean(trial[measure] for trial in own))
        tables[source] = {
            "n": len(tried),
            "means": {name: {m: asdict(mean_and_error(v)) for m, v in of.items()} for name, of in values.items()},
            "last 10 - all": {m: asdict(paired_difference(values["last 10"][m], values["all"][m])) for m in MEASURES},
        }
    return tables


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", required=True, help="flat data set of dev passages")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, help="processes, one core each; default: as many as a short timing says")
    arguments = parser.parse_args()
    config = LayersConfig(squad=arguments.squad)
    run = Run(arguments.run, config, arguments.resume)
    done = {row["passage"] for row in run.rows}
    passages = [(passage, "almanac") for passage in load_dataset("almanac", "dev")]
    passages += [(passage, "squad") for passage in load_dataset(arguments.squad)[: config.squad_passages]]
    waiting = [one for one in passages if one[0].id not in done]
    leases = [(waiting[at : at + TOGETHER], config) for at in range(0, len(waiting), TOGETHER)]
    console = Console()
    with LocalExecutor(ModelChoice("builtin:smollm2-135m", dtype="float32"), arguments.workers) as executor:
        for rows in executor.map(try_passages, leases):
            for row in rows:
                run.append(row)
            console.print(f"{len(run.rows)} of {len(passages)}", highlight=False)
    result = summary(run.rows, config)
    write_json(run.folder / "table.json", result)
    for source, table in result.items():
        console.print(source, table["n"], table["last 10 - all"], highlight=False)


if __name__ == "__main__":
    main()
