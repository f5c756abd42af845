"""New updates orthogonal to the earlier ones: what an earlier adapter reads, a new one doesn't (O-LoRA, as a projection).

Departures from O-LoRA: (1) A is projected after every step, where there the overlap is a penalty. (2) As many directions stay free
as a new adapter has rows: once the earlier ones would fill a layer's width, those along which their updates are smallest may be
read again, since else nothing could be learnt any more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from selfedit import seeds
from selfedit.config import Settings
from selfedit.edits import Document, TrainingPlan
from selfedit.keepers.base import Held, Keeper
from selfedit.lm.adapter import Adapter, first_layer, new_adapter
from selfedit.lm.batch import Row
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import Trained, descend, frozen_prefixes, in_training, loss_sum
from selfedit.tasks.general.rehearsal import rows_of


class Orthogonal(Keeper):
    """The rows of A stay orthogonal to what every adapter held reads: whole subspaces are kept out."""

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """The plain trainer with a projection after each step."""
        (rows,) = rows_of(lm, [TrainingPlan(tuple(documents), settings, seed)])
        adapter = new_adapter(lm, settings, seeds.derive(seed, "init"))
        kept_out = {name: basis.to(lm.device) for name, basis in subspaces(held.adapters, settings.rank).items()}

        def project() -> None:
            with torch.no_grad():
                for name, (down, _) in adapter.weights.items():
                    if (basis := kept_out.get(name)) is not None:
                        down.sub_((down @ basis.T) @ basis)

        project()
        first = first_layer(adapter)
        prefixes = frozen_prefixes(lm, rows, first)

        def weight(row: Row) -> int:
            return row.labelled

        with in_training(lm, adapter):
            losses, tokens = descend(
                lm, adapter.parameters, rows, settings, seed, lambda batch: loss_sum(lm, batch, prefixes, first), weight, project
            )
        return Trained(adapter, losses, tokens)


def subspaces(adapters: Sequence[Adapter], free: int) -> dict[str, torch.Tensor]:
    """For each module an orthonormal basis (k, in) of what the adapters read: the row space of their updates.

    Args:
        adapters: earlier ones.
        free: so many directions of the width are left out, those of the smallest updates.
    """
    found = {}
    for name in {name: None for adapter in adapters for name in adapter.weights}:
        updates = []
        for adapter in (adapter for adapter in adapters if name in adapter.weights):
            down, up = (tensor.cpu() for tensor in adapter.weights[name])
            # R of B = QR has B's effect on lengths at a fraction of its rows.
            updates.append(adapter.scale * torch.linalg.qr(up, mode="r").R @ down)
        rows = torch.cat(updates)
        _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
        found[name] = basis[sizes > 1e-6 * sizes.max()][: max(0, rows.shape[1] - free)]
    return found
