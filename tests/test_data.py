from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfedit.errors import DataError
from selfedit.graders.text import normalise
from selfedit.tasks.knowledge.data import SPLITS, almanac, load_dataset, load_edits, load_passage, load_quiz, parse_dataset


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def occurs(answer: str, text: str) -> int:
    a, t = words(answer), words(text)
    return sum(t[i : i + len(a)] == a for i in range(len(t)))


def test_almanac_is_what_it_says() -> None:
    data = {split: almanac(split) for split in SPLITS}
    assert {split: len(passages) for split, passages in data.items()} == {"train": 24, "dev": 16, "test": 40}
    passages = [passage for split in SPLITS for passage in data[split]]
    assert len({passage.title.lower() for passage in passages}) == 80
    questions = [text for p in passages for q in p.questions for text in (q.question, *q.paraphrases)]
    assert len(questions) == len({q.lower() for q in questions}) == 800
    for passage in passages:
        assert 60 <= len(passage.text.split()) <= 130, passage.title
        assert len(passage.questions) == 5
        assert len({" ".join(normalise(q.answer)) for q in passage.questions}) == 5
        for question in passage.questions:
            assert len(question.paraphrases) == 1
            assert occurs(question.answer, passage.text) == 1, (passage.title, question.answer)
            assert not occurs(question.answer, passage.title)
            for text in (question.question, *question.paraphrases):
                assert not occurs(question.answer, text), text
            assert len(set(words(question.answer)) & set(words(passage.title)) - {"the", "of", "a"}) == 0, question.answer


def test_almanac_splits_share_no_entity() -> None:
    """No answer and no title of one split occurs in a passage of another."""
    for split in SPLITS:
        others = " \n ".join(p.text + " " + p.title for other in SPLITS if other != split for p in almanac(other))
        for passage in almanac(split):
            assert not occurs(passage.title, others), passage.title
            for question in passage.questions:
                names = re.findall(r"[A-Z][a-z]{3,}", question.answer)
                assert not [name for name in names if len(names) > 1 and occurs(" ".join(names), others)], question.answer


QUIZZES = {
    "a.json": '[{"question": "Q?", "answer": "A"}]',
    "b.json": '{"questions": [{"question": "Q?", "answer": "A"}]}',
    "c.jsonl": '{"question": "Q?", "answer": "A"}\n\n',
    "d.yaml": "- question: Q?\n  answer: A\n",
    "e.yml": "questions:\n  - {question: 'Q?', answer: A}\n",
    "f.csv": 'question, answer\n"Q?",A\n',
}


@pytest.mark.parametrize("name", QUIZZES)
def test_quiz_forms(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(QUIZZES[name])
    (question,) = load_quiz(tmp_path / name)
    assert (question.question, question.answer) == ("Q?", "A")


BAD_QUIZZES = {
    "empty.json": ("[]", ["no questions"]),
    "missing.json": ('[\n {"question": "Q?", "answer": "A"},\n {"question": "Q?"}\n]', ["line 3", "answer", "missing"]),
    "number.json": ('[\n\n {"question": "Q?", "answer": 1732}]', ["line 3", "answer", "int", "quotes"]),
    "syntax.json": ('[{"question": "Q?",\n "answer": }]', ["line 2", "not valid JSON"]),
    "number.yaml": ("- question: Q?\n  answer: 1732\n", ["line 1", "answer", "int"]),
    "bad.jsonl": ('{"question": "Q?", "answer": "A"}\n{"question": "Q?"', ["line 2", "not valid JSON"]),
    "blank.jsonl": ('{"question": "Q?", "answer": " "}\n', ["line 1", "answer", "empty"]),
    "head.csv": ("q,a\n1,2\n", ["line 1", "question", "answer"]),
    "short.csv": ("question,answer\nQ?\n", ["line 2", "answer", "missing"]),
    "scalar.json": ('{"questions": 3}', ["questions", "list"]),
    "what.txt": ("Q?", ["ending", ".txt"]),
}


@pytest.mark.parametrize("name", BAD_QUIZZES)
def test_bad_quizzes_name_file_line_and_field(tmp_path: Path, name: str) -> None:
    text, parts = BAD_QUIZZES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        load_quiz(tmp_path / name)
    for part in [name, *parts]:
        assert part in str(caught.value)


def test_passages(tmp_path: Path) -> None:
    file = tmp_path / "my_notes.md"
    file.write_text("# The  Bridge\r\n\r\nIt is long.\n")
    assert load_passage(file).title == "The  Bridge" and load_passage(file).text == "It is long."
    assert load_passage(file, "Other").title == "Other"
    file.write_text("It is long.")
    assert load_passage(file).title == "my notes"
    for content, word in ((b"", "empty"), (b"a\0b", "binary"), (b"\xff\xfe\xff", "UTF-8"), (b"# Only a heading\n", "empty")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=word):
            load_passage(file)
    with pytest.raises(DataError, match="no such file"):
        load_passage(tmp_path / "none.md")


def test_an_empty_heading_is_no_title(tmp_path: Path) -> None:
    file = tmp_path / "the-bridge.md"
    file.write_text("#  \n\nIt was built in 1811.\nIt still stands.\n")
    found = load_passage(file)
    assert found.title == "the bridge" and "built in 1811" in found.text


def test_half_a_character_is_an_error_that_names_the_field() -> None:
    rows = [{"title": "T", "context": "cut \ud83d", "questions": [{"question": "q?", "answer": "a"}]}]
    with pytest.raises(DataError, match=r"f\.json, item 1.*field context has half a character"):
        parse_dataset(rows, "f.json")


def test_squad_s_dev_and_test_share_no_title(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"title": f"T_{n % 5}", "context": f"context {n}", "question": "q?", "answers": {"text": ["a"]}} for n in range(20)]
    asked = []
    hub = SimpleNamespace(load_dataset=lambda name, split: asked.append(split) or rows)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    by_split = {split: load_dataset("squad", split) for split in SPLITS}
    assert asked == ["train", "validation", "validation"]
    titles = {split: {passage.title for passage in found} for split, found in by_split.items()}
    assert titles == {"train": {f"T {n}" for n in range(5)}, "dev": {"T 0", "T 2", "T 4"}, "test": {"T 1", "T 3"}}
    assert len(by_split["dev"]) + len(by_split["test"]) == 20
    assert len(load_dataset("squad:validation")) == len(load_dataset("squad")) == 20
    with pytest.raises(DataError, match="no split 'all'"):
        load_dataset("squad:all")


def test_datasets_by_content(tmp_path: Path) -> None:
    flat = tmp_path / "flat.json"
    flat.write_text(json.dumps([{"title": "T", "context": "C.", "questions": [{"question": "Q?", "answer": "A"}]}]))
    assert load_dataset(str(flat))[0].questions[0].answer == "A"
    official = tmp_path / "squad.json"
    qas = [
        {"question": "Q?", "id": "1", "answers": [{"text": "A", "answer_start": 0}, {"text": "An A", "answer_start": 0}]},
        {"question": "No?", "id": "2", "answers": [], "is_impossible": True},
    ]
    official.write_text(json.dumps({"version": "v2.0", "data": [{"title": "A_B", "paragraphs": [{"context": "C.", "qas": qas}]}]}))
    (passage,) = load_dataset(str(official))
    assert passage.title == "A B" and len(passage.questions) == 1 and passage.questions[0].golds == ("A", "An A")
    flat.write_text(json.dumps([{"title": "T", "questions": []}]))
    with pytest.raises(DataError, match=r"item 1: field context is missing"):
        load_dataset(str(flat))
    with pytest.raises(DataError, match="no such data set"):
        load_dataset("nothing.json")
    for name, split in (("almanac", "valid"), ("almanac:valid", "dev")):
        with pytest.raises(DataError, match="no split 'valid'"):
            load_dataset(name, split)
    assert load_dataset("almanac:dev", "train") == almanac("dev")


def test_a_text_that_comes_twice_puts_its_questions_together(tmp_path: Path) -> None:
    file = tmp_path / "twice.json"
    item = {"title": "T", "context": "C."}
    first, second = ({"question": f"Q{n}?", "answer": "A"} for n in (1, 2))
    file.write_text(json.dumps([item | {"questions": [first]}, item | {"questions": [first, second]}]))
    (passage,) = load_dataset(str(file))
    assert [q.question for q in passage.questions] == ["Q1?", "Q2?"]


def test_a_paragraph_with_impossible_questions_only_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "squad.json"
    impossible = {"context": "C.", "qas": [{"question": "No?", "answers": [], "is_impossible": True}]}
    possible = {"context": "D.", "qas": [{"question": "Q?", "answers": [{"text": "A"}]}]}
    file.write_text(json.dumps({"data": [{"title": "T", "paragraphs": [impossible, possible]}]}))
    assert [passage.text for passage in load_dataset(str(file))] == ["D."]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.yaml", "- {question: 2024-99-99, answer: a}"),
        ("q.csv", "question,answer\n" + '"' + "x" * 200_000 + '",a\n'),
    ],
)
def test_quizzes_that_their_readers_choke_on(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(DataError, match="line"):
        load_quiz(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("question,answer\nWho?,Smith, John\n", ("line 2", "quotes")),
        ("question,answer\nQ?,A\nWho, me?,Smith\n", ("line 3", "quotes")),
        ("question,answer,answer\nWho?,Smith,John\n", ("line 1", "twice")),
        ("question,answer,paraphrases\nWho?,Smith,Which one?\n", ("line 1", "paraphrases", "JSON")),
    ],
)
def test_a_csv_with_a_loose_comma_is_refused(tmp_path: Path, content: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "quiz.csv"
    file.write_text(content)
    with pytest.raises(DataError) as error:
        load_quiz(file)
    assert all(word in str(error.value) for word in words)


def test_yaml_with_a_bare_colon_says_why(tmp_path: Path) -> None:
    file = tmp_path / "quiz.yaml"
    file.write_text("- question: What: why?\n  answer: x\n")
    with pytest.raises(DataError, match=r"line 1: not valid YAML .*quotes"):
        load_quiz(file)


@pytest.mark.parametrize("answers", ['[{"text": 5}]', '"abc"', '{"text": ["a"]}'])
def test_official_squad_with_answers_of_the_wrong_type(answers: str) -> None:
    qas = json.loads(f'[{{"question": "Who?", "answers": {answers}}}]')
    with pytest.raises(DataError, match=r"article 1, paragraph 1.*(text|answers)"):
        parse_dataset({"data": [{"title": "T", "paragraphs": [{"context": "C.", "qas": qas}]}]}, "squad.json")


def test_official_squad_without_any_answer_is_an_error() -> None:
    qas = [{"question": "Who?", "is_impossible": True, "answers": []}]
    with pytest.raises(DataError, match="no paragraph"):
        parse_dataset({"data": [{"title": "T", "paragraphs": [{"context": "C.", "qas": qas}]}]}, "squad.json")


def test_self_edit_files_are_read_for_what_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "edits.json"
    item = {"title": "T", "context": "C.", "completions": ["x"], "questions": [{"question": "Q?", "answer": ""}]}
    file.write_text("\ufeff" + json.dumps([item]))
    assert load_edits(file)[0][0][1] == ["x"]
    with pytest.raises(DataError, match=r"question 1.*answer"):
        load_edits(file, questions=True)
    file.write_text(json.dumps({"split_newlines": "false", "articles": []}))
    with pytest.raises(DataError, match="split_newlines"):
        load_edits(file)
    file.write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested"):
        load_edits(file)


def test_a_quiz_with_old_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_bytes(b"question,answer\rQ?,A\rR?,B\r")
    assert [q.answer for q in load_quiz(file)] == ["A", "B"]
