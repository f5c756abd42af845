"""What the engine brings on puzzles: the same items trained by PEFT, one recipe after the other, and side by side.

    .venv/bin/python benchmarks/puzzle_engine.py --json puzzle-engine.json

The hand-made recipe on the eight puzzles of ARC-AGI-1's training tasks that are smallest by `benchmarks/screen_arc.py`'s rule, one
thread, turns interleaved, medians. PEFT: batches of two items padded to the longer one, loss on the answers, our initial weights
and order. Both in one process, which keeps freed memory (a part of the engine that PEFT gets for nothing here).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from screen_arc import tokens_of

from selfedit import seeds
from selfedit.bench.machine import machine, matmul_peak
from selfedit.bench.ways import flat, flat_of_peft, with_lora
from selfedit.cli.common import build_config
from selfedit.config import ArcEvalConfig, Settings
from selfedit.lm.batch import Row, encode_document, pad
from selfedit.lm.buffers import keep_freed_memory
from selfedit.lm.load import LanguageModel, load_model
from selfedit.lm.train import Trained, learning_rate_factor, schedule_steps
from selfedit.lm.train_many import Job, train_many
from selfedit.tasks.arc.data import load_puzzles
from selfedit.tasks.arc.recipe import HAND_MADE
from selfedit.tasks.arc.task import ArcTask

Work = list[tuple[tuple[Row, ...], Settings, int]]


def by_peft(lm: LanguageModel, work: Work) -> tuple[float, list[Any]]:
    """Seconds for all, and each one's flat weights."""
    seconds, weights = 0.0, []
    for rows, settings, seed in work:
        model = with_lora(lm, settings, seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        start = time.perf_counter()
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        steps = schedule_steps(rows, settings, seeds.derive(seed, "order"))
        for step, (batch,) in enumerate(steps):
            optimiser.param_groups[0]["lr"] = settings.learning_rate * learning_rate_factor(step, len(steps), settings)
            ids, labels = pad(batch, lm.tokenizer.pad_token_id, lm.device)
            # Padding stands at the end, where causal attention from real tokens doesn't reach it.
            model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimiser.step()
            optimiser.zero_grad()
        seconds += time.perf_counter() - start
        weights.append(flat_of_peft(model))
        model.unload()
    return seconds, weights


def side_by_side(lm: LanguageModel, work: Work, slots: int, layers: str) -> tuple[float, list[Any]]:
    """The same by the engine."""
    jobs = [Job(rows, settings.model_copy(update={"layers": layers}), seed) for rows, settings, seed in work]
    start = time.perf_counter()
    results = train_many(lm, jobs, slots)
    return time.perf_counter() - start, [flat(one.adapter.weights) for one in results if isinstance(one, Trained)]


def main() -> None:
    """Times the ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--puzzles", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=6000, help="most tokens of a recipe's items")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--last", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="any setting of selfedit eval arc")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    config = build_config(ArcEvalConfig, None, {}, arguments.sets)
    task = ArcTask(config.edit.model_copy(update={"most_tokens": arguments.tokens}))
    lm = load_model(config.model, "cpu", "float32")
    puzzles = sorted(load_puzzles("arc-1", "train"), key=lambda puzzle: (tokens_of(lm, task, puzzle), puzzle.id))
    work: Work = []
    for puzzle in puzzles[: arguments.puzzles]:
        seed = seeds.derive(0, puzzle.id)
        plan = task.compile(lm, puzzle, HAND_MADE.text(), config.settings, seed)
        work.append((tuple(encode_document(lm, document) for document in plan.documents), plan.settings, seed))
    ways = {
        "peft": lambda part: by_peft(lm, part),
        "stacked": lambda part: side_by_side(lm, part, arguments.slots, "all"),
        "stacked-last": lambda part: side_by_side(lm, part, arguments.slots, f"last:{arguments.last}"),
    }
    for way in ways.values():
        way([(rows[:4], settings, seed) for rows, settings, seed in work[:2]])
    turns: dict[str, list[float]] = {name: [] for name in ways}
    products, weights = [], {}
    for _ in range(arguments.repeats):
        for name, way in ways.items():
            seconds, weights[name] = way(work)
            turns[name].append(seconds / len(work))
            products.append(matmul_peak())
    tokens = sum(len(row.ids) for rows, *_ in work for row in rows) / len(work)
    median = {name: statistics.median(seconds) for name, seconds in turns.items()}
    difference = max(float(abs(a - b).max()) for a, b in zip(weights["peft"], weights["stacked"], strict=True))
    rows = [
        {
            "name": name,
            "seconds_per_recipe": median[name],
            "seconds_all": turns[name],
            "tokens_per_second": tokens / median[name],
            "ratio_peft": median["peft"] / median[name],
        }
        for name in ways
    ]
    found = {
        "machine": machine(),
        "product_gflops": statistics.median(products),
        "recipes": len(work),
        "items": sum(len(rows) for rows, *_ in work),
        "tokens_per_recipe": tokens,
        "labelled_per_recipe": sum(row.labelled for rows, *_ in work for row in rows) / len(work),
        "slots": arguments.slots,
        "last": arguments.last,
        "repeats": arguments.repeats,
        "max_weight_diff": difference,
        "rows": rows,
    }
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    for row in rows:
        speed = f"{row['seconds_per_recipe']:7.1f} s {row['tokens_per_second']:7.0f} tokens/s"
        print(f"{row['name']:14} {speed} {row['ratio_peft']:5.2f} x")
    print(f"largest difference of weights to PEFT's: {difference:.1e}")


if __name__ == "__main__":
    main()
