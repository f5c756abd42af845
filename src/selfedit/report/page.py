"""One self-contained HTML page of runs, with its pictures as PNG and its tables as CSV beside it."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import yaml

from selfedit.errors import DataError
from selfedit.report import tables
from selfedit.report.continual import continual_pictures, kept_differences_table, kept_table, matrices_table
from selfedit.report.plots import Picture, pictures_of
from selfedit.report.puzzles import galleries, puzzle_pictures, recipes_table, solved_table
from selfedit.report.read import RunData, read_run
from selfedit.report.rewards import rewards_tables


def write_report(folders: Sequence[Path], file: Path) -> list[Path]:
    """Writes ``file``, and PNG and CSV into the folder ``NAME-files`` beside it; returns everything written.

    Raises:
        DataError: a folder isn't a run, or has nothing to show; the page can't be written.
    """
    runs = _named([read_run(folder) for folder in folders])
    pictures = pictures_of(runs) + puzzle_pictures(runs) + continual_pictures(runs)
    sections = [(run, _tables(run)) for run in runs]
    compared = tables.comparison(runs) if len(runs) > 1 else None
    page = _template().render(
        runs=[_section(run, found) for run, found in sections], pictures=[_embedded(p) for p in pictures], compared=compared
    )
    try:
        written = _all_written(file, page, pictures, sections, compared)
    except OSError as error:
        raise DataError(f"{file}: can't be written ({error}); give --out another place") from error
    return [file, *written]


def _all_written(
    file: Path,
    page: str,
    pictures: Sequence[Picture],
    sections: Sequence[tuple[RunData, Sequence[tables.Table]]],
    compared: tables.Table | None,
) -> list[Path]:
    beside, scratch = file.with_name(f"{file.stem}-files"), file.with_name(f".{file.name}.new")
    beside.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in pictures:
        written.append(beside / f"{_slug(picture.name)}.png")
        written[-1].write_bytes(picture.png)
    for run, found in sections:
        for table in [*found, *_more(run)]:
            written.append(beside / f"{_slug(run.name)}-{_slug(table.title)}.csv")
            written[-1].write_text(_csv(table), encoding="utf-8")
    if compared is not None:
        written.append(beside / f"{_slug(compared.title)}.csv")
        written[-1].write_text(_csv(compared), encoding="utf-8")
    scratch.write_text(page, encoding="utf-8")
    scratch.replace(file)
    return written


def _tables(run: RunData) -> list[tables.Table]:
    if run.kind == "continual":
        return [table for table in (kept_table(run), kept_differences_table(run)) if table.rows]
    if run.kind == "rewards":
        return rewards_tables(run)
    if run.kind == "puzzles":
        return [solved_table(run), tables.differences_table(run)]
    if run.kind == "eval":
        return [tables.methods_table(run), tables.differences_table(run)]
    found = [tables.rounds_table(run), tables.noise_table(run), tables.retested_table(run), tables.cost_table(run)]
    return [table for table in found if table.rows]


def _more(run: RunData) -> list[tables.Table]:
    """What only the CSV files have."""
    makers: dict[str, Callable[[RunData], tables.Table]] = {
        "train": tables.edits_table,
        "puzzles": recipes_table,
        "continual": matrices_table,
    }
    return [makers[run.kind](run)] if run.kind in makers else []


def _section(run: RunData, found: Sequence[tables.Table]) -> dict[str, Any]:
    shown = run.rounds[-1] if run.rounds else None
    settings = run.settings["config"]
    seed = settings.get("seed")
    facts = {
        "model": settings.get("model"),
        "seed": seed,
        "selfedit": run.settings["version"],
        "commit": run.settings.get("commit"),
    }
    return {
        "name": run.name,
        "facts": {name: value for name, value in facts.items() if value is not None},
        "tables": found,
        "round": shown.number if shown else None,
        "extremes": tables.extremes(shown) if shown else [],
        "galleries": [
            {"title": one["title"], "grids": [grid | {"svg": markupsafe.Markup(grid["svg"])} for grid in one["grids"]]}
            for one in (galleries(run.folder) if run.kind == "puzzles" else [])
        ],
        "config": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    }


def _embedded(picture: Picture) -> dict[str, str]:
    return {"caption": picture.caption, "data": base64.b64encode(picture.png).decode()}


def _csv(table: tables.Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return buffer.getvalue()


def _named(runs: Sequence[RunData]) -> list[RunData]:
    """Of equal names, and of names without a Latin letter, the place becomes a part: files are called by them."""
    slugs = [_slug(run.name) for run in runs]
    return [
        run if slug and slugs.count(slug) == 1 else replace(run, name=f"{run.name}-{at}" if slug else f"run-{at}")
        for at, (slug, run) in enumerate(zip(slugs, runs, strict=True), start=1)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("selfedit.report", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html")
