"""The errors that selfedit raises on purpose: one small hierarchy.

Each is also a standard error, takes one message (so it survives pickling between processes) and says the remedy.
"""

from __future__ import annotations


class SelfeditError(Exception):
    """Base of all errors that a user can act on; the command prints them without a traceback."""


class DataError(SelfeditError, ValueError):
    """A file or field of the user's input is wrong; the message names the file, the field and the remedy."""


class InvalidEditError(SelfeditError, ValueError):
    """A self-edit compiles to nothing that can be trained on; the trial is recorded with reward 0 and this reason."""


class UnreadableEditError(InvalidEditError):
    """A self-edit that is to be in a form, such as JSON, and isn't; a writer may be asked again."""


class DivergedError(SelfeditError, ArithmeticError):
    """The loss of an inner run stopped being finite; the trial is recorded with reward 0 and this reason."""


class ModelError(SelfeditError, RuntimeError):
    """A model can't be found, loaded or converted."""


class MemoryStoreError(SelfeditError, RuntimeError):
    """A memory folder can't be opened or changed: another base model, locked, no space left, damaged."""


class GraderError(SelfeditError, RuntimeError):
    """A grader failed; a failed grader is never a "wrong"."""


class SamplerError(SelfeditError, RuntimeError):
    """A remote writer failed; a failed writer is never an empty self-edit."""
