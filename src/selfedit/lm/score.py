"""Log-probabilities of given answers: a forward pass of one flat stream, no decoding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch

from selfedit.lm.batch import Row
from selfedit.lm.flat import Prefixes, parts_of, reading
from selfedit.lm.load import LanguageModel
from selfedit.lm.stack import document_attention
from selfedit.lm.train import head_logits

LEAST = -1000.0


def log_probabilities(lm: LanguageModel, rows: Sequence[Row], slots: Sequence[int] | None = None, first: int = 0) -> list[float]:
    """For each row the mean natural log-probability of its labelled tokens; arguments as in ``token_log_probabilities``.

    ``LEAST`` of a model whose states are no finite numbers, which training's last step may leave: a figure that rows can keep.
    """
    means = (fmean(values) for values in token_log_probabilities(lm, rows, slots, first))
    return [mean if math.isfinite(mean) else LEAST for mean in means]


@torch.inference_mode()
def token_log_probabilities(
    lm: LanguageModel, rows: Sequence[Row], slots: Sequence[int] | None = None, first: int = 0
) -> list[list[float]]:
    """For each row the natural log-probability of each labelled token.

    Args:
        rows: tokens with labels.
        slots: whose adapter (``lm/stack.py``) reads each row; None: what is installed reads all.
        first: the lowest layer at which slots differ; below it each distinct row is computed once.
    """
    prefixes = Prefixes(lm, first)
    values: list[list[float]] = []
    with document_attention(lm):
        for part in parts_of(list(zip(slots or [0] * len(rows), rows, strict=True)), laid_out=True):
            with reading(lm, prefixes, part) as (states_Nd, targets_N):
                found_N = head_logits(lm, states_Nd).log_softmax(-1).gather(1, targets_N[:, None])[:, 0]
                values += [piece.tolist() for piece in torch.split(found_N, [row.labelled for _, row in part])]
    return values


# What is known of each labelled token's distribution: the likeliest ids and their natural log-probabilities, (labelled, K) each.
Likeliest = tuple[torch.Tensor, torch.Tensor]


@torch.inference_mode()
def likeliest(lm: LanguageModel, rows: Sequence[Row], count: int = 50) -> list[Likeliest]:
    """For each row the likeliest ``count`` tokens in the place of each labelled one, under what is installed."""
    found = []
    for logs_LV in _distributions(lm, rows):
        values_LK, ids_LK = logs_LV.topk(min(count, logs_LV.shape[1]))
        found.append((ids_LK, values_LK))
    return found


@torch.inference_mode()
def divergences(lm: LanguageModel, rows: Sequence[Row], before: Sequence[Likeliest]) -> list[list[float]]:
    """KL(before || now) in nats at each labelled token of each row, over the likeliest tokens of before and all others as one.

    At least 0, and at most the divergence over the whole vocabulary.

    Args:
        lm: the model as it is now.
        rows: what is read.
        before: what ``likeliest`` said of the same rows.
    """
    found = []
    for logs_LV, (ids_LK, old_LK) in zip(_distributions(lm, rows), before, strict=True):
        new_LK = logs_LV.gather(1, ids_LK)
        named_L = (old_LK.exp() * (old_LK - new_LK)).sum(1)
        old_L, new_L = ((1 - logs.exp().sum(1)).clamp(min=1e-7) for logs in (old_LK, new_LK))
        # A rest that float32 can't tell from nothing counts as nothing.
        others_L = torch.where(old_L > 1e-6, old_L * (old_L / new_L).log(), 0.0)
        values: list[float] = (named_L + others_L).clamp(min=0.0).tolist()
        found.append(values)
    return found


def _distributions(lm: LanguageModel, rows: Sequence[Row]) -> Iterator[torch.Tensor]:
    """Each row's labelled tokens' log-probabilities (labelled, V), row after row."""
    prefixes = Prefixes(lm, 0)
    with document_attention(lm):
        for part in parts_of([(0, row) for row in rows], laid_out=True):
            with reading(lm, prefixes, part) as (states_Nd, _):
                for states_Ld in torch.split(states_Nd, [row.labelled for _, row in part]):
                    yield head_logits(lm, states_Ld).log_softmax(-1)
