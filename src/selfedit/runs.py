"""A run's folder: the resolved config, the code's version, and JSON rows of finished leases. Resumable."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from selfedit import __version__
from selfedit.errors import DataError

ROWS, DATA = "trials.jsonl", "data.json"
# What a run writes: where one of these is without run.json, they are somebody else's.
OWN = (ROWS, DATA, "table.json", "metrics.jsonl", "merged", "round-*")
# What a run that is there already can be given more of, by the config's name.
MORE = {"TrainConfig": ("rounds",), "ArcTrainConfig": ("rounds",), "RewardBenchConfig": ("passages",)}


@dataclass(frozen=True, slots=True)
class Policy:
    """The weights that write: a PEFT adapter on the base, or (None) the base itself."""

    folder: str | None
    digest: str


BASE = Policy(None, "base")


def policy_at(folder: Path) -> Policy:
    """A policy by its adapter's folder; its digest is 16 hex digits of the weights."""
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]
    return Policy(str(folder), digest)


def policy_of(name: str, fingerprint: str) -> Policy:
    """The last policy of a run of ``selfedit train``, or the one in an adapter's folder; no name: the base.

    Args:
        fingerprint: the base's; a policy of a run knows its own.

    Raises:
        DataError: there is none, or it was trained on another base.
    """
    if not name:
        return BASE
    folder = Path(name)
    if not (folder / "adapter_model.safetensors").is_file():
        rounds = sorted((file.parent for file in folder.glob("round-*/policy/adapter_model.safetensors")), key=_number)
        if not rounds:
            raise DataError(f"{name}: no policy there; give a run of selfedit train with a finished round, or an adapter's folder")
        folder = rounds[-1]
    training = folder / "training.json"
    if training.is_file() and json.loads(training.read_text()).get("base") != fingerprint:
        raise DataError(f"{name}: its policy is an adapter on another base model; give the --model that it was trained with")
    return policy_at(folder)


def _number(policy: Path) -> int:
    return int(policy.parent.name.partition("-")[2])


class Log:
    """A file of JSON rows, each durable once appended; a half-written last row, left by a kill, is dropped on opening."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = _whole_rows(file)

    def append(self, *rows: dict[str, Any]) -> None:
        """Adds rows, durable on return; they are kept as they will be read."""
        plain = [without_nan(row) for row in rows]
        with _written(self.file), self.file.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n" for row in plain))
            stream.flush()
            os.fsync(stream.fileno())
        self.rows += plain

    def check_policy(self, digest: str, rows: Sequence[dict[str, Any]] | None = None) -> None:
        """Raises DataError for rows (all) that another policy wrote; those that name none are the base's."""
        for row in self.rows if rows is None else rows:
            if (other := row.get("policy", BASE.digest)) != digest:
                raise DataError(
                    f"{self.file}: has a row of policy {other}, but {digest} writes now; what it found doesn't hold for this one. "
                    "Give a new --run"
                )

    def only(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops all rows but those."""
        kept = [row for row in self.rows if wanted(row)]
        if len(kept) < len(self.rows):
            self.rows = kept
            keep_rows(self.file, kept)

    def keep(self, count: int) -> None:
        """Drops all rows but the first so many."""
        if len(self.rows) > count:
            self.rows = self.rows[:count]
            keep_rows(self.file, self.rows)


def keep_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a file of JSON rows, whole or not at all."""
    write_text(file, "".join(json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_json(file: Path, data: Any) -> None:
    """Writes a file whole or not at all; a figure that doesn't exist (nan) is null.

    Raises:
        DataError: it can't be written.
    """
    write_text(file, json.dumps(without_nan(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        DataError: it can't be written.
    """
    scratch = file.with_name(f".{file.name}.{os.getpid()}.new")
    with _written(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(text, encoding="utf-8")
            scratch.replace(file)
        finally:
            scratch.unlink(missing_ok=True)


@contextmanager
def _written(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{file}: can't be written ({error}); free space or give another place") from error


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole rows of a file of JSON rows, which is left as it is; none if it isn't there.

    Raises:
        DataError: a row that is no JSON.
    """
    if not file.exists():
        return []
    try:
        whole = file.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: can't be read as rows of a run ({error})") from error


def without_nan(data: Any) -> Any:
    """Data for JSON, which knows no nan: a figure that doesn't exist is null."""
    if isinstance(data, dict):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


class Run:
    """An open run folder; its rows are its trials, or whatever else a lease brings.

    Attributes:
        begun_by: the commit of the code that made it.
        commit: that of the code that runs now.
        other_code: whether that isn't the code that runs now.
    """

    def __init__(self, folder: Path, config: BaseModel, resume: bool, check: Callable[[], None] | None = None) -> None:
        """Makes a new folder, or reopens one made with the same config, but for what may have become more (``MORE``).

        It is locked as long as this object lives, or until ``close``.

        Args:
            check: looks at what else must be the same, before anything is written down.

        Raises:
            DataError: the folder holds a run without ``resume``, one made with other settings (the first difference is named), one
                that another process works on, or somebody else's files of the names that a run's have; it can't be written.
        """
        self.folder = folder
        if not (folder / "run.json").exists() and (stranger := next((file for own in OWN for file in folder.glob(own)), None)):
            raise DataError(f"{folder}: {stranger.name} is there already, and no run is; give another --run folder")
        with _written(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise DataError(
                    f"{folder}: somebody works on this run already; wait until that ends, or stop it (in Python: run.close())"
                ) from error
        commit = self.begun_by = self.commit = _commit()
        resolved = {"version": __version__, "commit": commit, "config": config.model_dump(mode="json")}
        file = folder / "run.json"
        if file.exists():
            if not resume:
                raise DataError(f"{folder}: a run is there already; add --resume to go on with it, or give another --run folder")
            try:
                stored = json.loads(file.read_text(encoding="utf-8"))
                before = type(config).model_validate(stored["config"])
                self.begun_by = stored["commit"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}: can't be read as a run of this version ({error}); give another --run folder") from error
            more = {
                key: getattr(config, key)
                for key in MORE.get(type(config).__name__, ())
                if getattr(config, key) > getattr(before, key)
            }
            if other := first_difference(before, config, more):
                key, old, new = other
                raise DataError(f"{folder}: made with {key}={old!r}, now {new!r}; give the same settings or another --run")
            if check is not None:
                check()
            if more:
                write_json(file, stored | {"config": stored["config"] | more})
        else:
            write_json(file, resolved)
        self.log = Log(folder / ROWS)
        self.other_code = self.begun_by != commit

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is done."""
        return self.log.rows

    def append(self, *rows: dict[str, Any]) -> None:
        """Adds rows, durable on return."""
        self.log.append(*rows)

    def close(self) -> None:
        """Lets others work on it."""
        self._lock.release()


def keep_data(folder: Path, data: Any) -> None:
    """Keeps what a run is about beside it, as ``data.json``; where it has that already, that must be the same (``check_data``)."""
    check_data(folder, data)
    write_json(folder / DATA, data)


def check_data(folder: Path, data: Any, growing: bool = False) -> None:
    """That what a run is about is still what its ``data.json`` has; nothing where it has none.

    Args:
        folder: the run's, which may be new.
        data: puzzles by id, or a list of passages in the flat form, in their order.
        growing: further ones may have come, and ones not yet begun may be others.

    Raises:
        DataError: one has changed, questions and solutions count too; or (but for ``growing``) is gone, new, or in another place.
    """
    file = folder / DATA
    if not file.is_file():
        return
    try:
        before = _by_name(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: can't be read as the data of a run ({error}); bring it back, or give another --run") from error
    now = _by_name(json.loads(json.dumps(without_nan(data))))
    names = before.keys() & now.keys() if growing else before | now
    if other := sorted(name for name in names if before.get(name) != now.get(name)):
        raise DataError(
            f"{file}: {len(other)} contexts, {other[0][:80]!r} among them, aren't what they were when the run began; "
            "give --data as it was, or another --run"
        )
    if not growing and isinstance(data, list) and list(before) != list(now):
        raise DataError(f"{file}: the passages were in another order when the run began; give --data as it was, or another --run")


def _by_name(stored: Any) -> dict[str, Any]:
    """What is kept of each context, by its id or, of a passage, by its title and text."""
    return stored if isinstance(stored, dict) else {f"{one['title']}: {one['context']}": one for one in stored}


def _commit() -> str | None:
    """The commit of the code that runs, ``+`` after it with changes; None outside a git clone of it."""
    # Installed into an environment that lies in somebody's own repository, this file isn't one of that repository's.
    if not _git("ls-files", "--error-unmatch", Path(__file__).name):
        return None
    return _git("describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12")


def _git(*words: str) -> str | None:
    try:
        found = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if not found.returncode else None


def first_difference(before: BaseModel, now: BaseModel, aside: Collection[str] = ()) -> tuple[str, Any, Any] | None:
    """The first setting, by its dotted name, that two configs differ in, with both values; those ``aside`` may differ."""
    old = flat(before.model_dump(mode="json"))
    for key, value in flat(now.model_dump(mode="json")).items():
        if key not in aside and old.get(key) != value:
            return key, old.get(key), value
    return None


def flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, as --set takes them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _whole_rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    with file.open("r+b") as stream:
        whole, newline, _ = stream.read().rpartition(b"\n")
        stream.truncate(len(whole) + len(newline))
    return read_rows(file)
