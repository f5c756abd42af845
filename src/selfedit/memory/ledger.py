"""A memory on disk: what was learnt, in order, and which adapters answer now. Atomic, durable, undoable.

Layout of a memory folder::

    ledger.sqlite   entries, states and the pointer to the current state
    adapters/ID/    one adapter in PEFT's format for each entry and state it belongs to
    lock            held by whoever changes the memory
    unfinished/     what an interrupted learn has done so far (``memory/unfinished.py``)

A commit writes the adapter beside the old ones, flushes it, and only then moves the pointer in one SQLite transaction; so a
crash at any moment leaves the old state or the new one. Folders that no state names are removed by the next change.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from selfedit.errors import MemoryStoreError

FORMAT = 3
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE entries (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE states (id INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER, change TEXT NOT NULL, adapters TEXT NOT NULL);
CREATE TABLE pointer (only_row INTEGER PRIMARY KEY CHECK (only_row = 1), state INTEGER NOT NULL REFERENCES states(id));
"""

# What stands in a memory's folder before there is a ledger.
BEFORE_LEDGER = frozenset({"ledger.lock", "ledger.new", "ledger.new-journal", "lock", ".DS_Store"})


@dataclass(frozen=True, slots=True)
class Base:
    """The base model that a memory is bound to."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Slot:
    """One adapter of a state.

    Attributes:
        entries: those that it holds; several after a consolidation.
        folder: its name under ``adapters``.
        changed: settings of the consolidation that aren't those of the newest entry's lesson.
    """

    entries: tuple[int, ...]
    folder: str
    changed: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """The adapters that answer, oldest first."""

    id: int
    parent: int | None
    change: str
    slots: tuple[Slot, ...]

    @property
    def entries(self) -> tuple[int, ...]:
        """What is known, in the order in which it was learnt."""
        return tuple(entry for slot in self.slots for entry in slot.entries)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something learnt; ``record`` has the passage, self-edit, documents, quiz, settings, seed and marks."""

    id: int
    record: dict[str, Any]


class Memory:
    """An open memory folder. Reading needs no lock; every change is made inside ``writing``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> Memory:
        """Opens a memory that exists.

        Raises:
            MemoryStoreError: there is none, or it can't be read.
        """
        memory = cls(folder)
        if not memory._ledger.is_file():
            raise MemoryStoreError(f"{folder}: no memory there; make one with: selfedit learn FILE --quiz QUIZ --memory {folder}")
        with memory._read() as store:
            row = store.execute("SELECT value FROM about WHERE key = 'format'").fetchone()
        if row is None or int(row[0]) != FORMAT:
            raise MemoryStoreError(
                f"{folder}: a memory of another format, this version reads format {FORMAT}; learn into another --memory folder"
            )
        return memory

    @classmethod
    def create(cls, folder: Path, base: Base, keep: str = "") -> Memory:
        """Makes an empty memory, or opens the one that is there.

        Args:
            folder: where.
            base: the base model.
            keep: how the adapters of a new one are composed (``memory/compose.py``); empty: ``bank``.

        Raises:
            MemoryStoreError: the folder holds a memory with entries made with another base model (both are named), or files that
                are no memory's, or can't be written.
        """
        memory = cls(folder)
        if not memory._ledger.is_file():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                other = sorted(file.name for file in folder.iterdir() if file.name not in BEFORE_LEDGER)
                # What is below adapters/ and isn't an entry's would be swept. Another process may just have made the ledger.
                if other and not memory._ledger.is_file():
                    raise MemoryStoreError(f"{folder}: no memory, but it holds {other[0]}; give an empty or a new --memory folder")
                # A lock of its own: the memory's lock may be held for long by a process that made the ledger a moment ago.
                with FileLock(folder / "ledger.lock"):
                    if not memory._ledger.is_file():
                        _make_ledger(folder, memory._ledger, base, keep or "bank")
            except (OSError, sqlite3.Error) as error:
                raise MemoryStoreError(f"{folder}: a memory can't be made there ({error}); give another --memory folder") from error
        memory = cls.open(folder)
        if memory.entries():
            memory.check_base(base)
        return memory

    def check_base(self, base: Base) -> None:
        """Raises MemoryStoreError, with both names, if the memory was made with another base model."""
        mine = self.base
        if mine.fingerprint != base.fingerprint:
            changed = "its files have changed since; bring the old ones back"
            remedy = changed if mine.name == base.name else f"give --model {mine.name}"
            raise MemoryStoreError(
                f"{self.folder}: made with the base model {mine.name} ({mine.fingerprint}), but asked to work with {base.name} "
                f"({base.fingerprint}); {remedy}, or give another --memory folder"
            )

    @property
    def base(self) -> Base:
        """The base model of this memory."""
        with self._read() as store:
            about = dict(store.execute("SELECT key, value FROM about").fetchall())
        return Base(about["base_name"], about["base_fingerprint"])

    @property
    def keep(self) -> str:
        """How its adapters are composed: ``bank`` or ``stack``."""
        with self._read() as store:
            return str(store.execute("SELECT value FROM about WHERE key = 'keep'").fetchone()[0])

    def bind(self, base: Base, keep: str) -> None:
        """From now on of this base and composed so (empty: as it is), if nothing has been learnt yet. Call inside ``writing``.

        Raises:
            MemoryStoreError: there are entries, and they are of another base or composed in another way.
        """
        if self.entries():
            self.check_base(base)
            if keep and keep != self.keep:
                raise MemoryStoreError(
                    f"{self.folder}: made as a {self.keep}; leave keep ({keep}) out, or give another --memory folder"
                )
            return
        with self._transaction() as store:
            now = {"base_name": base.name, "base_fingerprint": base.fingerprint, "keep": keep or self.keep}
            store.executemany("UPDATE about SET value = ? WHERE key = ?", [(value, key) for key, value in now.items()])

    @property
    def state(self) -> State:
        """The state that answers now."""
        with self._read() as store:
            return _state(store, store.execute("SELECT state FROM pointer").fetchone()[0])

    def entries(self) -> list[Entry]:
        """All entries ever committed, undone ones too, oldest first."""
        with self._read() as store:
            return [Entry(i, json.loads(record)) for i, record in store.execute("SELECT id, record FROM entries ORDER BY id")]

    def adapter_folders(self, state: State | None = None) -> list[Path]:
        """PEFT folders of a state (the current one), oldest first."""
        return [self.folder / "adapters" / slot.folder for slot in (state or self.state).slots]

    def digest(self, state: State | None = None) -> str:
        """16 hex digits of the base and of every byte of a state's adapters: equal digests answer equally."""
        digest = hashlib.sha256(self.base.fingerprint.encode())
        for folder in self.adapter_folders(state):
            try:
                for file in sorted(folder.iterdir()):
                    digest.update(file.name.encode() + file.read_bytes())
            except OSError as error:
                raise MemoryStoreError(
                    f"{folder}: an adapter of the memory can't be read ({error}); restore it or undo its entry"
                ) from error
        return digest.hexdigest()[:16]

    @contextmanager
    def writing(self, wait: float = 3600.0, told: Any = None) -> Iterator[None]:
        """Holds the memory's lock; ``told`` is called once if someone else has it now.

        Raises:
            MemoryStoreError: still locked after ``wait`` seconds.
        """
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if not isinstance(error, Timeout):
                raise MemoryStoreError(f"{self.folder}: can't be locked for a change ({error}); is the folder writable?") from error
            if told is not None:
                told()
            try:
                lock.acquire(timeout=wait)
            except Timeout as error:
                raise MemoryStoreError(
                    f"{self.folder}: still in use by another process after {wait:.0f} s; try again later"
                ) from error
        try:
            self._sweep()
            yield
        finally:
            lock.release()

    def scratch(self) -> Path:
        """A folder for candidates inside the memory (same file system); swept by the next change."""
        folder = self.folder / "adapters" / f".candidates-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise MemoryStoreError(
                f"{self.folder}: can't be written ({error}); free space or give another --memory folder"
            ) from error
        return folder

    def commit(self, record: dict[str, Any], adapter: Path) -> Entry:
        """Adds an entry whose adapter joins those of the current state. Call inside ``writing``.

        Raises:
            MemoryStoreError: no space left or another fault of the disk; the memory is as it was.
        """
        state = self.state
        with self._read() as store:
            entry = int(store.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM entries").fetchone()[0])
        slot = Slot((entry,), f"{entry:04d}")
        self._change(
            f"learn entry {entry}",
            state,
            (*state.slots, slot),
            [(adapter, slot.folder)],
            (entry, json.dumps(record, sort_keys=True)),
        )
        return Entry(entry, record)

    @property
    def unfinished(self) -> Path:
        """Where an interrupted learn keeps what it has done so far; of no use once the state is another."""
        return self.folder / "unfinished"

    def undo_last(self) -> int:
        """Moves the pointer back to the state before the last entry; its adapters were never touched. Call inside ``writing``.

        Returns:
            The entry's number.

        Raises:
            MemoryStoreError: nothing to undo, or the last adapter holds several entries (``memory/rebuild.py`` takes one out).
        """
        state = self.state
        if not state.slots:
            raise MemoryStoreError(f"{self.folder}: nothing to undo, the memory is empty")
        if len(state.slots[-1].entries) > 1:
            raise MemoryStoreError(f"{self.folder}: its last adapter holds entries {state.slots[-1].entries}; name one of them")
        with self._transaction() as store:
            before = state
            while before.parent is not None and before.slots != state.slots[:-1]:
                before = _state(store, before.parent)
            if before.slots == state.slots[:-1]:
                store.execute("UPDATE pointer SET state = ?", (before.id,))
            else:
                store.execute("UPDATE pointer SET state = ?", (_add_state(store, state, "undo", state.slots[:-1]),))
        shutil.rmtree(self.unfinished, ignore_errors=True)
        return state.slots[-1].entries[0]

    def replace(self, change: str, slots: Sequence[Slot], built: Sequence[tuple[Path, str]]) -> None:
        """Moves the pointer to a new state; ``built`` are (folder, name) pairs to be taken in. Call inside ``writing``."""
        self._change(change, self.state, tuple(slots), built, None)

    def _change(
        self,
        change: str,
        state: State,
        slots: tuple[Slot, ...],
        built: Sequence[tuple[Path, str]],
        entry: tuple[int, str] | None,
    ) -> None:
        moved = []
        try:
            for folder, name in built:
                for file in sorted(folder.iterdir()):
                    _flush(file)
                target = self.folder / "adapters" / name
                if target.exists():
                    shutil.rmtree(target)
                os.rename(folder, target)
                moved.append(target)
                _flush(target)
            _flush(self.folder / "adapters")
            with self._transaction() as store:
                if entry is not None:
                    store.execute("INSERT INTO entries VALUES (?, ?)", entry)
                store.execute("UPDATE pointer SET state = ?", (_add_state(store, state, change, slots),))
        except MemoryStoreError:
            for target in moved:
                shutil.rmtree(target, ignore_errors=True)
            raise
        except OSError as error:
            for target in moved:
                shutil.rmtree(target, ignore_errors=True)
            raise MemoryStoreError(
                f"{self.folder}: the change could not be written ({error}); nothing was changed. Free space and try again"
            ) from error
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _sweep(self) -> None:
        """Removes adapter folders that no state names: what a killed process left behind."""
        root = self.folder / "adapters"
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MemoryStoreError(f"{self.folder}: can't be written ({error}); free space or make it writable") from error
        with self._read() as store:
            named = {slot["folder"] for (text,) in store.execute("SELECT adapters FROM states") for slot in json.loads(text)}
        for folder in root.iterdir():
            if folder.name not in named:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _ledger(self) -> Path:
        return self.folder / "ledger.sqlite"

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        try:
            store = sqlite3.connect(self._ledger, timeout=30.0)
            try:
                yield store
            finally:
                store.close()
        except sqlite3.Error as error:
            raise MemoryStoreError(f"{self._ledger}: can't be read ({error}); is it a memory's ledger?") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        store = sqlite3.connect(self._ledger, timeout=30.0)
        try:
            # EXTRA also flushes the folder after the journal is gone: a commit outlives a power cut.
            store.execute("PRAGMA synchronous = EXTRA")
            with store:
                store.execute("BEGIN IMMEDIATE")
                yield store
        except sqlite3.Error as error:
            raise MemoryStoreError(
                f"{self.folder}: the change could not be written ({error}); nothing was changed. Free space and try again"
            ) from error
        finally:
            store.close()


def _make_ledger(folder: Path, ledger: Path, base: Base, keep: str) -> None:
    scratch = folder / "ledger.new"
    scratch.unlink(missing_ok=True)
    store = sqlite3.connect(scratch)
    store.executescript(_SCHEMA)
    about = {"format": str(FORMAT), "base_name": base.name, "base_fingerprint": base.fingerprint, "keep": keep}
    store.executemany("INSERT INTO about VALUES (?, ?)", about.items())
    store.execute("INSERT INTO states (id, parent, change, adapters) VALUES (1, NULL, 'empty', '[]')")
    store.execute("INSERT INTO pointer VALUES (1, 1)")
    store.commit()
    store.close()
    _flush(scratch)
    scratch.replace(ledger)
    _flush(folder)


def _state(store: sqlite3.Connection, number: int) -> State:
    row = store.execute("SELECT id, parent, change, adapters FROM states WHERE id = ?", (number,)).fetchone()
    slots = tuple(Slot(tuple(slot["entries"]), slot["folder"], slot["changed"]) for slot in json.loads(row[3]))
    return State(row[0], row[1], row[2], slots)


def _add_state(store: sqlite3.Connection, parent: State, change: str, slots: tuple[Slot, ...]) -> int:
    adapters = json.dumps([asdict(slot) for slot in slots])
    cursor = store.execute("INSERT INTO states (parent, change, adapters) VALUES (?, ?, ?)", (parent.id, change, adapters))
    return int(cursor.lastrowid or 0)


def _flush(path: Path) -> None:
    """Fsync of a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
