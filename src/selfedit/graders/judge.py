"""A language model as the grader, over any OpenAI-compatible server: concurrent, cached on disk, and it fails loudly."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from selfedit.contexts import Question
from selfedit.errors import GraderError
from selfedit.graders import ExamItem, Verdict
from selfedit.graders.text import normalise, repeated_answers
from selfedit.remote import replies

# Asked before long work, so that a judge that can't be had is told of at once.
SAMPLE = ExamItem(Question("What is two and two?", "four"), "four", 0)
INSTRUCTION = (
    "You mark an exam. Say whether the student's answer is correct: it must convey the reference answer and must not "
    "contradict it; extra detail is fine. Reply with yes or no and nothing else.\n\n"
    "Question: {question}\nReference answer: {gold}\nStudent's answer: {answer}"
)


class JudgeGrader:
    """Asks a server whether an answer conveys the gold answer (paper section 4.1: GPT-4.1 as the judge).

    Departures from the reference code: (1) each (model, question, gold, answer) is asked once, then read from a cache; (2) a call
    that fails is an error, there it counts as "wrong"; (3) temperature 0 is set; (4) an answer given to most questions is "wrong";
    (5) a busy server is asked again.

    Args:
        url: the server's base URL, such as http://127.0.0.1:8000/v1.
        model: the model's name there.
        cache: SQLite file of verdicts.
    """

    def __init__(self, url: str, model: str, cache: Path) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self.cache = cache

    def check(self) -> None:
        """One call. Raises GraderError as ``mark``, and where what is right is marked wrong."""
        (reply,) = (text for _, text in replies(self.url, [self._body(SAMPLE)]))
        if not self._verdict(reply):
            raise GraderError(f"judge at {self.url}: says that two and two isn't four; use a model that follows the request")

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
            waiting = [key for key in asked if key not in known]
            failed = None
            for at, reply in replies(self.url, [self._body(asked[key]) for key in waiting]):
                # Each verdict is kept at once: one failed call must not cost those that were paid for.
                try:
                    verdict = known[waiting[at]] = self._verdict(reply)
                    store.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (waiting[at], int(verdict)))
                except GraderError as error:
                    failed = failed or error
            if failed is not None:
                raise failed
        return [Verdict(known.get(self._key(item), False), float(known.get(self._key(item), False))) for item in exam]

    def _key(self, item: ExamItem) -> str:
        parts = [INSTRUCTION, self.url, self.model, item.question.question, *item.question.golds, item.answer]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _body(self, item: ExamItem) -> dict[str, Any]:
        prompt = INSTRUCTION.format(question=item.question.question, gold=" / ".join(item.question.golds), answer=item.answer)
        return {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 8}

    def _verdict(self, reply: str | Exception) -> bool:
        if isinstance(reply, Exception):
            raise GraderError(
                f"judge at {self.url}: no verdict ({reply}); check the settings judge.url and judge.model, and OPENAI_API_KEY"
            ) from reply
        word = re.match(r"\W*(yes|no)\b(?!\s+sure)", reply.lower())
        if word is not None:
            return word[1] == "yes"
        raise GraderError(f"judge at {self.url}: replied {reply[:60]!r}, neither yes nor no; use a model that follows the request")
