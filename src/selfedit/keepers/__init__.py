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
from selfedit.keepers.orthogonal import Orthogonal
from selfedit.keepers.replay import Replay
from selfedit.keepers.retention import Retention
from selfedit.keepers.routes import Bank, Context, Retrieve

KEEPERS: dict[str, Callable[[KeepConfig], Keeper]] = {
    "merge": lambda config: Keeper(),
    "all-layers": lambda config: AllLayers(),
    "last-layers": lambda config: LastLayers(config.last_layers),
    "gate": lambda config: Gate(config.exam_drop, config.bits, config.divergence),
    "replay": lambda config: Replay(config.replay_share, config.base_share),
    "consolidate": lambda config: Consolidate(config.every, config.sleep_epochs),
    "orthogonal": lambda config: Orthogonal(),
    "distil": lambda config: Distil(config.distil_weight),
    "retention": lambda config: Retention(config.retention_weight, config.remembered),
    "bank": lambda config: Bank(config.threshold),
    "retrieve": lambda config: Retrieve(),
    "context": lambda config: Context(),
}


def keeper(name: str, config: KeepConfig) -> Method:
    """The method of a name; several joined by ``+`` act in turn.

    Raises:
        DataError: one is unknown, or two of them both train, or both answer.
    """
    parts = []
    for part in name.split("+"):
        if part not in KEEPERS:
            raise DataError(f"method {part!r}: give {', '.join(KEEPERS)}, or several joined by +")
        parts.append(KEEPERS[part](config))
    for hook in ("train", "examine"):
        own = [type(part).__name__ for part in parts if getattr(type(part), hook) is not getattr(Keeper, hook)]
        if len(own) > 1:
            raise DataError(f"method {name!r}: {' and '.join(own)} can't be put together")
    return Method(name, tuple(parts))
