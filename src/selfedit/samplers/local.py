"""Self-edits written by the model itself, all candidates of a context in one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfedit import seeds
from selfedit.config import Sampling
from selfedit.edits import SelfEdit
from selfedit.lm.batch import encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Written:
    """A self-edit, and the answers that it was joined of, one for each request: what the outer loop trains the writer on."""

    edit: SelfEdit
    texts: tuple[str, ...]


def write_edits(lm: LanguageModel, task: Task, context: Any, count: int, sampling: Sampling, seed: int) -> list[Written]:
    """Writes ``count`` self-edits about one context (paper equation 1: SE ~ LM(. | C)).

    A candidate that equals an earlier one is sampled again, at most ``sampling.resamples`` times; after that the duplicate stays.

    Args:
        task: what is asked for each candidate, and how the answers are joined.
        context: what the self-edits are about.
        count: how many.
        sampling: temperature, nucleus, length.
        seed: each candidate's random numbers come from it, the context's id, its index and the attempt.
    """
    written: list[Written | None] = [None] * count
    open_candidates = list(range(count))
    for attempt in range(sampling.resamples + 1):
        for index, found in zip(open_candidates, _write(lm, task, context, open_candidates, sampling, seed, attempt), strict=True):
            written[index] = found
        texts = [one.edit.text for one in written if one is not None]
        open_candidates = [index for index in open_candidates if texts[index] in texts[:index]]
        if not open_candidates or sampling.temperature == 0:
            break
    return [one for one in written if one is not None]


def _write(
    lm: LanguageModel, task: Task, context: Any, candidates: list[int], sampling: Sampling, seed: int, attempt: int
) -> list[Written]:
    asked = [task.requests(lm, context, index) for index in candidates]
    texts = iter(
        generate(
            lm,
            [encode_prompt(lm, request.prompt) for requests in asked for request in requests],
            [sampling.max_new_tokens or request.longest for requests in asked for request in requests],
            sampling.temperature,
            sampling.top_p,
            [
                seeds.derive(seed, context.id, "write", index, attempt, piece)
                for index, requests in zip(candidates, asked, strict=True)
                for piece in range(len(requests))
            ],
            stop=_goes_in_circles,
        )
    )
    found = []
    for index, requests in zip(candidates, asked, strict=True):
        own = tuple(next(texts) for _ in requests)
        found.append(Written(SelfEdit(context.id, task.style(index), task.joined(index, own)), own))
    return found


def _goes_in_circles(text: str) -> bool:
    """Whether the last whole line repeats an earlier one; answers ("A: 1811") may recur."""
    lines = [line.strip() for line in text.split("\n")[:-1] if line.strip()]
    return bool(lines) and not lines[-1].startswith("A:") and lines[-1] in lines[:-1]
