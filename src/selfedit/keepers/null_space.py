"""Null space: an adapter reads what its lesson has and neither general text nor earlier lessons have (``lm/null_space.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfedit.config import Settings
from selfedit.keepers.base import Keeper


@dataclass(frozen=True)
class NullSpace(Keeper):
    """Every training with ``Settings.null_space``, in the place of the settings' own; B alone is trained."""

    damping: float
    sets: ClassVar[str] = "null_space"

    def settings(self, settings: Settings) -> Settings:
        """The settings with its damping."""
        return settings.model_copy(update={"null_space": self.damping})
