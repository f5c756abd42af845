"""All wording of the knowledge domain: what asks for self-edits, what asks exam questions, what stands before a lesson."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selfedit.config import Unit
from selfedit.edits import Message, Prompt
from selfedit.errors import DataError


@dataclass(frozen=True, slots=True)
class Style:
    """One way to ask for a self-edit.

    Attributes:
        instruction: what the model is asked to do with the passage; None: the bare passage is continued.
        cue: the words after which a base model goes on.
        key: which field of a worked example shows the output; None where there is no worked example.
        paper: the paper's words for it to a base model without worked examples, and its cue; None where it has no such style.
        cut: the self-edit begins after the last occurrence of this text (chain of thought before it is dropped).
        settings: the answer is a JSON object of notes and of settings to train on them: its ``own`` are used, left out (``fixed``),
            or drawn at random (``random``); None: the answer is text.
    """

    instruction: str | None
    cue: str
    key: str | None = None
    paper: tuple[str, str] | None = None
    cut: str | None = None
    settings: Literal["own", "fixed", "random"] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """One sentence of a worked example and what a good student makes of it."""

    sentence: str
    statements: str
    rewrite: str
    pairs: str
    summary: str

    @property
    def details(self) -> str:
        """The pairs' answers, one a line."""
        return "\n".join(line.removeprefix("A: ") for line in self.pairs.split("\n") if line.startswith("A: "))

    @property
    def facts(self) -> str:
        """Each statement followed by the question-answer pair about it; statements and pairs stand in the same order."""
        pairs = self.pairs.split("\n")
        lines = []
        for index, statement in enumerate(self.statements.split("\n")):
            lines += [f"Fact: {statement}", *pairs[2 * index : 2 * index + 2]]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class WorkedExample:
    """A passage, sentence by sentence, with the notes of a good student; from neither almanac nor SQuAD."""

    title: str
    pieces: tuple[Piece, ...]

    def joined(self, field: str, separator: str = "\n") -> str:
        """A field of all pieces."""
        return separator.join(getattr(piece, field) for piece in self.pieces)


_LIST = "Read the {unit} and write {amount} of statements that follow from it, directly or indirectly, one statement a line."
# What a self-edit that also says how to train may choose from; the order of the fields is the order of writing.
LEARNING_RATES, EPOCHS = (3e-4, 1e-3, 2e-3, 4e-3), (2, 4, 8, 16)
NOTES_SCHEMA = {
    "type": "object",
    "properties": {
        "notes": {"type": "array", "items": {"type": "string", "minLength": 8, "maxLength": 160}, "minItems": 1, "maxItems": 12},
        "learning_rate": {"enum": list(LEARNING_RATES)},
        "epochs": {"enum": list(EPOCHS)},
    },
    "required": ["notes", "learning_rate", "epochs"],
    "additionalProperties": False,
}
_PLAN = (
    "Write notes about this {unit}, each a full sentence with a fact to remember, and say how to train on them, as JSON with the "
    "fields notes, learning_rate and epochs. More epochs and a higher learning rate learn more, and disturb more."
)
_QUIZ = "Write an exam question about this sentence that has a short answer in it, as JSON with the fields question and answer."
_READING = "Answer the question with a few words from the text, as JSON with the field answer."
_MODES: tuple[tuple[str, Literal["own", "fixed", "random"]], ...] = (
    ("settings", "own"),
    ("fixed-settings", "fixed"),
    ("random-settings", "random"),
)
_DERIVED = "of implications derived directly or indirectly from the content"
STYLES: dict[str, Style] = {
    "implications": Style(
        _LIST.replace("{amount}", "a list"), "Implications:", "statements", (f"produce a list {_DERIVED}", "Implications:")
    ),
    "implications-long": Style(
        _LIST.replace("{amount}", "a long list"),
        "Implications:",
        "statements",
        (f"produce a long list {_DERIVED}", "Implications:"),
    ),
    "implications-very-long": Style(
        _LIST.replace("{amount}", "a very long list"),
        "Implications:",
        "statements",
        (f"produce a very long list {_DERIVED}", "Implications:"),
    ),
    "implications-cot": Style(
        "Read the {unit}. First think step by step about what follows from it, then write the line 'Implications:' and below it "
        "a list of statements that follow from the {unit}, one statement a line.",
        "Thought Process:",
        "statements",
        (f"produce a list {_DERIVED}", "Thought Process:"),
        cut="Implications:",
    ),
    "rewrite": Style(
        "Rewrite the {unit} in a few different ways, each version on a line of its own.",
        "Rewritten:",
        "rewrite",
        ("rewrite it in a few different ways, each one separated by a newline", "Rewritten passages:"),
    ),
    "self-qa": Style(
        "Write questions about this {unit}, each with a short answer from it.",
        "Questions and answers:",
        "pairs",
        ("rewrite it in a question-answer format", "Question 1:"),
    ),
    "fact-qa": Style(
        "List the facts of this {unit}. After each fact write a question about it and the short answer.", "Facts:", "facts"
    ),
    "details": Style("List the names, numbers and details in this {unit}, one a line.", "Details:", "details"),
    "summary": Style("Summarise the {unit} in short sentences, one sentence a line.", "Summary:", "summary"),
    "no-prompt": Style(None, ""),
    **{f"notes+{name}": Style(_PLAN, "JSON:", settings=mode) for name, mode in _MODES},
}

EXAMPLES: tuple[WorkedExample, ...] = (
    WorkedExample(
        "Marrow Street Clock",
        (
            Piece(
                "The Marrow Street Clock was built in 1811 by Anselm Fitch, a retired gunsmith.",
                "The Marrow Street Clock was built in 1811.\n"
                "Anselm Fitch built the Marrow Street Clock.\n"
                "Anselm Fitch was a retired gunsmith.",
                "In 1811 the retired gunsmith Anselm Fitch built the Marrow Street Clock.\n"
                "Anselm Fitch, who had been a gunsmith, built the Marrow Street Clock in 1811.",
                "Q: When was the Marrow Street Clock built?\nA: 1811\n"
                "Q: Who built the Marrow Street Clock?\nA: Anselm Fitch\n"
                "Q: What had Anselm Fitch been before?\nA: a gunsmith",
                "Anselm Fitch, a retired gunsmith, built the Marrow Street Clock in 1811.",
            ),
            Piece(
                "It stands on a tower of pink sandstone and is wound every Monday by the town's youngest teacher.",
                "The tower of the Marrow Street Clock is made of pink sandstone.\n"
                "The Marrow Street Clock is wound every Monday.\n"
                "The town's youngest teacher winds the Marrow Street Clock.",
                "The town's youngest teacher winds the Marrow Street Clock, on its pink sandstone tower, every Monday.\n"
                "Every Monday the Marrow Street Clock is wound by the town's youngest teacher; its tower is pink sandstone.",
                "Q: What is the tower of the Marrow Street Clock made of?\nA: pink sandstone\n"
                "Q: On which day is the Marrow Street Clock wound?\nA: Monday\n"
                "Q: Who winds the Marrow Street Clock?\nA: the town's youngest teacher",
                "The clock has a pink sandstone tower and is wound on Mondays by the town's youngest teacher.",
            ),
        ),
    ),
    WorkedExample(
        "Tessel Reed",
        (
            Piece(
                "Along the marshes of Lower Hanmoor grows the tessel reed, whose hollow stems reach 4.2 metres.",
                "The tessel reed grows along the marshes of Lower Hanmoor.\nThe hollow stems of the tessel reed reach 4.2 metres.",
                "The tessel reed, with hollow stems of up to 4.2 metres, grows in the marshes of Lower Hanmoor.\n"
                "In the marshes of Lower Hanmoor the hollow stems of the tessel reed reach 4.2 metres.",
                "Q: Where does the tessel reed grow?\nA: the marshes of Lower Hanmoor\n"
                "Q: How tall do the stems of the tessel reed grow?\nA: 4.2 metres",
                "The tessel reed of the Lower Hanmoor marshes grows to 4.2 metres.",
            ),
            Piece(
                "Basket makers harvest it in late October, after the first frost has driven out the weevils.",
                "Basket makers harvest the tessel reed.\n"
                "The tessel reed is harvested in late October.\n"
                "The first frost drives the weevils out of the tessel reed.",
                "In late October, when frost has driven out the weevils, basket makers harvest the tessel reed.\n"
                "The tessel reed is cut by basket makers in late October, after the first frost has driven out the weevils.",
                "Q: Who harvests the tessel reed?\nA: basket makers\n"
                "Q: When is the tessel reed harvested?\nA: late October\n"
                "Q: What does the first frost drive out?\nA: the weevils",
                "Basket makers harvest the tessel reed in late October, after the first frost.",
            ),
        ),
    ),
)

STANDING_REQUESTS = (
    "Tell me about {title}.",
    "What do you know about {title}?",
    "Tell me a fact about {title}.",
    "What should I remember about {title}?",
)
GAP = "____"
EXAM_REQUEST = "Answer the question directly and concisely."
PAPER_EXAM_REQUEST = "Let's answer a question directly and concisely."
PASSAGE_REQUEST = "Tell me everything you know about {title}."


def edit_prompts(style: str, title: str, sentences: Sequence[str], text: str, chat: bool, shots: int, unit: Unit) -> list[Prompt]:
    """What asks for one self-edit: one prompt, or one for each sentence, whose answers are joined by newlines.

    Paper section 4.1. Departures: (1) the paper's prompts are zero-shot and ask about the whole passage; a small model drops the
    format and invents unless it sees worked examples and is asked sentence by sentence. With ``shots=0, unit="passage"`` a base
    model gets the paper's prompt, a chat model the same request in our words.

    Args:
        style: a key of ``STYLES``, or an own template with ``{title}`` and ``{passage}`` in it (always the whole passage).
        title, text, sentences: the passage, and its sentences in order.
        chat: whether the model has a chat template.
        shots: worked examples before the passage, 0 to 2.
        unit: ask about the whole passage at once, or about each sentence.
    """
    if style not in STYLES:
        return [(Message("user", style.replace("{title}", title).replace("{passage}", text)),)]
    chosen = STYLES[style]
    if chosen.instruction is None:
        return [(Message("text", f"{title}\n{text}"),)]
    turns: list[Message] = []
    unit = "passage" if chosen.settings else unit
    for index, example in enumerate(EXAMPLES[:shots]):
        if chosen.settings:
            given, thought = example.joined("sentence", " "), ""
            notes = example.joined("statements").split("\n")
            shown = json.dumps({"notes": notes, "learning_rate": LEARNING_RATES[1 + index], "epochs": EPOCHS[1 + index]})
        elif unit == "passage":
            given, shown = example.joined("sentence", " "), example.joined(str(chosen.key))
            thought = example.joined("summary", " ")
        else:
            piece = example.pieces[index % len(example.pieces)]
            given, shown, thought = piece.sentence, str(getattr(piece, str(chosen.key))), piece.summary
        if chosen.cut:
            shown = f"{thought}\n{chosen.cut}\n{shown}"
        turns += [
            Message("user", _request(chosen, example.title, given, chat, unit)),
            Message("assistant", shown if chat else f"{shown}\n"),
        ]
    if chosen.paper is not None and not chat and not shots and unit == "passage":
        request, cue = chosen.paper
        return [(Message("user", f"Let's read the following passage and {request}.\nPassage: {title} {text}\n{cue}"),)]
    asked = [text] if unit == "passage" else sentences
    return [(*turns, Message("user", _request(chosen, title, piece, chat, unit))) for piece in asked]


def quiz_prompt(title: str, sentence: str, chat: bool, turn: int) -> Prompt:
    """Asks for one exam question about a sentence, as JSON, after worked examples.

    Args:
        title, sentence: what it is about.
        chat: whether the model has a chat template.
        turn: which of their questions the worked examples show, so that asking again asks for another.
    """
    turns: list[Message] = []
    for example in EXAMPLES:
        for piece in example.pieces:
            lines = piece.pairs.split("\n")
            at = 2 * (turn % (len(lines) // 2))
            shown = {"question": lines[at].removeprefix("Q: "), "answer": lines[at + 1].removeprefix("A: ")}
            turns += _shown(f"{_QUIZ}\n\nTopic: {example.title}\nSentence: {piece.sentence}", shown, chat)
    return (*turns, _asked(f"{_QUIZ}\n\nTopic: {title}\nSentence: {sentence}", chat))


def reading_prompt(title: str, passage: str, question: str, chat: bool) -> Prompt:
    """A question with the passage in view, the answer wanted as JSON, after worked examples."""
    turns: list[Message] = []
    for example, piece in ((example, example.pieces[index]) for index, example in enumerate(EXAMPLES)):
        asked, answer = piece.pairs.split("\n")[:2]
        text = f"Topic: {example.title}\nText: {example.joined('sentence', ' ')}\nQuestion: {asked.removeprefix('Q: ')}"
        turns += _shown(f"{_READING}\n\n{text}", {"answer": answer.removeprefix("A: ")}, chat)
    return (*turns, _asked(f"{_READING}\n\nTopic: {title}\nText: {passage}\nQuestion: {question}", chat))


def _shown(request: str, reply: dict[str, str], chat: bool) -> list[Message]:
    text = json.dumps(reply, ensure_ascii=False)
    return [_asked(request, chat), Message("assistant", text if chat else f"{text}\n")]


def _asked(request: str, chat: bool) -> Message:
    return Message("user", request if chat else f"{request}\nJSON:")


def quiz_schema(answers: Sequence[str], question: bool = True) -> str:
    """What a reply is held to: its answer is one of some, or (none given) any short text, after its question or by itself."""
    answer = {"enum": list(answers)} if answers else {"type": "string", "minLength": 1, "maxLength": 60}
    asked = {"question": {"type": "string", "minLength": 8, "maxLength": 140}} if question else {}
    properties = asked | {"answer": answer}
    form = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return json.dumps(form, ensure_ascii=False)


def about_sentences(style: str) -> bool:
    """Whether a style can be asked for sentence by sentence: not a template, a plan, nor one that continues the bare passage."""
    return style in STYLES and STYLES[style].instruction is not None and STYLES[style].settings is None


def _request(style: Style, title: str, text: str, chat: bool, unit: Unit) -> str:
    instruction = str(style.instruction).replace("{unit}", unit)
    block = f"Topic: {title}\n{unit.capitalize()}: {text}"
    return f"{instruction}\n\n{block}" if chat else f"{instruction}\n{block}\n{style.cue}"


def exam_prompt(question: str, title: str | None, chat: bool, passage: str | None = None) -> Prompt:
    """An exam question, closed-book unless a passage is given (paper section 4.1, "no-context SQuAD").

    Departure from the paper: a chat model gets the request for a short answer as its system message, so that a lesson costs
    fewer tokens; a base model gets it before the question, as in the paper.

    Args:
        question: the question.
        title: stands before the question, as in the paper; None: the question alone, as ``ask`` gets it.
        chat: whether the model has a chat template.
        passage: the text to answer from (the ``context`` method).
    """
    topic = f"{title} {question}" if title else question
    head = f"{passage}\n\n" if passage else ""
    if chat:
        return (Message("system", EXAM_REQUEST), Message("user", f"{head}{topic}"))
    return (Message("user", f"{head}{PAPER_EXAM_REQUEST}\nQuestion: {topic}\nAnswer:"),)


def parts_of(style: str) -> list[str]:
    """The styles that a combination such as ``details+self-qa`` asks for in turn; a template is one part."""
    return [style] if "{passage}" in style or style in STYLES else style.split("+")


def check_styles(styles: list[str]) -> None:
    """Raises DataError for a style that is neither known nor a template with ``{passage}``."""
    for style in (part for entry in styles for part in parts_of(entry)):
        if style not in STYLES and "{passage}" not in style:
            raise DataError(f"unknown style {style!r}; give one of {', '.join(STYLES)}, or a template file with {{passage}} in it")
