"""From a self-edit's text to training documents: ``plain`` (the paper's form, byte for byte) or ``chat`` (lessons as turns)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfedit.config import PlainSplit
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.errors import InvalidEditError
from selfedit.tasks.knowledge import prompts

_NUMBERED_QUESTION = re.compile(r"Question \d+:")
_PAIR = re.compile(
    r"^\s*(?:[-*•]\s*)?(?:\d+[.)]\s*)?\**Q(?:uestion)?\s*\d*\**\s*[:.]\**\s*(?P<question>[^\n]+?)\s*\n+"
    r"\s*\**A(?:nswer)?\s*\d*\**\s*[:.]\**\s*(?P<answer>[^\n]+?)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_HALF_PAIR = re.compile(r"^\s*(?:\d+[.)]\s*)?\**(?:Q(?:uestion)?|A(?:nswer)?)\s*\d*\**\s*[:.]", re.IGNORECASE)
_MARKER = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):]|Fact:)\s+")
_PREAMBLE = re.compile(r"^(sure|certainly|of course|here (are|is)|implications?:|summary:|rewritten|the following)", re.IGNORECASE)


def plain_documents(passage: Passage, text: str, split: PlainSplit, limit: int) -> tuple[Document, ...]:
    """The reference code's documents: ``title``, newline, piece; the passage last (its ``build_train_sequences``).

    Numbering and preambles stay as they are. ``split="whole"`` parts at ``---`` only; ``"lines"`` makes a document of each
    line, or of each ``Question N:`` block. At most ``limit`` pieces are kept (0: all); the passage always comes on top of
    them. An empty text trains on the passage alone.
    """
    pieces = plain_pieces(text, split)
    kept = pieces[:limit] if limit else pieces
    return tuple(Document(f"{passage.title}\n{piece}") for piece in [*kept, passage.text.strip()])


def plain_pieces(text: str, split: PlainSplit) -> list[str]:
    """The pieces of a self-edit as the reference code parts them."""
    if not text.strip():
        return []
    if split == "lines" and _NUMBERED_QUESTION.search(text) and "Answer:" in text:
        pieces = re.split(r"(?=\nQuestion \d+:)", text.strip())
        if not pieces[0].startswith("Question"):
            pieces[0] = f"Question 1: {pieces[0].strip()}"
        return pieces
    segments = [segment.strip() for segment in text.split("---") if segment.strip()] or [text.strip()]
    if split == "whole":
        return segments
    lines = [line.strip() for segment in segments for line in segment.split("\n") if line.strip()]
    return lines[1:] if len(lines) > 1 and lines[1].startswith("1.") else lines


def chat_documents(passage: Passage, text: str, limit: int, chat: bool = True) -> tuple[Document, ...]:
    """Lessons as turns: each question-answer pair with loss on its answer, each statement as an answer to a standing request.

    A pair becomes two turns, the bare question and the question as the exam puts it: taught only one way, the
    model often can't answer when asked the other way (docs/lab-book.md).
    Cleaned (markers, preambles, half a pair at a cut) and without duplicates; the passage itself comes last. At most
    ``limit`` lessons are kept (0: all), the passage on top of them.

    Raises:
        InvalidEditError: nothing usable is left.
    """
    lessons = [
        Document(answer, request)
        for question, answer in parse_pairs(text)
        for request in prompts.question_requests(question, passage.title, chat)
    ]
    for index, statement in enumerate(parse_statements(text)):
        request = prompts.STANDING_REQUESTS[index % len(prompts.STANDING_REQUESTS)].format(title=passage.title)
        lessons.append(Document(statement, prompts.lesson_request(request, chat)))
    if not lessons:
        raise InvalidEditError("no statement and no question-answer pair is left after cleaning")
    return (*(lessons[:limit] if limit else lessons), passage_document(passage, chat))


def passage_document(passage: Passage, chat: bool = True) -> Document:
    """The passage itself as a lesson in chat form."""
    request = prompts.PASSAGE_REQUEST.format(title=passage.title)
    return Document(passage.text.strip(), prompts.lesson_request(request, chat))


def parse_pairs(text: str) -> list[tuple[str, str]]:
    """Question-answer pairs in a text, cleaned, each question once."""
    pairs: dict[str, tuple[str, str]] = {}
    for match in _PAIR.finditer(text):
        question, answer = _clean(match["question"]), _clean(match["answer"])
        if question and answer:
            pairs.setdefault(_key(question), (question, answer))
    return list(pairs.values())


def parse_statements(text: str) -> list[str]:
    """Statements in a text, one a line, without pairs, list markers, preambles, fragments and duplicates."""
    rest = _PAIR.sub("", text)
    statements: dict[str, str] = {}
    for line in rest.replace("---", "\n").split("\n"):
        if _HALF_PAIR.match(line):
            continue
        statement = _clean(line)
        if len(statement.split()) < 3 or statement.endswith((":", "?")) or _PREAMBLE.match(statement):
            continue
        statements.setdefault(_key(statement), statement)
    return list(statements.values())


def passage_pieces(text: str) -> Sequence[str]:
    """The passage's sentences, for lessons on the passage alone."""
    return [piece.strip() for piece in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])", text.strip()) if piece.strip()]


def _clean(line: str) -> str:
    line = _MARKER.sub("", line.strip())
    return re.sub(r"\s+", " ", line.replace("**", "").replace("__", "")).strip(' \t"“”')


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
