"""Self-edits written by another model, on any OpenAI-compatible server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfedit.config import Sampling
from selfedit.errors import SamplerError
from selfedit.lm.load import Identity
from selfedit.remote import replies
from selfedit.tasks.base import Request

# A chat server has no role for bare text.
TURNS = {"text": "user"}


@dataclass(frozen=True)
class RemoteSampler:
    """A chat model behind a URL.

    Attributes:
        url: the server's base URL, such as http://127.0.0.1:8000/v1.
        model: the model's name there.
        student: the local model that will be trained on what is written; its window bounds the prompts.
    """

    url: str
    model: str
    student: Identity

    @property
    def known(self) -> Identity:
        """The student, but prompts in turns, whatever it takes itself."""
        return replace(self.student, chat=True)

    def write(self, requests: Sequence[Request], sampling: Sampling, row_seeds: Sequence[int]) -> list[str]:
        """One call a request, made again if the server is busy; the key is read from OPENAI_API_KEY.

        Raises:
            SamplerError: a call failed for good; nothing is kept of the others, and no further one is made.
        """
        bodies = [self._body(request, sampling, seed) for request, seed in zip(requests, row_seeds, strict=True)]
        texts = dict(replies(self.url, bodies))
        for text in texts.values():
            if isinstance(text, Exception):
                raise SamplerError(
                    f"writer at {self.url}: no text ({text}); check the URL, the model's name, and OPENAI_API_KEY"
                ) from text
            if not text:
                raise SamplerError(
                    f"writer at {self.url}: an empty reply; use a model that follows the request, or a longer answer"
                )
        return [str(texts[at]) for at in range(len(bodies))]

    def _body(self, request: Request, sampling: Sampling, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": TURNS.get(turn.role, turn.role), "content": turn.content} for turn in request.prompt],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens or request.longest,
            "seed": seed % 2**31,
        }
        if request.schema is not None:
            form = {"name": "self_edit", "strict": True, "schema": json.loads(request.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body
