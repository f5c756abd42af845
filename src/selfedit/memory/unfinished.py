"""What a ``learn`` that was interrupted has done so far, kept beside the memory: the same call goes on from there.

Layout, below the memory's folder::

    unfinished/about.json   which call it is of
    unfinished/NAME.json    the result of a job that is done
    unfinished/N-0/         the adapter of a candidate

A call's results follow from its settings, its passage and the memory alone, so that what is there is what it would find again.
Another call's are removed as it begins, its own once it is through.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from selfedit import __version__
from selfedit.executors.local import LocalExecutor
from selfedit.lm.load import LanguageModel
from selfedit.memory.ledger import Memory
from selfedit.runs import commit_of_code, write_text

ABOUT = "about.json"


class Unfinished:
    """The jobs of one call, inside ``Memory.writing``.

    Attributes:
        folder: where its candidates' adapters belong.
        done: names of the jobs whose results are there.
    """

    def __init__(self, memory: Memory, call: Any) -> None:
        """Finds what is there of this call, and removes what is of another.

        Args:
            memory: what would change; its state counts as part of the call, and so does the code's version.
            call: what else decides the results, as JSON: settings, passage, fingerprints.

        Raises:
            DataError: the folder can't be written.
        """
        self.folder = memory.folder / "unfinished"
        whole = [__version__, commit_of_code(), memory.state.id, memory.keep, call]
        about = {"call": hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()}
        if _read(self.folder / ABOUT) != about:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_text(self.folder / ABOUT, json.dumps(about))
        self.done = {file.stem for file in self.folder.glob("*.json") if file.name != ABOUT}

    def submit(self, executor: LocalExecutor, name: str, kind: Any, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """As ``executor.submit``, but that a job which is done isn't run again.

        Args:
            executor: who runs it.
            name: the job's in this call.
            kind: the type of its result, made of dataclasses, lists and tuples.
            job: a module-level function whose first argument is the language model.
            arguments: its others.
        """
        file = self.folder / f"{name}.json"
        if name in self.done:
            found: Future[Any] = Future()
            try:
                found.set_result(TypeAdapter(kind).validate_python(_read(file)))
                return found
            except ValidationError:
                # Damaged on the disk.
                self.done.remove(name)
        return executor.submit(_run_and_keep, file, kind, job, *arguments)

    def close(self) -> None:
        """The call is through."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _run_and_keep(lm: LanguageModel, file: Path, kind: Any, job: Callable[..., Any], *arguments: Any) -> Any:
    """A job: another job, whose result is on the disk before it returns."""
    result = job(lm, *arguments)
    write_text(file, json.dumps(TypeAdapter(kind).dump_python(result)))
    return result


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
