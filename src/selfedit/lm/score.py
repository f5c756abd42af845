"""Log-probabilities of given answers: a forward pass of one flat stream, no decoding."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch

from selfedit.lm.batch import Row
from selfedit.lm.flat import Prefixes, parts_of, reading
from selfedit.lm.load import LanguageModel
from selfedit.lm.stack import document_attention
from selfedit.lm.train import head_logits


def log_probabilities(lm: LanguageModel, rows: Sequence[Row], slots: Sequence[int] | None = None, first: int = 0) -> list[float]:
    """For each row the mean natural log-probability of its labelled tokens; arguments as in ``token_log_probabilities``."""
    return [fmean(values) for values in token_log_probabilities(lm, rows, slots, first)]


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
