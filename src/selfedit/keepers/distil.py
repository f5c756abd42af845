"""Distillation: more of the frozen base's own answers beside a lesson, with its distributions (``tasks/general/rehearsal.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfedit.config import Settings
from selfedit.keepers.base import Keeper


@dataclass(frozen=True)
class Distil(Keeper):
    """``share`` of all documents, in the place of the settings' own: the KL divergence to the base on its own samples."""

    share: float
    sets: ClassVar[str] = "rehearsal"

    def settings(self, settings: Settings) -> Settings:
        """The settings with its share."""
        return settings.model_copy(update={"rehearsal": self.share})
