"""What the commands share: consoles, config from file and flags, the grader, JSON on disk."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from rich.console import Console

from selfedit.errors import DataError

if TYPE_CHECKING:
    from selfedit.config import GraderName, JudgeConfig
    from selfedit.graders import Grader

out = Console()
err = Console(stderr=True)
Config = TypeVar("Config", bound=BaseModel)


def build_config(kind: type[Config], file: Path | None, flags: dict[str, Any], sets: list[str]) -> Config:
    """Defaults, then a YAML file, then flags that were given, then ``--set a.b=value``.

    Raises:
        DataError: the file can't be read, or a value is out of bounds; names the field.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{file}: can't be read as YAML ({error})") from error
        if not isinstance(loaded, dict):
            raise DataError(f"{file}: must be a mapping of settings, such as the output of --dry-run")
        values = loaded
    for path, value in flags.items():
        if value is not None:
            _put(values, path, value)
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals:
            raise DataError(f"--set {text}: give NAME=VALUE, such as settings.epochs=5")
        _put(values, path, yaml.safe_load(value))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise DataError(f"{file or 'settings'}: " + "; ".join(lines)) from error


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise DataError(f"{path}: {section} is not a section of settings")
    values[name] = value


def make_grader(name: GraderName, judge: JudgeConfig) -> Grader:
    """The grader called ``name``."""
    from selfedit.graders import text
    from selfedit.graders.judge import JudgeGrader

    if name == "judge":
        from platformdirs import user_cache_dir

        cache = Path(os.environ.get("SELFEDIT_CACHE") or user_cache_dir("selfedit")) / "judge.sqlite"
        return JudgeGrader(judge.url, judge.model, cache)
    graders: dict[str, Grader] = {
        "recall": text.RecallGrader(),
        "em": text.ExactMatchGrader(),
        "f1": text.F1Grader(),
    }
    return graders[name]


def styles_from(text: str | None) -> tuple[str, ...] | None:
    """``--style``: names joined by commas, or the path of a template file with {passage} in it."""
    if text is None:
        return None
    from selfedit.tasks.knowledge.prompts import check_styles

    styles = []
    for part in text.split(","):
        file = Path(part)
        styles.append(file.read_text() if file.is_file() else part.strip())
    check_styles(styles)
    return tuple(styles)


def write_json(file: Path, data: Any) -> None:
    """Writes a file whole or not at all."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}", delete=False, encoding="utf-8") as scratch:
            scratch.write(text)
        os.replace(scratch.name, file)
    except OSError as error:
        raise DataError(f"{file}: can't be written ({error})") from error


def print_config(config: BaseModel) -> None:
    """The resolved config as YAML, as ``--config`` reads it."""
    out.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="", markup=False, highlight=False)
