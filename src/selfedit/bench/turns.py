"""Each way in a process of its own, turn after turn."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from selfedit.bench.machine import matmul_peak, peak_memory_mb
from selfedit.bench.table import ROWS, table
from selfedit.bench.ways import prepare
from selfedit.bench.work import Turn, Workload
from selfedit.errors import SelfeditError


def bench_inner(work: Workload, repeats: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Times every row ``repeats`` times, interleaved, and returns the table of ``--json``."""
    with tempfile.TemporaryDirectory() as folder:
        return _bench(replace(work, folder=folder), repeats, told)


def _bench(work: Workload, repeats: int, told: Callable[[str], None]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    crews: dict[str, tuple[Any, Connection]] = {}
    try:
        for name in ROWS:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(name, work, theirs), daemon=True)
            process.start()
            crews[name] = (process, ours)
        for name in ROWS:
            told(f"loading {name}")
            _receive(name, crews[name][1])
        peaks = [matmul_peak()]
        turns: dict[str, list[Turn]] = {name: [] for name in ROWS}
        for turn in range(repeats):
            for name in ROWS:
                told(f"{name}, turn {turn + 1} of {repeats}")
                crews[name][1].send(turn)
                own = _receive(name, crews[name][1])
                peaks.append(matmul_peak())
                turns[name].append(replace(own, product_gflops=(peaks[-2] + peaks[-1]) / 2))
    finally:
        for process, connection in crews.values():
            connection.close()
            process.join(5)
            process.terminate()
    return table(work, turns, max(peaks), repeats)


def _receive(name: str, connection: Connection) -> Any:
    try:
        answer = connection.recv()
    except EOFError as error:
        raise SelfeditError(f"the process of {name} died, most likely for want of memory; give --edits a smaller number") from error
    if isinstance(answer, str) and answer != "ready":
        raise SelfeditError(f"{name}: {answer}")
    return answer


def _serve(name: str, work: Workload, connection: Connection) -> None:
    """A row's process: loads, says ready, then trains once for each turn that it is asked for."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Trainers print progress of their own; errors come back through the connection.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    import torch

    torch.set_num_threads(1)
    try:
        run = prepare(name, work)
        connection.send("ready")
        while True:
            connection.recv()
            turn = run()
            turn.peak_memory_mb = peak_memory_mb()
            connection.send(turn)
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # shown by the parent
        connection.send(f"{type(error).__name__}: {error}")
