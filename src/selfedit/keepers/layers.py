"""Which layers a lesson changes: all of them, or the last N (SCoL's cheap first step)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfedit.config import Settings
from selfedit.keepers.base import Keeper


class AllLayers(Keeper):
    """Adapters in every layer, as in the paper."""

    sets: ClassVar[str] = "layers"

    def settings(self, settings: Settings) -> Settings:
        """Only the layers differ."""
        return settings.model_copy(update={"layers": "all"})


@dataclass(frozen=True)
class LastLayers(Keeper):
    """Adapters in the last ``count`` layers."""

    count: int
    sets: ClassVar[str] = "layers"

    def settings(self, settings: Settings) -> Settings:
        """Only the layers differ."""
        return settings.model_copy(update={"layers": f"last:{self.count}"})
