"""What a piece of work cost: seconds, and tokens that went through the model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from selfedit.lm.load import LanguageModel

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """Of a piece of work.

    Attributes:
        seconds: of the processor, whatever else runs on it; on a GPU, and of a server, by the clock.
        read: tokens passed through the model, each once where rows share what they begin with: prompts, answers, lessons.
        written: tokens that it decoded. Those of a server are in neither.
    """

    seconds: float = 0.0
    read: float = 0
    written: float = 0

    def __add__(self, other: Cost) -> Cost:
        """Of both together."""
        return Cost(self.seconds + other.seconds, self.read + other.read, self.written + other.written)

    def __sub__(self, other: Cost) -> Cost:
        """Without a part of it."""
        return self + other * -1

    def __mul__(self, times: float) -> Cost:
        """Of the same done so many times."""
        return Cost(self.seconds * times, self.read * times, self.written * times)


def metered(lm: LanguageModel, job: Callable[[], T], waiting: bool = False) -> tuple[T, Cost]:
    """What a job gave, and its cost; ``waiting``: on a server, for a part of the time."""
    clock = time.process_time if lm.device.type == "cpu" and not waiting else time.perf_counter
    read, written, start = lm.read, lm.written, clock()
    found = job()
    return found, Cost(round(clock() - start, 3), lm.read - read, lm.written - written)
