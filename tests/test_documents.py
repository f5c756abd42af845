from __future__ import annotations

from typing import Any

import pytest

from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.errors import DataError, InvalidEditError
from selfedit.lm.batch import encode_document
from selfedit.tasks.knowledge.compile import split_passage
from selfedit.tasks.knowledge.documents import (
    chat_documents,
    parse_pairs,
    parse_statements,
    passage_document,
    passage_pieces,
    plain_documents,
)

PASSAGE = Passage("Topic", "  The passage. ")


def plain(text: str, split: str = "lines", limit: int | None = None) -> list[str]:
    return [document.text for document in plain_documents(PASSAGE, text, split, limit)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. One.\n\n2. Two.  \n", ["1. One.", "2. Two."]),
        ("Sure, a list:\n1. One.\n2. Two.", ["1. One.", "2. Two."]),
        ("Sure, a list:\nOne.", ["Sure, a list:", "One."]),
        ("A\n---\nB\nC", ["A", "B", "C"]),
        ("", []),
        (" \n ", []),
        (
            "What is it?\nAnswer: x\nQuestion 2: Why?\nAnswer: y",
            ["Question 1: What is it?\nAnswer: x", "\nQuestion 2: Why?\nAnswer: y"],
        ),
        ("Question 1: a --- b\nAnswer: x", ["Question 1: a --- b\nAnswer: x"]),
        ("Question 1: no reply\nmore", ["Question 1: no reply", "more"]),
    ],
)
def test_plain_by_lines_as_the_reference_parts_them(text: str, expected: list[str]) -> None:
    assert plain(text) == [f"Topic\n{piece}" for piece in [*expected, "The passage."]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("A\nB\n---\n\n---\n C ", ["A\nB", "C"]), (" --- ", ["---"]), ("one\ntwo", ["one\ntwo"]), ("", [])],
)
def test_plain_whole(text: str, expected: list[str]) -> None:
    assert plain(text, "whole") == [f"Topic\n{piece}" for piece in [*expected, "The passage."]]


def test_limit_keeps_the_passage() -> None:
    text = "\n".join(f"Fact {number}" for number in range(40))
    assert len(plain(text)) == 31 and plain(text)[-1] == "Topic\nThe passage."
    assert len(plain(text, limit=0)) == 41


def test_a_long_passage_has_room_for_lessons_about_its_end() -> None:
    names = [f"{first}{second}" for first in ("Bel", "Cor", "Dun", "Fal") for second in ("mar", "nor", "ros", "tav", "wick")]
    long = Passage("Ports", " ".join(f"The port of {name} lies on the {name.lower()} river." for name in names))
    text = "\n".join(f"Q: Which river is the port of {name} on?\nA: the {name.lower()} river" for name in names * 2)
    text += "".join(f"\nQ: What lies on the river {name.lower()}?\nA: the port of {name}\n{name}" for name in names)
    lessons = [document.text for document in chat_documents(long, text, None)]
    assert len(lessons) > 61 and f"the port of {names[-1]}" in lessons and names[-1] in lessons
    assert len(chat_documents(long, text, 30)) == 31 and len(chat_documents(long, text, 0)) == len(lessons)


def asked(document: Document) -> str:
    assert document.request is not None
    return document.request[-1].content


def test_chat_form_cleans_deduplicates_and_frames() -> None:
    text = (
        "Sure, here is a list:\n1. The bridge is made of slate.\n- **The bridge is made of slate.**\n* Ada built the bridge.\n"
        "Fact: It is very long.\nQ: Who built it?\nA: Ada\nQ: who built it?\nA: Bob\nQ: Half a pair"
    )
    documents = chat_documents(PASSAGE, text, 30)
    assert [(asked(document), document.text) for document in documents[:2]] == [
        ("Topic Who built it?", "Ada"),
        ("Who built it?", "Ada"),
    ]
    assert [document.text for document in documents[2:]] == [
        "The bridge is made of slate.",
        "Ada built the bridge.",
        "It is very long.",
        "The passage.",
    ]
    assert all("Topic" in asked(document) for document in documents[2:])


BRIDGE = Passage("Quillmoor", "The Quillmoor bridge was built by Ada Thornby in 1732. It is made of slate.")


def test_details_become_gaps_in_their_sentence() -> None:
    documents = chat_documents(BRIDGE, "Ada Thornby\n1732.\nslate\nada thornby\ngranite\nbuilt by Ada Thornby in 1732. It is", 30)
    titled, alone = documents[:-1:2], documents[1:-1:2]
    assert [(asked(document), document.text) for document in titled] == [
        ("Quillmoor The Quillmoor bridge was built by ____ in 1732.", "Ada Thornby"),
        ("Quillmoor Quillmoor bridge was built by Ada Thornby in ____.", "1732"),
        ("Quillmoor It is made of ____.", "slate"),
    ]
    assert [f"Quillmoor {asked(document)}" for document in alone] == [asked(document) for document in titled]
    assert [document.text for document in alone] == [document.text for document in titled]


def test_a_detail_counts_without_its_article_and_a_list_by_its_parts() -> None:
    lift = Passage("Orm Lift", "Orm Lift carries slate, wool and river trout, in open baskets, to Tarn Gate. A bell warns.")
    text = "The slate\nthe bell\nslate, wool and river trout, in open baskets, to Tarn Gate\nthe wool and river trout"
    documents = chat_documents(lift, f"{text}\nIt carries trout, in open baskets, to Tarn.", 0)
    assert [(asked(document), document.text) for document in documents[1:-2:2]] == [
        ("Orm Lift carries ____, wool and river trout, in open baskets,", "slate"),
        ("A ____ warns.", "bell"),
        ("Orm Lift carries slate, ____ and river trout, in open baskets, to Tarn", "wool"),
        ("Orm Lift carries slate, wool and ____, in open baskets, to Tarn Gate.", "river trout"),
        ("Orm Lift carries slate, wool and river trout, ____, to Tarn Gate.", "in open baskets"),
        ("slate, wool and river trout, in open baskets, ____.", "to Tarn Gate"),
        ("Orm Lift carries slate, ____, in open baskets, to Tarn Gate.", "wool and river trout"),
    ]
    assert len(documents) == 2 * 7 + 2, "none of them is a statement besides"
    assert documents[-2].text == "It carries trout, in open baskets, to Tarn."


def test_ungrounded_and_empty_lessons_are_dropped() -> None:
    text = (
        "Q: Who built the bridge?\nA: Ada Thornby\nQ: Where?\nA: Jerusalem\nQ: What is slate?\nA: slate\n"
        "The bridge was built by goats."
    )
    kept = chat_documents(BRIDGE, text, 30, grounding=0.75)
    assert [document.text for document in kept] == ["Ada Thornby", "Ada Thornby", BRIDGE.text]
    assert len(chat_documents(BRIDGE, text, 30)) == 8


CLOCK = Passage(
    "Marrow Clock",
    "The Marrow Clock was built in 1811 by A. Fitch, a retired gunsmith, and it stands on a tower of pink sandstone.",
)


@pytest.mark.parametrize(
    "line",
    [
        "The Marrow Clock was built in 1811 by A. Fitch.",
        "A. Fitch built the Marrow Clock in 1811.",
        "The following year, 1811, Fitch built it.",
        "Sure-footed Fitch climbed the tower.",
        "Here is the clock of A. Fitch.",
        'He called it "the tower"',
        "It holds the file __init__ of the clock.",
    ],
)
def test_faithful_statements_stay_as_they_are(line: str) -> None:
    assert chat_documents(CLOCK, f"- {line}", 30)[0].text == line


def test_pairs_on_one_line_and_scripts_without_spaces() -> None:
    assert parse_pairs("Question 1: Who built it? Answer: A. Fitch\nQ: When? A: 1811") == [
        ("Who built it?", "A. Fitch"),
        ("When?", "1811"),
    ]
    bridge = Passage("橋", "橋は1732年に建てられた。石でできている。")
    assert [d.text for d in chat_documents(bridge, "橋は石でできていて長い。", 30)] == ["橋は石でできていて長い。", bridge.text]


def test_one_answer_is_not_taught_to_many_questions() -> None:
    text = "\n".join(f"Q: What is number {n}?\nA: slate" for n in range(5))
    assert len(chat_documents(BRIDGE, text, 30)) == 2 * 2 + 1


def test_numbered_questions_are_pairs_too() -> None:
    assert parse_pairs("Question 1: Why?\nAnswer: So.\n\n2. **Question:** Who?\n**Answer:** Ada") == [
        ("Why?", "So."),
        ("Who?", "Ada"),
    ]
    assert parse_statements("Question 1: Why?\nAnswer: So.\nQuestion 2: cut of") == []


@pytest.mark.parametrize("text", ["", "   ", "Here is the list:", "Q: only half", "ok"])
def test_nothing_usable_is_an_invalid_edit(text: str) -> None:
    with pytest.raises(InvalidEditError):
        chat_documents(PASSAGE, text, 30)


def test_sentences() -> None:
    assert passage_pieces("He left at 4.2 metres! Why? Because.") == ["He left at 4.2 metres!", "Why?", "Because."]
    assert passage_pieces("A. Fitch met Dr. Smith. They left.\n\nRain.") == ["A. Fitch met Dr. Smith.", "They left.", "Rain."]


def test_sentences_of_other_scripts() -> None:
    assert passage_pieces("Erste. Über alles. Ende!") == ["Erste.", "Über alles.", "Ende!"]
    assert passage_pieces("Первая. Вторая? Третья.") == ["Первая.", "Вторая?", "Третья."]
    assert passage_pieces("橋は長い。石でできている。") == ["橋は長い。", "石でできている。"]
    assert passage_pieces("About 3.5 m, i.e. long. (So it is.) e.g. this") == ["About 3.5 m, i.e. long.", "(So it is.) e.g. this"]


def test_a_text_without_spaces_is_split_too(lm: Any) -> None:
    text = "橋" * 2000
    parts = split_passage(lm, Passage("T", text))
    assert "".join(part.text for part in parts) == text and len(parts) > 1
    assert all(len(lm.tokenizer(part.text)["input_ids"]) <= lm.window // 2 for part in parts)


def test_a_part_of_a_long_text_has_the_sentences_of_the_whole(lm: Any) -> None:
    """In Markdown a line break ends a sentence that no full stop does; a part of it does too."""
    lines = [f"## Heading {n}\n\n- item {n} of the list\n- another item {n}" for n in range(60)]
    text = "\n\n".join(lines)
    parts = split_passage(lm, Passage("T", text))
    assert len(parts) > 1 and all(len(lm.tokenizer(part.text)["input_ids"]) <= lm.window // 2 for part in parts)
    assert [piece for part in parts for piece in passage_pieces(part.text)] == passage_pieces(text)


def test_a_title_that_fills_the_window_is_an_error(lm: Any) -> None:
    title = "long " * 600
    with pytest.raises(DataError, match="shorter title"):
        encode_document(lm, passage_document(Passage(title, "It is long.")))
