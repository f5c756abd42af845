"""The table of all turns, and the FLOPs that training takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from selfedit.bench.machine import machine
from selfedit.bench.work import Turn, Workload, encoded
from selfedit.config import Settings

ROWS = ("reference-qv", "peft-qv", "stacked-qv", "peft", "trl", "stacked", "stacked-last")


def table(work: Workload, turns: dict[str, list[Turn]], peak: float, repeats: int) -> dict[str, Any]:
    """What ``--json`` writes: a row for each way, medians over its turns."""
    import numpy as np

    from selfedit.lm.load import load_model

    lm = load_model(work.model, "cpu", "float32")
    edits = encoded(lm, work)
    tokens = work.epochs * sum(len(row.ids) for rows in edits for row in rows) / len(edits)
    median = {name: statistics.median(turn.seconds for turn in turns[name]) for name in ROWS}
    rows = []
    for name in ROWS:
        flops = useful_flops(lm, edits, work.settings(name)) / len(edits)
        control = {"stacked-qv": "peft-qv", "stacked": "peft"}.get(name)
        difference = None
        if control is not None:
            pairs = zip(turns[name][0].weights, turns[control][0].weights, strict=True)
            difference = max(float(np.abs(np.load(a, "r") - np.load(b, "r")).max()) for a, b in pairs)
        rows.append(
            {
                "name": name,
                "seconds_per_edit": median[name],
                "seconds_all": [turn.seconds for turn in turns[name]],
                "tokens_per_second": tokens / median[name],
                "ratio_reference": median["reference-qv"] / median[name],
                "ratio_peft": median["peft-qv" if name.endswith("-qv") else "peft"] / median[name],
                "peak_share": statistics.median(flops / turn.seconds / 1e9 / turn.product_gflops for turn in turns[name]),
                "peak_memory_mb": max(turn.peak_memory_mb for turn in turns[name]),
                "max_weight_diff": difference,
                **_beside(turns[name]),
            }
        )
    return {
        "machine": machine(),
        "peak_gflops": peak,
        "model": work.model,
        "edits": len(edits),
        "documents": sum(len(rows) for rows in edits),
        "tokens_per_edit": tokens,
        "epochs": work.epochs,
        "reference_steps_timed": work.reference_steps,
        "last": work.last,
        "slots": work.slots,
        "compiled": work.compiled,
        "repeats": repeats,
        "rows": rows,
    }


def _beside(turns: Sequence[Turn]) -> dict[str, float | None]:
    """What only the stacked rows measure: the exam, and what many slots add to one slot's peak of memory."""
    exams = [turn.exam_seconds for turn in turns if turn.exam_seconds is not None]
    alone = turns[0].one_slot_mb
    return {
        "exam_seconds_per_edit": statistics.median(exams) if exams else None,
        "exam_share": statistics.median(exams) / statistics.median(turn.seconds for turn in turns) if exams else None,
        "slots_add_mb": None if alone is None else max(turn.peak_memory_mb for turn in turns) - alone,
    }


def useful_flops(lm: Any, edits: Sequence[Sequence[Any]], settings: Settings) -> float:
    """FLOPs of training all self-edits that do not fall on padding; the formula is in this package's docstring."""
    from selfedit.lm.adapter import adapted_layers, layer_index

    config = lm.config.get_text_config()
    adapted = adapted_layers(lm, settings.targets, settings.layers)
    first = min(layer_index(name) for name in adapted)
    below = above = 0
    for name, layer in adapted_layers(lm, "all-linear", "all").items():
        weights = layer.base.in_features * layer.base.out_features
        if layer_index(name) < first:
            below += 2 * weights
        else:
            above += (2 if layer_index(name) == first and name.endswith(("q_proj", "k_proj", "v_proj")) else 4) * weights
    lora = sum(settings.rank * (layer.base.in_features + layer.base.out_features) for layer in adapted.values())
    depth = config.num_hidden_layers - first
    heads = config.num_attention_heads * lm.head_size
    head = config.hidden_size * config.vocab_size
    total = 0.0
    for rows in edits:
        for row in rows:
            length = len(row.ids)
            attention = 6 * heads * length * depth
            total += settings.epochs * (length * (above + 6 * lora + attention) + row.labelled * 4 * head)
    return total + below * sum(len(ids) for ids in {row.ids for rows in edits for row in rows})
