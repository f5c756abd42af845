"""How a job says how far it is: a worker listens, and passes it on to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable

_listeners: list[Callable[[int], None]] = []


def listen(told: Callable[[int], None]) -> None:
    """From now on ``told`` hears of every optimiser step that this process makes."""
    _listeners.append(told)


def leave(told: Callable[[int], None]) -> None:
    """No more."""
    _listeners.remove(told)


def report(steps: int) -> None:
    """``steps`` more optimiser steps are done."""
    for told in _listeners:
        told(steps)
