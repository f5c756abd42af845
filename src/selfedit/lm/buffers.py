"""The memory allocator's care on a CPU: freed activations are kept for the next step in place of going back to the system."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters (malloc.h), and the largest value of the int that they take.
TRIM_THRESHOLD = -1
MMAP_THRESHOLD = -3
# Older versions take no more than the second of these.
MMAP_THRESHOLDS = (2**30, 2**25)
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees; True if the C library took it (glibc does, others have no such knob).

    By default glibc asks the system for each large block and gives it back when it is freed; the pages are then faulted in anew at
    every step. Kept, training was about a tenth faster (docs/lab-book.md). For workers, which do nothing else.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mapped = any(mallopt(MMAP_THRESHOLD, size) for size in MMAP_THRESHOLDS)
    return bool(mallopt(TRIM_THRESHOLD, LARGEST_INT)) and mapped
