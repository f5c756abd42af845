"""Jobs on this machine: spawned worker processes, one thread each, every one with its own view of the same mapped weights."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfedit import progress
from selfedit.errors import SelfeditError

if TYPE_CHECKING:
    from selfedit.lm.load import LanguageModel


@dataclass(frozen=True)
class ModelChoice:
    """Which model workers load.

    Attributes:
        stack: adapters (PEFT folders, oldest first) that already answer on top of it.
        compiled: whether its layers go through ``torch.compile``.
    """

    name: str
    device: str = "auto"
    dtype: str = "auto"
    stack: tuple[str, ...] = ()
    compiled: bool = False


class _Place:
    """Where jobs run, with the model loaded before the first one: a model that can't be loaded is an ordinary error."""

    def __init__(self, choice: ModelChoice) -> None:
        self.choice = choice
        self.loaded: LanguageModel | None = None

    def run(self, job: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """The job's result."""
        if self.loaded is None:
            from selfedit.lm.adapter import install_saved_stack
            from selfedit.lm.load import load_model
            from selfedit.lm.stack import compile_layers

            lm = load_model(self.choice.name, self.choice.device, self.choice.dtype)
            if self.choice.compiled:
                compile_layers(lm)
            install_saved_stack(lm, self.choice.stack)
            self.loaded = lm
        return job(self.loaded, *arguments)


class _Later(Future[Any]):
    """A job that runs here when its result is asked for."""

    def __init__(self, place: _Place, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.work = place, job, arguments

    def result(self, timeout: float | None = None) -> Any:
        """The job's result."""
        if not self.done():
            place, job, arguments = self.work
            try:
                self.set_result(place.run(job, arguments))
            except Exception as error:
                self.set_exception(error)
        return super().result(timeout)


# In a worker.
_place: _Place | None = None


DIED = (
    "a worker process died, most likely for want of memory; run again with --workers 1 or a smaller model (in a script of your "
    "own, what starts the work must stand below if __name__ == '__main__')"
)


class LocalExecutor:
    """Runs ``job(lm, *arguments)`` in worker processes; results come in the order of submission or as they end.

    A job's result must not depend on the worker that ran it. On a GPU, or with one worker, everything still runs in one
    spawned process, so that Ctrl-C and errors behave the same.
    """

    def __init__(self, model: ModelChoice, workers: int | None = None, told: Callable[[int], None] | None = None) -> None:
        """Starts no process yet; the first job does.

        Args:
            model: what workers load.
            workers: processes; default as many as a short timing says, at most one a core; 0: none, jobs run here as they are
                submitted (for debugging, and where starting a process takes longer than the work).
            told: called a few times a second, from a thread, with the number of optimiser steps made so far.
        """
        self.workers = default_workers(model.device) if workers is None else workers
        self.closing = threading.Event()
        self.given_up = False
        self.here: _Place | None = None
        self.counting: Callable[[int], None] | None = None
        if not self.workers:
            self.here = _Place(model)
            _prepare()
            if told is not None:
                self.made = 0

                def count(steps: int) -> None:
                    self.made += steps
                    told(self.made)

                self.counting = count
                progress.listen(count)
            return
        context = multiprocessing.get_context("spawn")
        steps = context.Value("Q", 0)
        self.pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start_worker, initargs=(model, steps))
        if told is not None:
            threading.Thread(target=_watch, args=(steps, told, self.closing), daemon=True).start()

    def submit(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Starts a job; ``job`` is a module-level function whose first argument is the language model."""
        if self.here is not None:
            return _Later(self.here, job, arguments)
        try:
            return self.pool.submit(_run, job, arguments)
        except BrokenProcessPool as error:
            raise SelfeditError(DIED) from error

    def map(self, job: Callable[..., Any], argument_lists: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Results as they end, whatever the order of ``argument_lists``."""
        for future in self.ended([self.submit(job, *arguments) for arguments in argument_lists]):
            yield result(future)

    def ended(self, jobs: Iterable[Future[Any]]) -> Iterator[Future[Any]]:
        """Jobs as they end, whatever their order; without worker processes each runs as it is asked for."""
        return iter(list(jobs)) if self.here is not None else as_completed(jobs)

    def give_up(self) -> None:
        """Nothing that still runs or waits is wanted any more: leaving waits for none of it."""
        self.given_up = True

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.closing.set()
        if self.here is not None:
            if self.counting is not None:
                progress.leave(self.counting)
            return
        unwanted = kind is not None or self.given_up
        if unwanted:
            for process in list(getattr(self.pool, "_processes", {}).values()):
                process.terminate()
        self.pool.shutdown(wait=not unwanted, cancel_futures=True)


def result(future: Future[Any]) -> Any:
    """A job's result; a worker that died is an error with a remedy."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise SelfeditError(DIED) from error


def default_workers(device: str) -> int:
    """One process in all on a GPU; on a CPU as many as bring more, by a short timing, at most one a core."""
    return workers_that_pay(_products_a_second, most_workers(device))


def most_workers(device: str) -> int:
    """What the machine has room for, whatever ``--workers`` says: one process a core on a CPU, one on a GPU."""
    from selfedit.lm.load import resolve_device

    return cores() if resolve_device(device).type == "cpu" else 1


def workers_that_pay(speed: Callable[[int], float], most: int) -> int:
    """Among 1, 2, 4, ... and ``most`` the number of workers after which ``speed`` (work a second of so many) rises by no tenth."""
    best, fastest = 1, speed(1) if most > 1 else 0.0
    for count in sorted({2**power for power in range(1, most.bit_length()) if 2**power <= most} | ({most} - {1})):
        found = speed(count)
        if found < 1.1 * fastest:
            break
        best, fastest = count, found
    return best


def _products_a_second(count: int, seconds: float = 0.06) -> float:
    """Matrix products that so many threads at once make in a second, each on one core, of the size of an adapter's step."""
    import torch

    def work(_: int) -> int:
        torch.set_num_threads(1)
        a, b = torch.ones(256, 576), torch.ones(576, 1536)
        torch.mm(a, b)
        made, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            torch.mm(a, b)
            made += 1
        return made

    before = torch.get_num_threads()
    with ThreadPoolExecutor(count) as pool:
        total = sum(pool.map(work, range(count)))
    torch.set_num_threads(before)
    return total / seconds


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _watch(steps: Any, told: Callable[[int], None], closing: threading.Event) -> None:
    while not closing.wait(0.3):
        told(steps.value)


def _start_worker(model: ModelChoice, steps: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    global _place
    _place = _Place(model)
    _prepare()

    def count(made: int) -> None:
        with steps.get_lock():
            steps.value += made

    progress.listen(count)


def _die_with_parent() -> None:
    """Ends this worker when its parent is killed (Linux), so that nothing goes on training in the background."""
    import ctypes
    import multiprocessing
    import sys

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        # The parent may have been killed before this worker could ask to be told.
        if parent is not None and os.getppid() != parent.pid:
            os._exit(1)


def _prepare() -> None:
    """One thread, and freed memory kept."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from selfedit.lm.buffers import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()


def _run(job: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    assert _place is not None
    return _place.run(job, arguments)
