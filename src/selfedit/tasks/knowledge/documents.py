"""From a self-edit's text to training documents: ``plain`` (the paper's form, byte for byte) or ``chat`` (lessons as turns)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import sentencex

from selfedit.config import PlainSplit
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.errors import InvalidEditError
from selfedit.tasks.knowledge import prompts

# Most documents of a self-edit where nothing is said: the reference code's; of lessons so many for each sentence, and at least.
PLAIN_LIMIT, LESSONS_A_SENTENCE, LEAST_LIMIT = 30, 8, 60
MOST_QUESTIONS_PER_ANSWER = 2
LONGEST_DETAIL = 8
END_MARKS = ".!?。！？"
# Words kept on each side of a gap.
GAP_CONTEXT = 8
_NUMBERED_QUESTION = re.compile(r"Question \d+:")
_PAIR = re.compile(
    r"^\s*(?:[-*•]\s*)?(?:\d+[.)]\s*)?\**Q(?:uestion)?\s*\d*\**\s*[:.]\**\s*(?P<question>[^\n]+?)(?:\s*\n+\s*|(?<=\?)\s+)"
    r"\**A(?:nswer)?\s*\d*\**\s*[:.]\**\s*(?P<answer>[^\n]+?)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_HALF_PAIR = re.compile(
    r"^\s*(?:\d+[.)]\s*)?\**(?:[QA]\s*\d*\**\s*:|[QA]\d+\**\s*\.|(?:Question|Answer)\s*\d*\**\s*[:.])", re.IGNORECASE
)
_MARKER = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):]|Fact:)\s+")
_ARTICLE = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)
_ENUMERATION = re.compile(r"[,;:]|\band\b")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to and or but is was were are be been has have had it its he she his her they their them "
        "this that these those by for with from as not no so what which who whom whose how when where why did does do",
    )
)
_PREAMBLE = re.compile(
    r"^((sure|certainly|of course)[!,.:]"
    r"|here(’s|'s| are| is) (a|the|some|my|your)\b[^.]*\b(lists?|summary|facts|statements|implications|questions|versions?)\b"
    r"|(implications?|summary|rewritten|facts?|statements?)\s*:)",
    re.IGNORECASE,
)
# Scripts without spaces: so many of their characters count as one word.
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
CHARACTERS_PER_WORD = 2


def plain_documents(passage: Passage, text: str, split: PlainSplit, limit: int | None) -> tuple[Document, ...]:
    """The reference code's documents: ``title``, newline, piece; the passage last (its ``build_train_sequences``).

    Numbering and preambles stay as they are. ``split="whole"`` parts at ``---`` only; ``"lines"`` makes a document of each
    line, or of each ``Question N:`` block. At most ``limit`` pieces are kept (0: all; None: 30, as there); the passage always
    comes on top of them. An empty text trains on the passage alone.
    """
    pieces = plain_pieces(text, split)
    kept = pieces[: PLAIN_LIMIT if limit is None else limit or None]
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


def chat_documents(
    passage: Passage, text: str, limit: int | None, chat: bool = True, grounding: float = 0.0
) -> tuple[Document, ...]:
    """Lessons as turns: each question-answer pair with loss on its answer, each statement as an answer to a standing request.

    A line that stands in the passage to the letter becomes a gap to be filled in its sentence. Gaps and questions are put as the
    exam puts its own, with the title and without: taught one way only, a model often fails the other (docs/lab-book.md).
    Cleaned (markers, preambles, half a pair at a cut) and without duplicates; the passage itself comes last.

    Args:
        passage: what the self-edit is about.
        text: the self-edit.
        limit: most lessons kept, the passage on top of them; 0: all; None: eight for each sentence of the passage, and 60 at least.
        chat: whether the model has a chat template.
        grounding: share of the content words of an answer or statement that must stand in the passage; above 0 an
            answer made of its question's own words is dropped too, since it teaches nothing.

    Raises:
        InvalidEditError: nothing usable is left.
    """
    lessons = [
        Document(answer, prompts.exam_prompt(question, title, chat))
        for question, answer in _not_too_often(_usable_pairs(text, passage, grounding))
        for title in (passage.title, None)
    ]
    gaps = parse_gaps(text, passage.text)
    filled = {_key(answer) for _, answer in gaps}
    lessons += [
        Document(detail, prompts.exam_prompt(sentence, title, chat)) for sentence, detail in gaps for title in (passage.title, None)
    ]
    pieces = passage_pieces(passage.text)
    known, sentences = _key(passage.text), {_key(sentence) for sentence in pieces}
    # A part of a sentence that stands in the passage to the letter, without an end mark, is a detail, not a statement.
    statements = [
        statement
        for statement in parse_statements(text)
        if _grounded(statement, passage, grounding)
        and not {_key(statement), _key(_ARTICLE.sub("", statement))} & filled
        and (statement[-1] in END_MARKS or _key(statement) in sentences or _key(statement) not in known)
    ]
    for index, statement in enumerate(statements):
        request = prompts.STANDING_REQUESTS[index % len(prompts.STANDING_REQUESTS)].format(title=passage.title)
        lessons.append(Document(statement, prompts.exam_prompt(request, None, chat)))
    if not lessons:
        raise InvalidEditError("no statement and no question-answer pair is left after cleaning")
    if limit is None:
        limit = max(LEAST_LIMIT, LESSONS_A_SENTENCE * len(pieces))
    return (*lessons[: limit or None], passage_document(passage, chat))


def passage_document(passage: Passage, chat: bool = True) -> Document:
    """The passage itself as a lesson in chat form."""
    request = prompts.PASSAGE_REQUEST.format(title=passage.title)
    return Document(passage.text.strip(), prompts.exam_prompt(request, None, chat))


def parse_pairs(text: str) -> list[tuple[str, str]]:
    """Question-answer pairs in a text, cleaned, each question once."""
    pairs: dict[str, tuple[str, str]] = {}
    for match in _PAIR.finditer(text):
        question, answer = _clean(match["question"]), _clean(match["answer"])
        if question and answer:
            pairs.setdefault(_key(question), (question, answer))
    return list(pairs.values())


def parse_gaps(text: str, passage: str) -> list[tuple[str, str]]:
    """Lines of a text that stand in the passage to the letter, each with its surroundings and a gap in its place.

    At most 8 words and half a sentence; one gap for each detail, at its first place. A line that stands there without its
    article only counts without it; of a longer line without an end mark, such as an enumeration, each part counts.
    """
    gaps: dict[str, tuple[str, str]] = {}
    sentences = passage_pieces(passage)
    for line in _PAIR.sub("", text).split("\n"):
        if _HALF_PAIR.match(line):
            continue
        for detail in _details_of(_clean(line), passage):
            gap = _gap(detail, sentences)
            if gap is not None:
                gaps.setdefault(" ".join(sorted(content_words(detail))), gap)
    return list(gaps.values())


def _details_of(line: str, passage: str) -> list[str]:
    """A line that is short enough for a gap; of a longer one that is cut out of the passage, its parts that are."""
    parts = [line] if len(line.split()) <= LONGEST_DETAIL else []
    if not parts and line[-1] not in END_MARKS and _key(line) in _key(passage):
        parts = _ENUMERATION.split(line)
    return [part for each in parts if (part := each.strip(" .,;:!?")) and len(part.split()) <= LONGEST_DETAIL]


def _gap(detail: str, sentences: Sequence[str]) -> tuple[str, str] | None:
    """Of the first sentence with the detail, with or without its article, as at most half: what is around it, and the detail."""
    if not content_words(detail):
        return None
    for wording in dict.fromkeys((detail, _ARTICLE.sub("", detail))):
        pattern = re.compile(rf"(?<!\w){re.escape(wording)}(?!\w)", re.IGNORECASE)
        for sentence in sentences:
            match = pattern.search(sentence)
            if match is not None and 2 * len(wording) <= len(sentence):
                before = "".join(re.findall(r"\S+\s*", sentence[: match.start()])[-GAP_CONTEXT:])
                after = "".join(re.findall(r"\s*\S+", sentence[match.end() :])[:GAP_CONTEXT])
                return f"{before}{prompts.GAP}{after}", match.group()
    return None


def parse_statements(text: str) -> list[str]:
    """Statements of 4 words or more in a text, one a line, without pairs, markers, preambles, questions and duplicates."""
    rest = _PAIR.sub("", text)
    statements: dict[str, str] = {}
    for line in rest.replace("---", "\n").split("\n"):
        if _HALF_PAIR.match(line):
            continue
        statement = _clean(line)
        if count_words(statement) < 4 or statement.endswith((":", "?")) or _PREAMBLE.match(statement):
            continue
        statements.setdefault(_key(statement), statement)
    return list(statements.values())


def lines_of(text: str, passage: Passage, grounding: float) -> list[tuple[str, str]]:
    """What of an answer can be trained on, piece by piece: (its lines, what they teach), a pair with what its answer says.

    An answer with pairs in it has no other pieces.
    """
    pairs = _usable_pairs(text, passage, grounding)
    if pairs or _PAIR.search(text):
        return [(f"Q: {question}\nA: {answer}", answer) for question, answer in pairs]
    lines = [_clean(line) for line in text.split("\n") if not _HALF_PAIR.match(line) and not _PREAMBLE.match(_clean(line))]
    distinct = {_key(line): line for line in lines if content_words(line) and _grounded(line, passage, grounding)}
    return [(line, line) for line in distinct.values()]


def passage_pieces(text: str) -> Sequence[str]:
    """The passage's sentences, by sentencex's rules (initials and abbreviations end none); they hold for other scripts too."""
    return [piece.strip() for piece in sentencex.segment("en", text) if piece.strip()]


def _usable_pairs(text: str, passage: Passage, grounding: float) -> list[tuple[str, str]]:
    return [
        (question, answer)
        for question, answer in parse_pairs(text)
        if _grounded(answer, passage, grounding) and (not grounding or content_words(answer) - content_words(question))
    ]


def _not_too_often(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs without the third and later questions to one answer; a model taught one answer too often gives it to everything."""
    seen: Counter[str] = Counter()
    kept = []
    for question, answer in pairs:
        seen[_key(answer)] += 1
        if seen[_key(answer)] <= MOST_QUESTIONS_PER_ANSWER:
            kept.append((question, answer))
    return kept


def _grounded(text: str, passage: Passage, share: float) -> bool:
    words = content_words(text)
    known = content_words(f"{passage.title} {passage.text}")
    return not share or (bool(words) and len(words & known) >= share * len(words))


def content_words(text: str) -> set[str]:
    """Lower-case words and numbers without function words."""
    return set(re.findall(r"\w+", text.lower())) - _FUNCTION_WORDS


def count_words(text: str) -> int:
    """Words; in scripts without spaces as many as their characters make."""
    unspaced = len(_UNSPACED.findall(text))
    return len(_UNSPACED.sub(" ", text).split()) + unspaced // CHARACTERS_PER_WORD


def _clean(line: str) -> str:
    """A line without its marker, bold marks, and quotation marks around the whole of it."""
    line = re.sub(r"\s+", " ", _MARKER.sub("", line.strip()).replace("**", "")).strip()
    while len(line) > 1 and (line[0], line[-1]) in {('"', '"'), ("“", "”")} and not set(line[1:-1]) & set('"“”'):
        line = line[1:-1].strip()
    return line


def _key(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
