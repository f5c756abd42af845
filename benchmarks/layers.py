"""The last N layers against all of them, at the same self-edits: does the cheaper adapter answer as many questions?

    .venv/bin/python benchmarks/layers.py --squad squad_dev.json --run runs/layers --resume
    .venv/bin/python benchmarks/layers.py --run runs/sweep --of runs/layers --settings all@1e-3@8,last:15@2e-3@8 --seeds 1

almanac dev and the first 40 passages of a SQuAD file in the flat form; one self-edit of the model's own a passage, two seeds of
training. The paired difference is to the first setting named, over passages, each the mean of its seeds. ``--of`` takes an earlier
run's self-edits, and its trials wherever setting and seed are the same, so that a sweep trains only what is new.
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
from selfedit.config import EditConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import TrainingPlan
from selfedit.errors import DivergedError, InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.text import RecallGrader
from selfedit.inner import Trial, run_trials
from selfedit.lm.load import LanguageModel
from selfedit.marks import mark_sitting
from selfedit.runs import Run, read_rows, write_json
from selfedit.samplers.local import write_edits
from selfedit.stats import mean_and_error, paired_difference
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.task import KnowledgeTask

SETTINGS = "all@1e-3@8,last:10@2e-3@8"
# Passages whose adapters are trained side by side.
TOGETHER = 4
MEASURES = ("accuracy", "f1", "logprob")


class LayersConfig(BaseModel):
    """What decides the rows."""

    squad: str | None
    squad_passages: int = 40
    seeds: int = 2
    settings: list[str]
    of: str | None = None


def settings_named(name: str) -> Settings:
    """``last:10@2e-3@8``: layers, learning rate and epochs."""
    layers, rate, epochs = name.split("@")
    return Settings(layers=layers, learning_rate=float(rate), epochs=int(epochs))


def try_passages(
    lm: LanguageModel, passages: Sequence[tuple[Passage, str]], earlier: dict[str, dict[str, Any]], config: LayersConfig
) -> list[dict[str, Any]]:
    """A lease: one self-edit of each passage under every setting and seed, side by side; ``earlier`` has rows to take over."""
    rows: list[dict[str, Any]] = []
    planned: list[tuple[dict[str, Any], str, int, Trial]] = []
    how = EditConfig()
    task = KnowledgeTask(how)
    for passage, source in passages:
        if passage.id in earlier:
            text = earlier[passage.id]["edit"]
        else:
            text = write_edits(lm, task, passage, 1, how.sampling, 0)[0].edit.text
        known = {(trial["setting"], trial["seed"]): trial for trial in earlier.get(passage.id, {}).get("trials", [])}
        rows.append({"passage": passage.id, "source": source, "edit": text, "trials": []})
        try:
            documents = task.compile(lm, passage, text, Settings(), 0).documents
        except InvalidEditError as error:
            rows[-1]["invalid"] = str(error)
            continue
        for name in config.settings:
            for seed in range(config.seeds):
                if (name, seed) in known:
                    rows[-1]["trials"].append(known[name, seed])
                    continue
                plan = TrainingPlan(documents, settings_named(name), seeds.derive(seed, passage.id))
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
    first, *others = config.settings
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
    parser.add_argument("--settings", default=SETTINGS, help="LAYERS@RATE@EPOCHS by commas, the control first")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of training")
    parser.add_argument("--passages", type=int, default=40, help="passages of --squad")
    parser.add_argument("--of", type=Path, help="an earlier run, whose self-edits and trials are taken over")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, help="processes, one core each; default: as many as a short timing says")
    arguments = parser.parse_args()
    config = LayersConfig(
        squad=arguments.squad,
        squad_passages=arguments.passages,
        seeds=arguments.seeds,
        settings=arguments.settings.split(","),
        of=str(arguments.of) if arguments.of else None,
    )
    run = Run(arguments.run, config, arguments.resume)
    done = {row["passage"] for row in run.rows}
    passages = [(passage, "almanac") for passage in load_dataset("almanac", "dev")]
    if config.squad:
        passages += [(passage, "squad") for passage in load_dataset(config.squad)[: config.squad_passages]]
    earlier = {row["passage"]: row for row in read_rows(arguments.of / "trials.jsonl")} if arguments.of else {}
    waiting = [one for one in passages if one[0].id not in done]
    leases = [(waiting[at : at + TOGETHER], earlier, config) for at in range(0, len(waiting), TOGETHER)]
    console = Console()
    with LocalExecutor(ModelChoice("builtin:smollm2-135m", dtype="float32"), arguments.workers) as executor:
        for rows in executor.map(try_passages, leases):
            for row in rows:
                run.append(row)
            console.print(f"{len(run.rows)} of {len(passages)}", highlight=False)
    result = summary(run.rows, config)
    write_json(run.folder / "table.json", result)
    for source, table in result.items():
        console.print(source, table["n"], table["differences"], highlight=False)


if __name__ == "__main__":
    main()
