"""Self-edits written by the model in this process, all candidates of a context in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from selfedit.config import Sampling
from selfedit.lm.batch import encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import Identity, LanguageModel
from selfedit.samplers.base import Written, write_about_all
from selfedit.tasks.base import Request, Task


@dataclass(frozen=True)
class LocalSampler:
    """The model as it stands, with whatever adapters are installed."""

    lm: LanguageModel

    @property
    def known(self) -> Identity:
        """The model itself."""
        return self.lm

    def write(self, requests: Sequence[Request], sampling: Sampling, row_seeds: Sequence[int]) -> list[str]:
        """All requests in one batch; a row that goes in circles ends."""
        return generate(
            self.lm,
            [encode_prompt(self.lm, request.prompt) for request in requests],
            [sampling.max_new_tokens or request.longest for request in requests],
            sampling.temperature,
            sampling.top_p,
            row_seeds,
            stop=_goes_in_circles,
            schemas=[request.schema for request in requests],
        )


def write_edits(lm: LanguageModel, task: Task, context: Any, count: int, sampling: Sampling, seed: int) -> list[Written]:
    """A job: ``write_about_all`` of one context, by the model itself."""
    return write_all_edits(lm, task, [context], count, sampling, seed)[0]


def write_all_edits(
    lm: LanguageModel, task: Task, contexts: Sequence[Any], count: int, sampling: Sampling, seed: int
) -> list[list[Written]]:
    """``write_about_all`` by the model itself."""
    return write_about_all(LocalSampler(lm), task, contexts, count, sampling, seed)


def _goes_in_circles(text: str) -> bool:
    """Whether the last whole line repeats an earlier one; answers ("A: 1811") may recur, and what has no word, such as "},"."""
    lines = [line.strip() for line in text.split("\n")[:-1] if any(sign.isalnum() for sign in line)]
    return bool(lines) and not lines[-1].startswith("A:") and lines[-1] in lines[:-1]
