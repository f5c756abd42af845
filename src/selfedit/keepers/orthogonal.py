"""New updates orthogonal to the earlier ones: what an earlier adapter reads, a new one doesn't (O-LoRA, as a projection).

Departure from O-LoRA: A is projected after every step, where there the overlap is a penalty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfedit import seeds
from selfedit.config import Settings
from selfedit.edits import Document
from selfedit.keepers.base import Held, Keeper
from selfedit.lm.adapter import Adapter, first_layer, install, new_adapter
from selfedit.lm.batch import Row, encode_document
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import Trained, descend, frozen_prefixes, loss_sum


class Orthogonal(Keeper):
    """The rows of A stay orthogonal to those of every adapter held, weighted by nothing: whole subspaces are kept out."""

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """The plain trainer with a projection after each step."""
        rows = tuple(encode_document(lm, document) for document in documents)
        adapter = new_adapter(lm, settings, seeds.derive(seed, "init"))
        kept_out = subspaces(held.adapters)

        def project() -> None:
            with torch.no_grad():
                for name, (down, _) in adapter.weights.items():
                    if (basis := kept_out.get(name)) is not None:
                        down.sub_((down @ basis.T) @ basis)

        project()
        prefixes, first = frozen_prefixes(lm, rows, first_layer(adapter)), first_layer(adapter)
        install(lm, adapter)

        def weight(row: Row) -> int:
            return row.labelled

        try:
            losses, tokens = descend(
                lm, adapter.parameters, rows, settings, seed, lambda batch: loss_sum(lm, batch, prefixes, first), weight, project
            )
        finally:
            install(lm, None)
        return Trained(adapter, losses, tokens)


def subspaces(adapters: Sequence[Adapter]) -> dict[str, torch.Tensor]:
    """For each module an orthonormal basis (k, in) of what the adapters read: the row space of their updates."""
    found = {}
    for name in {name: None for adapter in adapters for name in adapter.weights}:
        rows = torch.cat([adapter.weights[name][0] for adapter in adapters if name in adapter.weights])
        _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
        found[name] = basis[sizes > 1e-6 * sizes.max()]
    return found
