"""The command ``selfedit``."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import typer
from rich.markup import escape

from selfedit import __version__
from selfedit.cli import ask, bench, chat, compile, continual, evaluate, general, learn, memory, puzzles, report, train
from selfedit.cli.common import err
from selfedit.errors import SelfeditError

app = typer.Typer(
    help="A language model keeps learning: it reads, writes its own lessons, trains on them, and keeps what helped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("learn")(learn.learn_command)
app.command("ask")(ask.ask_command)
app.command("chat")(chat.chat_command)
app.add_typer(memory.app, name="memory")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")
evaluate.app.command("general")(general.eval_general_command)
evaluate.app.command("arc")(puzzles.eval_arc_command)
app.command("continual")(continual.continual_command)
app.command("solve")(puzzles.solve_command)
app.command("compile")(compile.compile_command)
app.command("report")(report.report_command)
app.command("convert")(report.convert_command)
app.command("select")(report.select_command)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    if version:
        typer.echo(f"selfedit {__version__}")
        raise typer.Exit


def main() -> None:
    """Runs the command; errors that a user can act on are one line, without a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except SelfeditError as error:
        err.print(f"[bold red]selfedit:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except _Interrupted:
        err.print("[bold]selfedit:[/] interrupted; what was committed before stays, and nothing half-written is taken for whole")
        sys.exit(130)


class _Interrupted(BaseException):
    """Ctrl-C; not a KeyboardInterrupt, which the command-line library would turn into a bare death by signal."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted
