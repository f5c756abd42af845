"""From a self-edit to a training plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from selfedit import seeds
from selfedit.config import EditConfig
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.lm.batch import encode_document
from selfedit.lm.load import Identity, LanguageModel
from selfedit.tasks.knowledge import documents


def compile_edit(parts: Sequence[Passage], text: str, config: EditConfig, chat: bool) -> tuple[Document, ...]:
    """A self-edit's documents, then the passage's parts (one unless it is longer than the window).

    Raises:
        InvalidEditError: nothing in it can be trained on.
    """
    if config.form == "plain":
        lessons = documents.plain_documents(parts[0], text, config.split, config.limit_documents)[:-1]
    else:
        lessons = documents.chat_documents(
            Passage(parts[0].title, "\n\n".join(part.text for part in parts)), text, config.limit_documents, chat, config.grounding
        )[:-1]
    shown = [without_held_out(part, config.held_out) for part in parts]
    return (*lessons, *(document for part in shown for document in passage_only(part, config, chat)))


def held_out(text: str, share: float) -> list[str]:
    """The sentences of a text that its own lesson leaves out: a share of them, by a hash, and never all."""
    return [sentence for sentence, hidden in _parted(text, share) if hidden]


def without_held_out(passage: Passage, share: float) -> Passage:
    """The passage without those sentences, in one paragraph; as it is if there are none."""
    parted = _parted(passage.text, share)
    if not any(hidden for _, hidden in parted):
        return passage
    return replace(passage, text=" ".join(sentence for sentence, hidden in parted if not hidden))


def _parted(text: str, share: float) -> list[tuple[str, bool]]:
    sentences = documents.passage_pieces(text)
    order = sorted(range(len(sentences)), key=lambda at: seeds.derive(at, "held out", sentences[at]))
    hidden = set(order[: min(len(sentences) - 1, round(share * len(sentences)))])
    return [(sentence, at in hidden) for at, sentence in enumerate(sentences)]


def split_passage(lm: Identity, passage: Passage, most: int | None = None) -> tuple[Passage, ...]:
    """The passage in parts of at most half the model's window, cut between sentences; one part if it fits.

    A part is a piece of the text as it stands: a line break that ends a sentence, as in Markdown, ends it there too.

    Args:
        lm: whose window and tokens.
        passage: what is split.
        most: tokens of a part, where half the window is more than that.
    """
    room = min(lm.window // 2, most or lm.window)

    def fits(begin: int, end: int) -> bool:
        return len(lm.tokenizer(passage.text[begin:end])["input_ids"]) <= room

    if fits(0, len(passage.text)):
        return (passage,)
    cuts: list[tuple[int, int]] = []
    at = 0
    for sentence in documents.passage_pieces(passage.text):
        for piece in _chopped(lm, sentence, room):
            begin = passage.text.index(piece, at)
            at = begin + len(piece)
            if cuts and fits(cuts[-1][0], at):
                cuts[-1] = (cuts[-1][0], at)
            else:
                cuts.append((begin, at))
    return tuple(Passage(passage.title, passage.text[begin:end]) for begin, end in cuts)


def _chopped(lm: Identity, sentence: str, room: int) -> list[str]:
    """A sentence longer than the room for a part, cut between words; where there are none, between characters."""
    pieces = []
    rest = sentence
    while rest:
        low, high = 1, len(rest)
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(lm.tokenizer(rest[:middle])["input_ids"]) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        space = rest.rfind(" ", 0, low)
        cut = space if low < len(rest) and not rest[low].isspace() and space > 0 else low
        pieces.append(rest[:cut].strip())
        rest = rest[cut:].strip()
    return pieces


def passage_only(passage: Passage, config: EditConfig, chat: bool) -> tuple[Document, ...]:
    """The passage as the only document."""
    if config.form == "plain":
        return documents.plain_documents(passage, "", config.split, 0)
    return (documents.passage_document(passage, chat),)


def passage_matched(
    lm: LanguageModel, passage: Passage, config: EditConfig, plans: Sequence[tuple[Document, ...]]
) -> tuple[Document, ...]:
    """Documents made of the passage alone, as many as the plans have on average, and with about as many labelled tokens.

    With equal settings this takes the same number of optimiser steps. The last document is the whole passage, as in every plan;
    the others are runs of its words, one beginning where the other ended, each as long as what is still owed asks for.
    """
    words = passage.text.split()
    count = max(1, round(fmean(len(documents) for documents in plans))) if plans else 1
    owed = fmean(sum(encode_document(lm, d).labelled for d in documents) for documents in plans) if plans else 0.0
    whole = _lesson(passage, passage.text, config, lm.chat)
    owed -= encode_document(lm, whole).labelled
    chosen: list[Document] = []
    at = 0
    for left in range(count - 1, 0, -1):
        length = _words_for(lm, passage, config, words[at:] + words[:at], owed / left)
        run = words[at : at + length]
        lesson = _lesson(passage, " ".join(run), config, lm.chat)
        owed -= encode_document(lm, lesson).labelled
        chosen.append(lesson)
        at = (at + len(run)) % len(words)
    return (*chosen, whole)


def _words_for(lm: LanguageModel, passage: Passage, config: EditConfig, words: Sequence[str], wanted: float) -> int:
    """How many of the words make a lesson whose labelled tokens come closest to the number wanted; at least one."""
    low, high = 1, len(words)
    while low < high:
        middle = (low + high) // 2
        lesson = _lesson(passage, " ".join(words[:middle]), config, lm.chat)
        enough = encode_document(lm, lesson).labelled >= wanted
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def _lesson(passage: Passage, run: str, config: EditConfig, chat: bool) -> Document:
    return passage_only(Passage(passage.title, run), config, chat)[0]
