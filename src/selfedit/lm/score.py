"""Log-probabilities of given answers: one batched forward pass, no decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfedit.lm.batch import IGNORED, Row, pad
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import head_logits


@torch.inference_mode()
def log_probabilities(lm: LanguageModel, rows: Sequence[Row], batch_size: int = 16) -> list[float]:
    """For each row the mean natural log-probability of its labelled tokens, under what is installed now."""
    means = []
    for at in range(0, len(rows), batch_size):
        ids_BT, labels_BT = pad(list(rows[at : at + batch_size]), lm.tokenizer.pad_token_id, lm.device)
        states_BTd = lm.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        targets_BT = labels_BT[:, 1:]
        for states_Td, targets_T in zip(states_BTd[:, :-1], targets_BT, strict=True):
            keep = targets_T != IGNORED
            logits = head_logits(lm, states_Td[keep])
            chosen = logits.log_softmax(-1).gather(1, targets_T[keep][:, None])
            means.append(chosen.mean().item())
    return means
