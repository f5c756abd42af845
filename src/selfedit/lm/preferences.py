"""The outer loop's other way: an adapter trained on what is preferred to what."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from selfedit import seeds
from selfedit.config import Settings
from selfedit.lm.adapter import install, new_adapter
from selfedit.lm.batch import IGNORED, Row, pad
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import Trained, descend, head_logits


def train_preferences(lm: LanguageModel, pairs: Sequence[tuple[Row, Row]], settings: Settings, beta: float, seed: int) -> Trained:
    """Trains a fresh adapter to prefer the first row of each pair: direct preference optimisation.

    Rafailov et al. 2023, equation 7. The reference is the model as it stands. A batch is so many pairs; the loss is averaged over
    an optimiser step's pairs.

    Args:
        beta: weight of the implicit KL penalty.

    Raises:
        DivergedError: the loss stopped being finite.
    """
    with torch.no_grad():
        before = {row: _row_log_probabilities(lm, [row]).item() for row in dict.fromkeys(row for pair in pairs for row in pair)}
    adapter = new_adapter(lm, settings, seeds.derive(seed, "init"))
    install(lm, adapter)

    def loss_sum(batch: list[tuple[Row, Row]]) -> torch.Tensor:
        both = [better for better, _ in batch] + [worse for _, worse in batch]
        gains_B = _row_log_probabilities(lm, both) - torch.tensor([before[row] for row in both], device=lm.device)
        better_P, worse_P = gains_B.chunk(2)
        return -F.logsigmoid(beta * (better_P - worse_P)).sum()

    losses, _ = descend(lm, adapter.parameters, pairs, settings, seed, loss_sum, lambda pair: 1)
    return Trained(adapter, losses, settings.epochs * sum(row.labelled for pair in pairs for row in pair))


def _row_log_probabilities(lm: LanguageModel, rows: list[Row]) -> torch.Tensor:
    """Each row's summed log-probability of its labelled tokens (B,), with gradients."""
    ids_BT, labels_BT = pad(rows, lm.tokenizer.pad_token_id, lm.device)
    states_BTd = lm.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    targets = labels_BT[:, 1:]
    keep = targets != IGNORED
    found_N = head_logits(lm, states_BTd[:, :-1][keep]).log_softmax(-1).gather(1, targets[keep][:, None])[:, 0]
    owners_N = keep.nonzero()[:, 0]
    return torch.zeros(len(rows), device=lm.device).index_add(0, owners_N, found_N)
