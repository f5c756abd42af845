"""What every writer shares: candidates of a context asked for in one batch, and what won't do asked for again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from selfedit import seeds
from selfedit.config import Sampling, Settings
from selfedit.edits import SelfEdit
from selfedit.errors import InvalidEditError, UnreadableEditError
from selfedit.lm.load import Identity
from selfedit.tasks.base import Request, Task


class Sampler(Protocol):
    """Who writes: a model in this process, or a server."""

    @property
    def known(self) -> Identity:
        """What the prompts must know of the model: its window, and whether it talks in turns."""
        ...

    def write(self, requests: Sequence[Request], sampling: Sampling, row_seeds: Sequence[int]) -> list[str]:
        """One answer for each request."""
        ...


@dataclass(frozen=True, slots=True)
class Written:
    """A self-edit, and the answers that it was joined of, one for each request: what the outer loop trains the writer on.

    ``attempts``: how often it was sampled.
    """

    edit: SelfEdit
    texts: tuple[str, ...]
    attempts: int = 1


def write_with(sampler: Sampler, task: Task, context: Any, count: int, sampling: Sampling, seed: int) -> list[Written]:
    """``write_about_all`` of one context."""
    return write_about_all(sampler, task, [context], count, sampling, seed)[0]


def write_about_all(
    sampler: Sampler, task: Task, contexts: Sequence[Any], count: int, sampling: Sampling, seed: int
) -> list[list[Written]]:
    """Writes ``count`` self-edits about each context (paper equation 1: SE ~ LM(. | C)), all in one batch.

    A candidate that won't do is sampled again, at most ``sampling.resamples`` times; after that it stays as it is. What won't do is
    one that equals an earlier one, or (``sampling.again="unreadable"``) one that isn't in the form that was asked for.

    Args:
        sampler: who writes.
        task: what is asked for each candidate, and how the answers are joined.
        contexts: what the self-edits are about.
        count: how many about each.
        sampling: temperature, nucleus, length.
        seed: each candidate's random numbers come from it, the context's id, its index and the attempt.
    """
    written: list[list[Written | None]] = [[None] * count for _ in contexts]
    waiting = [(at, index) for at in range(len(contexts)) for index in range(count)]
    for attempt in range(sampling.resamples + 1):
        answers = _batch(sampler, task, [(contexts[at], index) for at, index in waiting], sampling, seed, attempt)
        for (at, index), found in zip(waiting, answers, strict=True):
            written[at][index] = found
        texts = [[one.edit.text for one in own if one is not None] for own in written]
        if sampling.again == "unreadable":
            waiting = [(at, index) for at, index in waiting if not _readable(sampler, task, contexts[at], texts[at][index])]
        else:
            waiting = [(at, index) for at, index in waiting if texts[at][index] in texts[at][:index]]
        if not waiting or sampling.temperature == 0:
            break
    return [[one for one in own if one is not None] for own in written]


def _readable(sampler: Sampler, task: Task, context: Any, text: str) -> bool:
    """Whether it is in its form; what else may be wrong with it under the run's settings is not looked at."""
    try:
        task.compile(sampler.known, context, text, Settings(), 0)
    except UnreadableEditError:
        return False
    except InvalidEditError:
        return True
    return True


def _batch(
    sampler: Sampler, task: Task, candidates: Sequence[tuple[Any, int]], sampling: Sampling, seed: int, attempt: int
) -> list[Written]:
    """One answer to each request of each (context, candidate)."""
    asked = [task.requests(sampler.known, context, index) for context, index in candidates]
    row_seeds = [
        seeds.derive(seed, context.id, "write", index, attempt, piece)
        for (context, index), requests in zip(candidates, asked, strict=True)
        for piece in range(len(requests))
    ]
    texts = iter(sampler.write([request for requests in asked for request in requests], sampling, row_seeds))
    found = []
    for (context, index), requests in zip(candidates, asked, strict=True):
        own = tuple(next(texts) for _ in requests)
        found.append(Written(SelfEdit(context.id, task.style(index), task.joined(index, own)), own, attempt + 1))
    return found
