"""A run's folder: the resolved config, the code's version, and one JSON row a finished lease. Resumable."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfedit import __version__
from selfedit.errors import DataError

ROWS = "trials.jsonl"


class Log:
    """A file of JSON rows, each durable once appended; a half-written last row, left by a kill, is dropped on opening."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows = _whole_rows(file)

    def append(self, *rows: dict[str, Any]) -> None:
        """Adds rows, durable on return."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))
            stream.flush()
            os.fsync(stream.fileno())
        self.rows += rows


class Run:
    """An open run folder; its rows are its trials, or whatever else a lease brings."""

    def __init__(self, folder: Path, config: BaseModel, resume: bool) -> None:
        """Makes a new folder, or reopens one made with the same config.

        Raises:
            DataError: the folder exists without ``resume``, or was made with other settings (the first difference is named).
        """
        self.folder = folder
        resolved = {"version": __version__, "config": config.model_dump(mode="json")}
        file = folder / "run.json"
        if file.exists():
            if not resume:
                raise DataError(f"{folder}: a run is there already; add --resume to go on with it, or give another --run folder")
            try:
                before = _flat(type(config).model_validate(json.loads(file.read_text())["config"]).model_dump(mode="json"))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{file}: can't be read as a run of this version ({error}); give another --run folder") from error
            for key, value in _flat(config.model_dump(mode="json")).items():
                if before.get(key) != value:
                    raise DataError(
                        f"{folder}: made with {key}={before.get(key)!r}, now {value!r}; give the same settings or another --run"
                    )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            scratch = folder / ".run.json.new"
            scratch.write_text(json.dumps(resolved, indent=1) + "\n")
            scratch.replace(file)
        self.log = Log(folder / ROWS)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is done."""
        return self.log.rows

    def append(self, *rows: dict[str, Any]) -> None:
        """Adds rows, durable on return."""
        self.log.append(*rows)


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, as --set takes them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _whole_rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    with file.open("r+b") as stream:
        whole, newline, _ = stream.read().rpartition(b"\n")
        stream.truncate(len(whole) + len(newline))
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
