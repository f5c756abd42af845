"""Forks the command for each request on stdin, a JSON object a line; what the command needs is imported once."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
import tempfile
from typing import Any

import selfedit
from selfedit.cli.main import main


def import_all() -> None:
    """What commands import as they need it."""
    for module in pkgutil.walk_packages(selfedit.__path__, "selfedit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("transformers.models.llama.modeling_llama")


def run(request: dict[str, Any]) -> dict[str, Any]:
    """A command from its fork to its end; one that takes too long is killed and has the code of that signal."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            become(request, out.fileno(), err.fileno())
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
        signal.alarm(int(request["timeout"]))
        _, status = os.waitpid(child, 0)
        signal.alarm(0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return {"code": os.waitstatus_to_exitcode(status), "stdout": texts[0], "stderr": texts[1]}


def become(request: dict[str, Any], out: int, err: int) -> None:
    """The command itself; never returns."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(request["cwd"])
        sys.argv = ["selfedit", *request["arguments"]]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Without the handlers of the process that it was forked from; whatever workers it had are down by now.
        os._exit(code)


# Not in the workers that a command starts.
if __name__ == "__main__":
    import_all()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
