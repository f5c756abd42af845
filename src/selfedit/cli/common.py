"""What the commands share: consoles, config from file and flags, the grader, JSON on disk."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import yaml
from pydantic import BaseModel, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from selfedit.errors import DataError, SelfeditError

if TYPE_CHECKING:
    from collections.abc import Callable

    from selfedit.config import GraderName, JudgeConfig
    from selfedit.estimate import Estimate
    from selfedit.graders import Grader
    from selfedit.lm.load import Identity
    from selfedit.report.tables import Table as ReportTable
    from selfedit.runs import Run

out = Console()
err = Console(stderr=True)
# Seconds: from one line to the next where no bar can be drawn; of the past that the time left is told from, since one passage may
# take minutes.
SECONDS_A_LINE, SPEED_OVER = 60.0, 1800.0
Config = TypeVar("Config", bound=BaseModel)


# Options that several commands share.
ModelOption = Annotated[str | None, typer.Option(help="builtin:smollm2-135m, a folder, a .gguf file, or a hub id.")]
StyleOption = Annotated[str | None, typer.Option(help="Prompt style, several joined by commas, or a template file.")]
GraderOption = Annotated[str | None, typer.Option(help="recall, em, f1, or judge.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of everything that is random.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")]
DtypeOption = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Worker processes; default: by a timing; 0: none, all in this one.")]
SlotsOption = Annotated[int | None, typer.Option(min=0, help="Adapters trained side by side in one process; 0: by memory.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in --run, with its own settings.")]
ConfigOption = Annotated[Path | None, typer.Option(help="YAML file with settings, as --dry-run prints them.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]


def print_table(found: ReportTable) -> None:
    """A report's table with its note; nothing where it has no rows."""
    if not found.rows:
        return
    table = narrow_table()
    for at, name in enumerate(found.columns):
        table.add_column(name, justify="right" if at else "left")
    for cells in found.rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in cells))
    out.print(table)
    out.print(found.note, highlight=False)


def open_run(folder: Path, config: Config, resume: bool, check: Callable[[], None] | None = None) -> tuple[Run, Config]:
    """The run's folder, and its settings with what this machine chooses in the place of ``auto``: device, precision, slots.

    Raises:
        DataError: as ``Run``.
        ModelError: there is no such model.
    """
    from selfedit.executors.local import most_workers
    from selfedit.lm.load import dtype_name, identify, resolve_device
    from selfedit.lm.stack import slots_that_fit
    from selfedit.runs import Run

    values: Any = config
    known = identify(values.model)
    chosen: dict[str, Any] = {"device": str(resolve_device(values.device)), "dtype": dtype_name(known, values.device, values.dtype)}
    if getattr(values, "slots", None) == 0:
        chosen["slots"] = slots_that_fit(known, values.settings, values.device, most_workers(values.device))
    resolved = config.model_copy(update=chosen)
    run = Run(folder, resolved, resume, check)
    err.print(f"run folder: {folder}", highlight=False, markup=False)
    if run.other_code:
        err.print(f"begun by the code of {run.begun_by}, which is not what runs now: rows may differ", highlight=False)
    return run, resolved


def build_config(kind: type[Config], file: Path | None, flags: dict[str, Any], sets: list[str]) -> Config:
    """Defaults, then a YAML file, then flags that were given, then ``--set a.b=value``.

    Raises:
        DataError: the file can't be read, or a value is out of bounds; names the field.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{file}: can't be read as YAML ({error})") from error
        if not isinstance(loaded, dict):
            raise DataError(f"{file}: must be a mapping of settings, such as the output of --dry-run")
        # A run's run.json, which keeps the config beside the code's version, reruns it.
        values = loaded["config"] if {"version", "config"} <= set(loaded) else loaded
    for path, value in flags.items():
        if value is not None:
            _put(values, path, value)
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals:
            raise DataError(f"--set {text}: give NAME=VALUE, such as settings.epochs=5")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise DataError(f"--set {text}: the value can't be read as YAML") from error
        _put(values, path, parsed)
    try:
        # A section that is given in part keeps the rest of the command's own defaults.
        return kind.model_validate(_merged(kind().model_dump(), values))
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise DataError(f"{file or 'settings'}: " + "; ".join(lines)) from error


def run_config(run: Path | None, resume: bool, config: Path | None) -> Path | None:
    """The file of settings: of a run that goes on its own, unless ``--config`` names one.

    Raises:
        DataError: ``--resume`` without a run to go on with.
    """
    if not resume:
        return config
    if run is None or not (run / "run.json").is_file():
        raise DataError(f"{run or '--resume'}: no run to go on with; say which with --run FOLDER, or leave out --resume")
    return config or run / "run.json"


class WorkBar(Progress):
    """A bar on stderr with counts, time so far and time left; a line a minute where nothing can be redrawn (a file, a batch job).

    Args:
        what: is counted; may have {task.description} in it.
        console: to show it on.
        clock: tells the time in seconds.
    """

    def __init__(self, what: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console or err, transient=True, get_time=clock, speed_estimate_period=SPEED_OVER)
        self._said = clock()

    def update(self, task_id: TaskID, **changed: Any) -> None:
        """Says how far a task is."""
        super().update(task_id, **changed)
        if self.console.is_terminal or self.get_time() - self._said < SECONDS_A_LINE:
            return
        self._said = self.get_time()
        task = next(task for task in self.tasks if task.id == task_id)
        what, _, count, so_far, left = (str(column(task)).strip() for column in self.columns if isinstance(column, ProgressColumn))
        counted = task.total is not None
        told = f"{what} {count}, {so_far} so far, {left} left" if counted else f"{what}, {so_far} so far"
        self.console.print(told, highlight=False)


def _merged(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    known = dict(defaults)
    for name, value in given.items():
        old = known.get(name)
        known[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return known


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise DataError(f"{path}: {section} is not a section of settings")
    values[name] = value


def make_grader(name: GraderName, judge: JudgeConfig) -> Grader:
    """The grader called ``name``; a judge is asked one question, so that it isn't missed after long work.

    Raises:
        GraderError: the judge can't be reached, or doesn't judge.
    """
    from selfedit.graders import text
    from selfedit.graders.judge import JudgeGrader

    if name == "judge":
        from selfedit.lm.load import cache_folder

        asked = JudgeGrader(judge.url, judge.model, cache_folder() / "judge.sqlite")
        asked.check()
        return asked
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
    from selfedit.tasks.knowledge.prompts import STYLES, check_styles, parts_of

    styles = []
    for part in map(str.strip, text.split(",")):
        known = all(name in STYLES for name in parts_of(part))
        try:
            styles.append(part if known or not Path(part).is_file() else Path(part).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{part}: can't be read as a template ({error}); give UTF-8 text with {{passage}} in it") from error
    check_styles(styles)
    return tuple(styles)


def narrow_table() -> Table:
    """A table without a frame, for terminals of 80 columns."""
    return Table(box=SIMPLE_HEAD, padding=(0, 0), pad_edge=False)


def check_writable(file: Path | None) -> None:
    """Raises DataError now, before long work, if ``--json`` could not be written after it. No folder is made yet."""
    if file is None:
        return
    if file.is_dir():
        raise DataError(f"{file}: a folder; give a file's name")
    try:
        with tempfile.TemporaryFile(dir=next(folder for folder in file.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise DataError(f"{file}: can't be written ({error})") from error


def estimates(model: str, estimate: Callable[[Identity], Estimate]) -> None:
    """What a run will take, as comments after its settings; a model that isn't here has none."""
    from selfedit.lm.load import identify

    try:
        lines = estimate(identify(model)).lines()
    except SelfeditError as error:
        typer.echo(f"# no estimate: {error}")
        return
    for line in lines:
        typer.echo(line)


def print_config(config: BaseModel) -> None:
    """The resolved config as YAML, as ``--config`` reads it."""
    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), nl=False)
