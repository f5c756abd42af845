"""What a trial sits for its reward: the passage's own questions, or what a label-free reward puts in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from selfedit.lm.load import LanguageModel
from selfedit.tasks.base import Task


class Exam(Protocol):
    """Made before anything is written about a context; whoever writes never sees it. Picklable, since workers get copies."""

    @property
    def task(self) -> Task:
        """Who examines."""
        ...

    def prepare(self, lm: LanguageModel, context: Any, seed: int) -> dict[str, Any]:
        """A job: what the exam of a context takes, as JSON."""
        ...

    def examined(self, context: Any, material: dict[str, Any]) -> Any:
        """The context as it is examined."""
        ...

    def kept(self, context: Any, material: dict[str, Any], edits: Sequence[str]) -> list[int] | str:
        """Which entries of a sitting count once all self-edits are written, or why there is no decision."""
        ...


class Labelled:
    """The questions that the context came with (the paper's)."""

    def __init__(self, task: Task) -> None:
        self._task = task

    @property
    def task(self) -> Task:
        """The domain's own."""
        return self._task

    def prepare(self, lm: LanguageModel, context: Any, seed: int) -> dict[str, Any]:
        """Nothing."""
        return {}

    def examined(self, context: Any, material: dict[str, Any]) -> Any:
        """As it is."""
        return context

    def kept(self, context: Any, material: dict[str, Any], edits: Sequence[str]) -> list[int] | str:
        """All entries."""
        return list(range(len(self._task.asked(context))))
