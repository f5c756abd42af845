"""What every row trains, and what a turn of one measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfedit.config import Settings
from selfedit.contexts import Passage
from selfedit.errors import DataError

EXAM_QUESTIONS = 5


@dataclass(frozen=True)
class Workload:
    """What every row trains.

    Attributes:
        texts: one list of plain documents a self-edit.
        passages: each self-edit's passage, whose first questions are the exam of the stacked rows.
        epochs: passes over each.
        reference_steps: optimiser steps of the padded way that are timed; the rest of its time is extrapolated.
        last: N of ``stacked-last``.
        slots: adapters side by side in the stacked rows.
        compiled: whether the stacked rows' layers go through ``torch.compile``.
        folder: where adapters are kept until they are compared.
    """

    model: str
    texts: tuple[tuple[str, ...], ...]
    passages: tuple[Passage, ...]
    epochs: int
    reference_steps: int
    last: int
    slots: int
    compiled: bool = False
    folder: str = ""

    def settings(self, name: str) -> Settings:
        """A row's settings: the paper's r 32, alpha 64, learning rate 1e-3, batch 1; targets and layers by the row's name."""
        return Settings(
            rank=32,
            alpha=64,
            learning_rate=1e-3,
            epochs=self.epochs,
            targets="qv" if name.endswith("-qv") else "all-linear",
            layers=f"last:{self.last}" if name == "stacked-last" else "all",
        )


@dataclass
class Turn:
    """What one turn of a row measured.

    Attributes:
        seconds: for one self-edit's training.
        weights: files of flat adapter weights by self-edit; none where the way's initial weights or order are its own.
        exam_seconds: for one adapter's exam of ``EXAM_QUESTIONS`` questions, all adapters in one batch; stacked rows only, and only
            where every passage has questions.
        peak_memory_mb: of the process so far.
        product_gflops: of a 2048-cubed product before and after the turn: shared machines change their speed from minute to minute.
        one_slot_mb: of the process when it had trained one self-edit alone; stacked rows only.
    """

    seconds: float
    weights: list[str]
    exam_seconds: float | None = None
    peak_memory_mb: float = 0.0
    product_gflops: float = 0.0
    one_slot_mb: float | None = None


def workload(
    model: str,
    notes: str | None,
    edits: int,
    documents: int,
    epochs: int,
    reference_steps: int,
    last: int,
    slots: int,
    compiled: bool,
) -> Workload:
    """Documents of real passages with published notes, or of almanac's own passages where there is no such file.

    Args:
        notes: a data set with self-edits in the reference code's form; None: each almanac passage's sentences stand for notes.
        edits: how many self-edits.
        documents: most documents of one, the passage on top of them.

    Raises:
        DataError: the file has fewer self-edits.
    """
    from pathlib import Path

    from selfedit.tasks.knowledge.data import load_dataset, load_edits
    from selfedit.tasks.knowledge.documents import passage_pieces, plain_documents

    if notes is not None:
        written = [(passage, text) for passage, texts in load_edits(Path(notes), questions=True)[0] for text in texts]
    else:
        written = [(passage, "\n".join(passage_pieces(passage.text))) for passage in load_dataset("almanac", "dev")]
    if len(written) < edits:
        raise DataError(f"{notes or 'almanac'}: has {len(written)} self-edits; give --edits at most that")
    chosen = written[:edits]
    texts = tuple(
        tuple(document.text for document in plain_documents(passage, text, "lines", documents)) for passage, text in chosen
    )
    return Workload(model, texts, tuple(passage for passage, _ in chosen), epochs, reference_steps, last, slots, compiled)


def encoded(lm: Any, work: Workload) -> list[list[Any]]:
    """Each self-edit's documents as rows of tokens."""
    from selfedit.edits import Document
    from selfedit.lm.batch import encode_document

    return [[encode_document(lm, Document(text)) for text in texts] for texts in work.texts]
