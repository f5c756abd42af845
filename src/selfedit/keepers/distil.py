"""Distillation: beside the lesson the model is held to the frozen base's own words, by the KL divergence at each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from selfedit import seeds
from selfedit.config import Settings
from selfedit.edits import Document
from selfedit.keepers.base import Held, Keeper
from selfedit.keepers.replay import base_answers
from selfedit.lm.adapter import first_layer, new_adapter, standing
from selfedit.lm.batch import Row, encode_document
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import Trained, descend, frozen_prefixes, head_logits, in_training, loss_sum

# Answers of the base that the divergence is taken on.
ANSWERS = 8


@dataclass(frozen=True)
class Distil(Keeper):
    """Loss of a step: the lesson's, and ``weight`` times KL(base || model) a token on one of the base's answers.

    A base that has nothing to say is a base that nothing can be held to: then the lesson is trained alone.
    """

    weight: float

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """The plain trainer with one of the base's answers beside every batch."""
        rows = tuple(encode_document(lm, document) for document in documents)
        answers = [encode_document(lm, document) for document in base_answers(lm, ANSWERS, seeds.derive(seed, "answers"))]
        with standing(lm, [], alone=True), torch.no_grad():
            wanted = {row: _log_probabilities(lm, row) for row in dict.fromkeys(answers)}
        adapter = new_adapter(lm, settings, seeds.derive(seed, "init"))
        first = first_layer(adapter)
        prefixes = frozen_prefixes(lm, rows, first)
        turn = 0

        def loss(batch: list[Row]) -> torch.Tensor:
            nonlocal turn
            plain = loss_sum(lm, batch, prefixes, first)
            if not answers:
                return plain
            row = answers[turn % len(answers)]
            turn += 1
            divergence = F.kl_div(_log_probabilities(lm, row), wanted[row], log_target=True, reduction="batchmean")
            return plain + self.weight * sum(one.labelled for one in batch) * divergence

        with in_training(lm, adapter):
            losses, tokens = descend(lm, adapter.parameters, rows, settings, seed, loss, lambda row: row.labelled)
        beside = sum(answers[at % len(answers)].labelled for at in range(turn)) if answers else 0
        return Trained(adapter, losses, tokens + beside)


def _log_probabilities(lm: LanguageModel, row: Row) -> torch.Tensor:
    """(labelled, V) at the labelled tokens of a row."""
    ids_1T = torch.tensor([row.ids], device=lm.device)
    states_Td = lm.model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
    return head_logits(lm, states_Td[max(1, row.unlabelled) - 1 : -1]).log_softmax(-1)
