"""A language model as the grader, over any OpenAI-compatible server: concurrent, cached on disk, and it fails loudly."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from pathlib import Path

import httpx

from selfedit.errors import GraderError
from selfedit.graders import ExamItem, Verdict
from selfedit.graders.text import normalise, repeated_answers

INSTRUCTION = (
    "You mark an exam. Say whether the student's answer is correct: it must convey the reference answer and must not "
    "contradict it; extra detail is fine. Reply with yes or no and nothing else.\n\n"
    "Question: {question}\nReference answer: {gold}\nStudent's answer: {answer}"
)


class JudgeGrader:
    """Asks a server whether an answer conveys the gold answer (paper section 4.1: GPT-4.1 as the judge).

    Departures from the reference code: (1) each (model, question, gold, answer) is asked once, then read from a cache; (2) a call
    that fails is an error, there it counts as "wrong"; (3) temperature 0 is set; (4) an answer given to most questions is "wrong".

    Args:
        url: the server's base URL, such as http://127.0.0.1:8000/v1.
        model: the model's name there.
        cache: SQLite file of verdicts.
        key: API key; by default ``OPENAI_API_KEY`` of the environment.
        workers: concurrent requests.
    """

    def __init__(self, url: str, model: str, cache: Path, key: str | None = None, workers: int = 8) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self.cache = cache
        self.key = key or os.environ.get("OPENAI_API_KEY", "")
        self.workers = workers

    def mark(self, exam: list[ExamItem]) -> list[Verdict]:
        """One verdict for each item.

        Raises:
            GraderError: the server can't be reached, refuses, or replies with neither yes nor no.
        """
        repeated = repeated_answers(exam)
        asked = {self._key(item): item for item in exam if item.answer and " ".join(normalise(item.answer)) not in repeated}
        try:
            return self._marked(exam, asked)
        except (OSError, sqlite3.Error) as error:
            raise GraderError(
                f"{self.cache}: the judge's cache can't be used ({error}); free space, or name another folder with SELFEDIT_CACHE"
            ) from error

    def _marked(self, exam: list[ExamItem], asked: dict[str, ExamItem]) -> list[Verdict]:
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        known: dict[str, bool] = {}
        with closing(sqlite3.connect(self.cache, timeout=60.0, isolation_level=None)) as store:
            store.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, correct INTEGER NOT NULL)")
            for key in asked:
                row = store.execute("SELECT correct FROM verdicts WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    known[key] = bool(row[0])
            with httpx.Client(timeout=60.0, headers=self._headers()) as client, ThreadPoolExecutor(self.workers) as pool:
                waiting = {pool.submit(self._ask, client, item): key for key, item in asked.items() if key not in known}
                failed = None
                for future in as_completed(waiting):
                    # Each verdict is kept at once: one failed call must not cost those that were paid for.
                    try:
                        known[waiting[future]] = future.result()
                        store.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (waiting[future], int(future.result())))
                    except GraderError as error:
                        failed = error
            if failed is not None:
                raise failed
        return [Verdict(known.get(self._key(item), False), float(known.get(self._key(item), False))) for item in exam]

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def _key(self, item: ExamItem) -> str:
        parts = [INSTRUCTION, self.url, self.model, item.question.question, *item.question.golds, item.answer]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _ask(self, client: httpx.Client, item: ExamItem) -> bool:
        prompt = INSTRUCTION.format(question=item.question.question, gold=" / ".join(item.question.golds), answer=item.answer)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 8,
        }
        try:
            reply = client.post(f"{self.url}/chat/completions", json=body)
            reply.raise_for_status()
            text = str(reply.json()["choices"][0]["message"]["content"]).strip().lower()
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise GraderError(
                f"judge at {self.url}: no verdict ({error}); check the settings judge.url and judge.model, and OPENAI_API_KEY"
            ) from error
        word = re.match(r"\W*(yes|no)\b(?!\s+sure)", text)
        if word is not None:
            return word[1] == "yes"
        raise GraderError(f"judge at {self.url}: replied {text[:60]!r}, neither yes nor no; use a model that follows the request")
