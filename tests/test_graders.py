from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from selfedit.contexts import Question
from selfedit.errors import GraderError
from selfedit.graders import ExamItem
from selfedit.graders.judge import JudgeGrader
from selfedit.graders.text import ExactMatchGrader, F1Grader, RecallGrader, exact_match, f1_score, recall_score


def item(answer: str, gold: str, group: int = 0, question: str = "q?", aliases: tuple[str, ...] = ()) -> ExamItem:
    return ExamItem(Question(question, gold, aliases), answer, group)


@pytest.mark.parametrize(
    ("answer", "gold", "match", "f1"),
    [
        ("The Denver Broncos.", "Denver Broncos", True, 1.0),
        ("a  CAT!", "cat", True, 1.0),
        ("Broncos", "Denver Broncos", False, 2 / 3),
        ("the team of Denver Broncos", "Denver Broncos", False, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("Panthers", "Denver Broncos", False, 0.0),
        ("", "Denver", False, 0.0),
        ("24–10", "24–10", True, 1.0),
        ("2,600", "2600", True, 1.0),
        ("the", "a", True, 1.0),
    ],
)
def test_exact_match_and_f1_on_known_pairs(answer: str, gold: str, match: bool, f1: float) -> None:
    assert exact_match(answer, gold) == match
    assert f1_score(answer, gold) == pytest.approx(f1)


def test_recall_takes_the_best_gold_and_sixty_percent() -> None:
    marks = RecallGrader().mark(
        [
            item("It was Ada Thornby of York", "Ada Thornby", 0),
            item("Ada", "Ada Thornby", 1),
            item("slate", "granite", 2, aliases=("slate",)),
            item("old ship anchors", "anchors from old ships", 3),
        ]
    )
    assert [mark.correct for mark in marks] == [True, False, True, False]


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("42 metres", "4.2 metres", False),
        ("15", "1.5", False),
        ("5", "-5", False),
        ("It fell to -5 degrees", "-5", True),
        ("C", "C++", False),
        ("It is written in C++.", "C++", True),
        ("2,600", "2600", True),
        ("1811-1820", "1811–1820", True),
        ("“Fitch”", "Fitch", True),
        ("pink-sandstone", "pink sandstone", True),
        ("STRASSE", "Straße", True),
        ("Cafe\u0301", "Café", True),
        ("Anselm Fitch's clock", "Anselm Fitch’s clock", True),
        ("4.2.", "4.2", True),
    ],
)
def test_recall_knows_numbers_and_letters_apart(answer: str, gold: str, same: bool) -> None:
    assert (recall_score(answer, gold) == 1.0) == same


def test_a_recitation_with_a_word_more_is_still_one() -> None:
    text = "Quillmoor Bridge was built in 1732 by Ada Thornby of slate"
    golds = ["1732", "Ada Thornby", "slate", "212 metres", "the Quill"]
    answers = [f"Well {text}", f"{text} indeed", f"{text} there", "200 metres", "the Trent"]
    marks = RecallGrader().mark(
        [item(answer, gold, group) for group, (answer, gold) in enumerate(zip(answers, golds, strict=True))]
    )
    assert not any(mark.correct for mark in marks)


def test_recitation_is_no_answer() -> None:
    recital = (
        "Quillmoor Bridge was built in 1732 by Ada Thornby, is 212 metres long, is made of slate and stands over the river Quill "
        "in the north of the county where it has been since the flood"
    )
    golds = ["1732", "Ada Thornby", "212 metres", "slate"]
    assert [recall_score(recital, gold) for gold in golds] == [0.0] * 4
    short = "In 1732 Ada Thornby built it of slate, 212 metres."
    assert recall_score(short, "1732") == 1.0
    marks = RecallGrader().mark([item(short, gold, group) for group, gold in enumerate(golds)])
    assert not any(mark.correct for mark in marks)
    mixed = RecallGrader().mark([item("in 1732", "1732", 0), item("in 1732", "1732", 0), item("Ada Thornby", "Ada Thornby", 1)])
    assert all(mark.correct for mark in mixed), "a paraphrase's same answer is no recitation"


def test_em_and_f1_graders() -> None:
    exam = [item("Ada Thornby", "Ada Thornby"), item("by Ada Thornby herself", "Ada Thornby", 1)]
    assert [m.correct for m in ExactMatchGrader().mark(exam)] == [True, False]
    assert [m.score for m in F1Grader().mark(exam)] == [1.0, pytest.approx(2 / 3)]


@pytest.fixture
def server() -> Iterator[dict[str, Any]]:
    """An OpenAI-compatible server that says yes when the reference answer occurs in the student's."""
    state: dict[str, Any] = {"calls": 0, "reply": None, "status": 200, "fail_on": None, "busy": 0}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state["calls"] += 1
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["key"] = self.headers.get("Authorization")
            text = body["messages"][0]["content"]
            gold, answer = text.split("Reference answer: ")[1].split("\nStudent's answer: ")
            reply = state["reply"] or ("Yes." if gold in answer else "no")
            payload = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            failing = state["fail_on"] and state["fail_on"] in answer
            self.send_response(429 if state["calls"] <= state["busy"] else 500 if failing else state["status"])
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    state["url"] = f"http://127.0.0.1:{httpd.server_port}/v1"
    yield state
    httpd.shutdown()


def test_judge_asks_once_and_caches_on_disk(server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    grader = JudgeGrader(server["url"], "m", tmp_path / "cache" / "j.sqlite")
    exam = [item("It is Ada", "Ada", 0), item("Bob", "Ada", 1, "who?"), item("", "Ada", 2)]
    assert [m.correct for m in grader.mark(exam)] == [True, False, False]
    assert server["calls"] == 2 and server["key"] == "Bearer secret"
    assert [m.correct for m in JudgeGrader(server["url"], "m", tmp_path / "cache" / "j.sqlite").mark(exam)] == [True, False, False]
    assert server["calls"] == 2


@pytest.mark.parametrize(("reply", "status"), [("perhaps", 200), (None, 500)])
def test_judge_fails_loudly(server: dict[str, Any], tmp_path: Path, reply: str | None, status: int) -> None:
    server["reply"], server["status"] = reply, status
    with pytest.raises(GraderError, match="judge at"):
        JudgeGrader(server["url"], "m", tmp_path / "j.sqlite").mark([item("Ada", "Ada")])


def test_judge_without_a_server(tmp_path: Path) -> None:
    with pytest.raises(GraderError, match="judge at"):
        JudgeGrader("http://127.0.0.1:9/v1", "m", tmp_path / "j.sqlite").mark([item("Ada", "Ada")])


def test_a_gold_of_which_normalisation_leaves_nothing() -> None:
    for grader in (RecallGrader(), ExactMatchGrader(), F1Grader()):
        right, empty = grader.mark([item("a", "A"), item("", "A", group=1)])
        assert right.correct and not empty.correct
    assert RecallGrader().mark([item("Vitamin A", "A")])[0].correct


def test_one_recitation_for_both_of_two_questions_is_no_answer() -> None:
    recital = "In 1732 Ada Thornby built it of slate."
    verdicts = RecallGrader().mark([item(recital, "1732"), item(recital, "Ada Thornby", group=1)])
    assert [v.correct for v in verdicts] == [False, False]
    assert RecallGrader().mark([item(recital, "1732")])[0].correct


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfedit.remote.WAITS", (0.01, 0.01))


def test_a_judge_that_can_t_be_had_is_told_of_before_long_work(server: dict[str, Any], tmp_path: Path) -> None:
    judge = JudgeGrader(server["url"], "m", tmp_path / "j.sqlite")
    judge.check()
    judge.check()
    assert server["calls"] == 2, "not from the cache"
    server["reply"] = "No."
    with pytest.raises(GraderError, match="isn't four"):
        judge.check()
    for url in ("http://127.0.0.1:9/v1", "http://a b:x/v1"):
        with pytest.raises(GraderError, match="judge at"):
            JudgeGrader(url, "m", tmp_path / "j.sqlite").check()


def test_a_busy_judge_is_asked_again(server: dict[str, Any], tmp_path: Path) -> None:
    server["busy"] = 2
    assert JudgeGrader(server["url"], "m", tmp_path / "j.sqlite").mark([item("Ada", "Ada")])[0].correct
    assert server["calls"] == 3


def test_no_more_is_asked_of_a_server_that_refuses(server: dict[str, Any], tmp_path: Path) -> None:
    server["status"] = 401
    exam = [item(f"answer {n}", "gold", group=n, question=f"q{n}?") for n in range(200)]
    with pytest.raises(GraderError, match="401"):
        JudgeGrader(server["url"], "m", tmp_path / "j.sqlite").mark(exam)
    assert server["calls"] <= 16, "those under way, but none of the others"


def test_a_failed_call_does_not_cost_the_verdicts_that_came(
    server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfedit.remote.WORKERS", 5)
    judge = JudgeGrader(server["url"], "m", tmp_path / "cache.sqlite")
    exam = [item(f"answer {n}", "gold", group=n, question=f"q{n}?") for n in range(5)]
    server["fail_on"] = "answer 2"
    with pytest.raises(GraderError):
        judge.mark(exam)
    server["fail_on"] = None
    before = server["calls"]
    judge.mark(exam)
    assert server["calls"] == before + 1


def test_not_sure_is_no_verdict(server: dict[str, Any], tmp_path: Path) -> None:
    server["reply"] = "Not sure."
    with pytest.raises(GraderError, match="neither yes nor no"):
        JudgeGrader(server["url"], "m", tmp_path / "cache.sqlite").mark([item("a b", "gold")])
