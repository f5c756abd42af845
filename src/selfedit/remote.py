"""Calls to a chat model on any OpenAI-compatible server: several at once, made again where it's busy, no more where one fails."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

import httpx

# Seconds before a call is made again, and the statuses after which it is: too many requests, and a server in trouble.
WAITS, LONGEST_WAIT, PASSING = (1.0, 4.0, 16.0), 120.0, frozenset({408, 409, 429, 500, 502, 503, 504})
WORKERS, SECONDS = 8, 300.0
# What a call may fail by: the way there, the URL, the reply's form.
FAULTS = (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError)


def replies(url: str, bodies: Sequence[dict[str, Any]]) -> Iterator[tuple[int, str | Exception]]:
    """The place and the text of each reply, as they come; of a call that failed for good what failed (``FAULTS``).

    Once one has failed, or nobody listens any longer, no further call is made; those under way are waited for and given out, since
    they are paid for.

    Args:
        url: the server's base URL, such as http://127.0.0.1:8000/v1; the key is read from OPENAI_API_KEY.
        bodies: of the requests.
    """
    key, stop = os.environ.get("OPENAI_API_KEY", ""), Event()
    with httpx.Client(timeout=SECONDS, headers={"Authorization": f"Bearer {key}"} if key else {}) as client:
        pool = ThreadPoolExecutor(WORKERS)
        jobs = {
            pool.submit(_reply, client, f"{url.rstrip('/')}/chat/completions", body, stop): at for at, body in enumerate(bodies)
        }
        try:
            for job in as_completed(jobs):
                if job.cancelled():
                    continue
                error = job.exception()
                if not isinstance(error, FAULTS):
                    yield jobs[job], job.result()
                    continue
                stop.set()
                for other in jobs:
                    other.cancel()
                yield jobs[job], error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _reply(client: httpx.Client, url: str, body: dict[str, Any], stop: Event) -> str:
    text = _posted(client, url, body, stop).json()["choices"][0]["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("the reply has no text")
    return text.strip()


def _posted(client: httpx.Client, url: str, body: dict[str, Any], stop: Event) -> httpx.Response:
    """One call, made again a few times if the server is busy or out of reach; later each time, or as the server says."""
    for wait in (*WAITS, None):
        if stop.is_set():
            raise httpx.RequestError("given up, as another call failed")
        said, last = "", wait is None
        try:
            reply = client.post(url, json=body)
            if last or reply.status_code not in PASSING:
                return reply.raise_for_status()
            said = reply.headers.get("retry-after", "")
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError):
            raise
        except httpx.TransportError:
            if last:
                raise
        stop.wait(min(float(said), LONGEST_WAIT) if said.isdigit() else wait)
    raise AssertionError("the last call returns or raises")
