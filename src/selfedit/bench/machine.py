"""The machine that figures are measured on, and how fast it is now."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

from selfedit.executors.local import cores


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as stream:
            model = next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": cores(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
    }


def matmul_peak(size: int = 2048, times: int = 3) -> float:
    """GFLOP/s of the best of a few fp32 products of size x size on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.randn(size, size), torch.randn(size, size)
        best = float("inf")
        for _ in range(times):
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
        return 2 * size**3 / best / 1e9
    finally:
        torch.set_num_threads(threads)


def peak_memory_mb() -> float:
    """Most memory that this process ever held, in MiB."""
    import resource  # not there on Windows, where the other commands work

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
