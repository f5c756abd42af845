"""Self-edits written by another model, on any OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import httpx

from selfedit.config import Sampling
from selfedit.errors import SamplerError
from selfedit.lm.load import Identity
from selfedit.tasks.base import Request

# Seconds before a call is made again, and the statuses after which it is: too many requests, and a server in trouble.
WAITS, LONGEST_WAIT, PASSING = (1.0, 4.0, 16.0), 120.0, frozenset({408, 409, 429, 500, 502, 503, 504})
# A chat server has no role for bare text.
TURNS = {"text": "user"}


@dataclass(frozen=True)
class RemoteSampler:
    """A chat model behind a URL.

    Attributes:
        url: the server's base URL, such as http://127.0.0.1:8000/v1.
        model: the model's name there.
        student: the local model that will be trained on what is written; its window bounds the prompts.
        workers: concurrent requests.
    """

    url: str
    model: str
    student: Identity
    workers: int = 8

    @property
    def known(self) -> Identity:
        """The student, but prompts in turns, whatever it takes itself."""
        return replace(self.student, chat=True)

    def write(self, requests: Sequence[Request], sampling: Sampling, row_seeds: Sequence[int]) -> list[str]:
        """One call a request, made again if the server is busy; the key is read from OPENAI_API_KEY.

        Raises:
            SamplerError: a call failed for good; nothing is kept of the others.
        """
        key = os.environ.get("OPENAI_API_KEY", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(timeout=300.0, headers=headers) as client, ThreadPoolExecutor(self.workers) as pool:
            jobs = [
                pool.submit(self._ask, client, request, sampling, seed) for request, seed in zip(requests, row_seeds, strict=True)
            ]
            return [job.result() for job in jobs]

    def _ask(self, client: httpx.Client, request: Request, sampling: Sampling, seed: int) -> str:
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
        try:
            reply = self._post(client, body)
            text = reply.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise SamplerError(
                f"writer at {self.url}: no text ({error}); check the URL, the model's name, and OPENAI_API_KEY"
            ) from error
        if not isinstance(text, str) or not text.strip():
            raise SamplerError(f"writer at {self.url}: an empty reply; use a model that follows the request, or a longer answer")
        return text.strip()

    def _post(self, client: httpx.Client, body: dict[str, Any]) -> httpx.Response:
        """One call, made again a few times if the server is busy or out of reach; later each time, or as the server says."""
        url = f"{self.url.rstrip('/')}/chat/completions"
        for wait in WAITS:
            said = ""
            with contextlib.suppress(httpx.TransportError):
                reply = client.post(url, json=body)
                if reply.status_code not in PASSING:
                    return reply.raise_for_status()
                said = reply.headers.get("retry-after", "")
            time.sleep(min(float(said), LONGEST_WAIT) if said.isdigit() else wait)
        return client.post(url, json=body).raise_for_status()
