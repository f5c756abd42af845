"""What a ``learn`` that was interrupted has done so far, kept beside the memory: the same call goes on from there.

Layout, below the memory's folder::

    unfinished/CALL/NAME.json   the result of a job that is done; CALL is a hash of all that decides the results
    unfinished/CALL/...         adapters of candidates

A call's results follow from its settings, its passage, the memory and the code alone, so that what is there is what it would find
again. Those of other calls are removed as it begins, its own once it is through, all when the memory changes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import selfedit
from selfedit.executors.local import LocalExecutor
from selfedit.lm.load import LanguageModel
from selfedit.memory.ledger import Memory
from selfedit.runs import write_text


class Unfinished:
    """The jobs of one call, inside ``Memory.writing``.

    Attributes:
        folder: where its candidates' adapters belong.
        done: names of the jobs whose results are there.
    """

    def __init__(self, memory: Memory, call: Any) -> None:
        """Finds what is there of this call, and removes what is of others.

        Args:
            memory: what would change; its state counts as part of the call, and so does the code.
            call: what else decides the results, as JSON: settings, passage, fingerprints.
        """
        whole = json.dumps([_code(), memory.state.id, memory.keep, call], sort_keys=True)
        self.folder = memory.unfinished / hashlib.sha256(whole.encode()).hexdigest()[:16]
        for other in memory.unfinished.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.done = {file.stem for file in self.folder.glob("*.json")}

    def submit(
        self,
        executor: LocalExecutor,
        name: str,
        kind: Any,
        job: Callable[..., Any],
        *arguments: Any,
        whole: Callable[[Any], bool] = lambda _: True,
    ) -> Future[Any]:
        """As ``executor.submit``, but that a job which is done isn't run again.

        Args:
            executor: who runs it.
            name: the job's in this call.
            kind: the type of its result, made of dataclasses, lists and tuples.
            job: a module-level function whose first argument is the language model; beside its own errors it raises DataError if
                its result can't be written.
            arguments: its others.
            whole: whether what the job leaves on the disk beside its result is there.
        """
        file = self.folder / f"{name}.json"
        if name in self.done:
            with suppress(ValidationError):
                result = TypeAdapter(kind).validate_python(_read(file))
                if whole(result):
                    found: Future[Any] = Future()
                    found.set_result(result)
                    return found
            # Damaged on the disk; what followed from it may follow from another result now.
            self.done.clear()
        return executor.submit(_run_and_keep, file, kind, job, *arguments)

    def close(self) -> None:
        """The call is through."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def _run_and_keep(lm: LanguageModel, file: Path, kind: Any, job: Callable[..., Any], *arguments: Any) -> Any:
    """A job: another job, whose result is on the disk before it returns."""
    result = job(lm, *arguments)
    write_text(file, json.dumps(TypeAdapter(kind).dump_python(result)))
    return result


def _code() -> str:
    """A hash of the package's own code."""
    digest = hashlib.sha256()
    for file in sorted(Path(selfedit.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
