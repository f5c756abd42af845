"""From a self-edit to a training plan."""

from __future__ import annotations

from collections.abc import Sequence

from selfedit.config import EditConfig
from selfedit.contexts import Passage
from selfedit.edits import Document, TrainingPlan
from selfedit.lm.batch import encode_document
from selfedit.lm.load import LanguageModel
from selfedit.tasks.knowledge import documents


def compile_edit(parts: Sequence[Passage], text: str, config: EditConfig, chat: bool) -> tuple[Document, ...]:
    """A self-edit's documents, then the passage's parts (one unless it is longer than the window).

    Raises:
        InvalidEditError: nothing in it can be trained on.
    """
    if config.form == "plain":
        lessons = documents.plain_documents(parts[0], text, config.split, config.limit_documents)[:-1]
    else:
        lessons = documents.chat_documents(parts[0], text, config.limit_documents, chat)[:-1]
    return (*lessons, *(document for part in parts for document in passage_only(part, config, chat)))


def split_passage(lm: LanguageModel, passage: Passage) -> tuple[Passage, ...]:
    """The passage in parts of at most half the model's window, cut between sentences; one part if it fits."""
    room = lm.window // 2
    length = len(lm.tokenizer(passage.text)["input_ids"])
    if length <= room:
        return (passage,)
    parts: list[list[str]] = [[]]
    used = 0
    for sentence in documents.passage_pieces(passage.text):
        for piece in _chopped(lm, sentence, room):
            tokens = len(lm.tokenizer(piece)["input_ids"])
            if used + tokens > room and parts[-1]:
                parts.append([])
                used = 0
            parts[-1].append(piece)
            used += tokens
    return tuple(Passage(passage.title, " ".join(part)) for part in parts)


def _chopped(lm: LanguageModel, sentence: str, room: int) -> list[str]:
    """A sentence longer than the room for a part, cut between words."""
    words = sentence.split()
    pieces = []
    while words:
        low, high = 1, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(lm.tokenizer(" ".join(words[:middle]))["input_ids"]) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        pieces.append(" ".join(words[:low]))
        words = words[low:]
    return pieces


def passage_only(passage: Passage, config: EditConfig, chat: bool) -> tuple[Document, ...]:
    """The passage as the only document."""
    if config.form == "plain":
        return documents.plain_documents(passage, "", config.split, 0)
    return (documents.passage_document(passage, chat),)


def passage_matched(
    lm: LanguageModel, passage: Passage, config: EditConfig, matched: TrainingPlan
) -> tuple[tuple[Document, ...], int, int]:
    """Documents made of the passage alone, as many as a plan has and with nearly as many labelled tokens.

    With equal settings this takes the same number of optimiser steps. Each document is the passage or a run of its
    sentences, whichever comes closest to what is still owed; so the totals differ by less than a sentence or so.

    Returns:
        The documents, their labelled tokens and the plan's labelled tokens, for one epoch.
    """
    owed = goal = sum(encode_document(lm, document).labelled for document in matched.documents)
    sentences = documents.passage_pieces(passage.text)
    runs = [" ".join(sentences[a:b]) for a in range(len(sentences)) for b in range(a + 1, len(sentences) + 1)]
    lessons = {
        document: encode_document(lm, document).labelled for document in (_lesson(passage, run, config, lm.chat) for run in runs)
    }
    used: dict[Document, int] = dict.fromkeys(lessons, 0)
    chosen: list[Document] = []
    for left in range(len(matched.documents), 0, -1):
        wanted = owed / left
        best = min(lessons, key=lambda document: (abs(lessons[document] - wanted) + 4 * used[document], used[document]))
        used[best] += 1
        chosen.append(best)
        owed -= lessons[best]
    return tuple(chosen), goal - owed, goal


def _lesson(passage: Passage, run: str, config: EditConfig, chat: bool) -> Document:
    piece = Passage(passage.title, run)
    return passage_only(piece, config, chat)[0]
