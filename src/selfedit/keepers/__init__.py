"""Ways to keep what was learnt earlier while something new is learnt; ``keeper("replay+gate")`` puts several together."""

from __future__ import annotations

from collections.abc import Callable

from selfedit.config import KeepConfig
from selfedit.errors import DataError
from selfedit.keepers.base import Keeper, Method
from selfedit.keepers.consolidate import Consolidate
from selfedit.keepers.distil import Distil
from selfedit.keepers.gate import Gate
from selfedit.keepers.layers import AllLayers, LastLayers
from selfedit.keepers.null_space import NullSpace
from selfedit.keepers.orthogonal import Orthogonal
from selfedit.keepers.replay import Replay
from selfedit.keepers.retention import Retention
from selfedit.keepers.routes import Bank, Context, Retrieve

KEEPERS: dict[str, Callable[[KeepConfig], Keeper]] = {
    "merge": lambda config: Keeper(),
    "all-layers": lambda config: AllLayers(),
    "last-layers": lambda config: LastLayers(config.last_layers),
    "gate": lambda config: Gate(config.exam_drop, config.bits, config.divergence),
    "replay": lambda config: Replay(config.replay_share),
    "consolidate": lambda config: Consolidate(config.every, config.sleep_epochs, config.sleep_rate, config.sleep_share),
    "orthogonal": lambda config: Orthogonal(),
    "distil": lambda config: Distil(config.distil_share),
    "null-space": lambda config: NullSpace(config.null_space, config.dead_zone, config.null_space_rate, config.null_space_rank),
    "retention": lambda config: Retention(config.retention_weight, config.remembered),
    "bank": lambda config: Bank(config.threshold),
    "retrieve": lambda config: Retrieve(),
    "context": lambda config: Context(),
}


# What a part may stand beside, where not everything makes sense: adapters kept apart have no sum that could be gated, chosen for or
# consolidated; where nothing is trained nothing can be kept.
BESIDE = {
    "bank": {"merge", "all-layers", "last-layers", "replay", "null-space"},
    # Not with another trainer, which draws A and trains it, nor with earlier documents, whose directions it avoids.
    "null-space": {"merge", "all-layers", "last-layers", "gate", "consolidate", "distil", "retention", "bank"},
    "retrieve": set[str](),
    "context": set[str](),
}


def keeper(name: str, config: KeepConfig) -> Method:
    """The method of a name; several joined by ``+`` act in turn.

    Raises:
        DataError: one is unknown or stands twice, or two of them can't be put together.
    """
    names = name.split("+")
    for part in names:
        if part not in KEEPERS:
            raise DataError(f"method {part!r}: give {', '.join(KEEPERS)}, or several joined by +")
        if names.count(part) > 1:
            raise DataError(f"method {name!r}: {part} stands twice")
        if others := [other for other in names if other not in BESIDE.get(part, KEEPERS) and other != part]:
            raise DataError(f"method {name!r}: {part} and {', '.join(others)} can't be put together")
    parts = [KEEPERS[part](config) for part in names]
    fields = dict.fromkeys(part.sets for part in parts if part.sets)
    shared = [[one for one, part in zip(names, parts, strict=True) if part.sets == field] for field in fields]
    for hook in ("train", "examine"):
        shared.append(
            [one for one, part in zip(names, parts, strict=True) if getattr(type(part), hook) is not getattr(Keeper, hook)]
        )
    for group in shared:
        if len(group) > 1:
            raise DataError(f"method {name!r}: {' and '.join(group)} can't be put together")
    return Method(name, tuple(parts))
