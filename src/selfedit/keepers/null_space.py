"""Null space: an adapter reads what its lesson has and neither general text nor earlier lessons have (``lm/null_space.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfedit.config import Settings
from selfedit.keepers.base import Keeper


@dataclass(frozen=True)
class NullSpace(Keeper):
    """Every training with ``Settings.null_space``, in the place of the settings' own; B alone is trained.

    Attributes:
        damping: ``Settings.null_space``.
        dead_zone: ``Settings.dead_zone``.
        rate: learning rate, which may be higher where so little is disturbed; 0: the settings'.
        rank: in fewer directions a lesson stands out more, and more lessons find room; alpha stays. 0: the settings'.
    """

    damping: float
    dead_zone: float = 0.0
    rate: float = 0.0
    rank: int = 0
    sets: ClassVar[str] = "null_space"

    def settings(self, settings: Settings) -> Settings:
        """The settings with its damping, its dead zone, its learning rate and its rank."""
        own = {"null_space": self.damping, "dead_zone": self.dead_zone, "learning_rate": self.rate or settings.learning_rate}
        own["rank"] = self.rank or settings.rank
        return settings.model_copy(update=own)
