"""How often should each sentence be asked about? One self-edit of many passes, of which each variant trains the first ones.

    .venv/bin/python benchmarks/passes.py --data squad_dev.json --without benchmarks/results/rewards --run runs/passes \
        --settings layers=last:10,batch_size=4,learning_rate=4e-3,epochs=4 \
        --variants passes=2 passes=2,epochs=8 passes=2,limit_documents=0 passes=4,limit_documents=0

A variant is passes with settings of the training and of the self-edit; the first is the control. Each is one training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from selfedit import seeds
from selfedit.config import EditConfig, Settings
from selfedit.contexts import Passage
from selfedit.errors import InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.text import RecallGrader
from selfedit.inner import Trial, run_trials
from selfedit.lm.load import LanguageModel
from selfedit.marks import mark_sitting
from selfedit.runs import Run, write_json
from selfedit.samplers.local import write_edits
from selfedit.stats import mean_and_error, paired_difference
from selfedit.tasks.knowledge.data import load_dataset
from selfedit.tasks.knowledge.exam import asked_in
from selfedit.tasks.knowledge.task import KnowledgeTask

MEASURES = ("right", "probability", "bare", "bare_probability", "tokens", "documents")


class PassesConfig(BaseModel):
    """What decides the rows."""

    data: str
    without: str
    passages: int
    settings: str
    variants: list[str]
    seed: int = 0


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.split(",") if pair)


def try_passage(lm: LanguageModel, passage: Passage, config: PassesConfig) -> dict[str, Any]:
    """A lease: a passage's self-edit, trained in every variant."""
    variants = [_pairs(variant) for variant in config.variants]
    most = max(int(variant["passes"]) for variant in variants)
    (written,) = write_edits(lm, KnowledgeTask(EditConfig(passes=most)), passage, 1, EditConfig().sampling, config.seed)
    # Of each style in turn all passes, and in each pass all sentences.
    styles = 1 + EditConfig().styles[0].count("+")
    each = len(written.texts) // (styles * most)
    trials: dict[str, Trial] = {}
    rows: dict[str, Any] = {}
    for name, variant in zip(config.variants, variants, strict=True):
        passes = int(variant["passes"])
        text = "\n".join(
            one for style in range(styles) for one in written.texts[style * most * each : (style * most + passes) * each]
        )
        edit = EditConfig.model_validate({key: value for key, value in variant.items() if key in EditConfig.model_fields})
        training = {key: value for key, value in variant.items() if key in Settings.model_fields}
        settings = Settings.model_validate(_pairs(config.settings) | training)
        try:
            plan = KnowledgeTask(edit).compile(lm, passage, text, settings, seeds.derive(config.seed, passage.id, "passes", name))
            trials[name] = Trial(passage, plan)
        except InvalidEditError as error:
            rows[name] = {"status": f"invalid: {error}"}
    task = KnowledgeTask()
    tasks = [task, replace(task, form="bare")]
    for (name, trial), outcome in zip(trials.items(), run_trials(lm, tasks, [*trials.values()], len(trials)), strict=True):
        if outcome.status != "ok":
            rows[name] = {"status": outcome.status}
            continue
        titled, bare = (
            mark_sitting(RecallGrader(), asked_in(one.form, task.asked(passage)), sitting)
            for one, sitting in zip(tasks, outcome.sittings, strict=True)
        )
        rows[name] = {
            "status": "ok",
            "right": titled.accuracy,
            "probability": titled.probability,
            "bare": bare.accuracy,
            "bare_probability": bare.probability,
            "tokens": outcome.tokens,
            "documents": len(trial.plan.documents),
            "seconds": round(outcome.seconds, 1),
        }
    return {"passage": passage.id, "title": passage.title, "texts": list(written.texts), "variants": rows}


def summary(rows: Sequence[dict[str, Any]], variants: Sequence[str]) -> dict[str, Any]:
    """Means of each variant, and the paired differences to the first, over the passages in which all could be trained."""
    whole = [row["variants"] for row in rows if all(row["variants"][name]["status"] == "ok" for name in variants)]
    found: dict[str, Any] = {"n": len(whole), "left_out": len(rows) - len(whole), "variants": {}}
    for name in variants:
        values = {measure: [float(row[name][measure]) for row in whole] for measure in MEASURES}
        control = {measure: [float(row[variants[0]][measure]) for row in whole] for measure in MEASURES}
        found["variants"][name] = {
            measure: {
                **asdict(mean_and_error(values[measure])),
                "difference": asdict(paired_difference(values[measure], control[measure])) if name != variants[0] else None,
            }
            for measure in MEASURES
        }
    return found


def main() -> None:
    """Runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="flat data set of development passages, or almanac")
    parser.add_argument("--without", default="", help="run whose passages are left out")
    parser.add_argument("--passages", type=int, default=40)
    parser.add_argument("--settings", default="", help="of every training, in the place of the defaults")
    parser.add_argument("--variants", nargs="+", required=True, help="such as passes=4,epochs=8; the control first")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, help="processes, one core each; default: as many as a short timing says")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("data", "without", "passages", "settings", "variants")}
    config = PassesConfig(**chosen)
    known = {"passes"} | EditConfig.model_fields.keys() | Settings.model_fields.keys()
    for text in (config.settings, *config.variants):
        if unknown := _pairs(text).keys() - known:
            parser.error(f"{text}: no setting is called {sorted(unknown)[0]}")
    run = Run(arguments.run, config, arguments.resume)
    rows = (Path(config.without) / "trials.jsonl").read_text().splitlines() if config.without else []
    seen = {json.loads(row)["passage"] for row in rows}
    source = load_dataset("almanac", "dev") if config.data == "almanac" else load_dataset(config.data)
    passages = [passage for passage in source if passage.id not in seen][: config.passages]
    done = {row["passage"] for row in run.rows}
    console = Console()
    with LocalExecutor(ModelChoice("builtin:smollm2-135m", dtype="float32"), arguments.workers) as executor:
        for row in executor.map(try_passage, [(passage, config) for passage in passages if passage.id not in done]):
            run.append(row)
            console.print(len(run.rows), row["title"], {name: one.get("right") for name, one in row["variants"].items()})
    found = summary(run.rows, config.variants)
    table = Table("variant", *MEASURES, title=f"n = {found['n']}; in brackets to {config.variants[0]}, 95 %")
    for name, means in found["variants"].items():
        cells = []
        for measure in MEASURES:
            one, scale = means[measure], 1 if measure in ("tokens", "documents") else 100
            text = f"{scale * one['mean']:.1f} ± {scale * one['se']:.1f}"
            if one["difference"]:
                text += " ({mean:+.1f}; {low:+.1f}, {high:+.1f})".format(
                    **{key: scale * one["difference"][key] for key in ("mean", "low", "high")}
                )
            cells.append(text)
        table.add_row(name, *cells)
    console.print(table)
    write_json(arguments.run / "table.json", found)


if __name__ == "__main__":
    main()
