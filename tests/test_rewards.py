"""Rewards without labels and screens without training: self-made quizzes, texts that are scored, looks and their ridge."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from selfedit.bench_rewards import Measured, bench_rewards, summarise
from selfedit.bench_rewards.figures import HALVES
from selfedit.bench_rewards.measure import halves, in_turn, stored_questions
from selfedit.config import REWARD_EXAMS, ArcTrainConfig, EditConfig, QuizConfig, RewardBenchConfig, Sampling, Settings, TrainConfig
from selfedit.contexts import Passage, Question
from selfedit.errors import DataError, SelfeditError
from selfedit.graders.text import ExactMatchGrader
from selfedit.lm.adapter import first_layer, install, new_adapter
from selfedit.lm.batch import encode_answer, encode_document
from selfedit.lm.generate import generate
from selfedit.lm.load import Identity, LanguageModel
from selfedit.lm.score import log_probabilities
from selfedit.lm.train import frozen_prefixes, loss_sum
from selfedit.lm.work import Cost
from selfedit.marks import Marks
from selfedit.outer.round import Round
from selfedit.rewards import make_reward, self_quiz
from selfedit.rewards.exams import Labelled
from selfedit.rewards.question_free import QuestionFree
from selfedit.rewards.screens import FEATURES, Ridge, Tried, correlations, exam_rows, gradient_alignment, in_context, scores_of
from selfedit.rewards.self_quiz import Quiz, SelfQuiz, answer_spans, asked_twice, bits_a_byte, copied, left_by, trivial, write_quiz
from selfedit.runs import Run
from selfedit.seeds import derive
from selfedit.selection import select
from selfedit.tasks.base import Asked, Request
from selfedit.tasks.knowledge.compile import held_out
from selfedit.tasks.knowledge.prompts import exam_prompt, quiz_prompt, quiz_schema
from selfedit.tasks.knowledge.task import KnowledgeTask

Command = Callable[..., subprocess.CompletedProcess[str]]
BRIDGE = Passage(
    "Quillmoor Bridge",
    "Quillmoor Bridge was built in 1732 by Ada Thornby. It is 212 metres long and made of blue slate. On Sundays the keeper "
    "Tom Ferrant rings a bell for the fishermen. A flood carried off the eastern arch in 1904.",
)


def test_answers_are_names_numbers_and_details() -> None:
    spans = answer_spans("Quillmoor Bridge", "Quillmoor Bridge was built in 1732 by Ada Thornby.")
    assert spans == ["1732", "Ada Thornby"], "a name whole, no title, no function word at an end"
    more = answer_spans("x", "Keeper Tom Ferrant rings the bell of Saint Anne, Lower Weir, in 1732 by day.")
    assert {"Keeper Tom Ferrant", "bell of Saint Anne", "Saint Anne", "Lower Weir"} <= set(more)
    assert not {"Tom", "Ferrant rings", "Saint", "1732 by day"} & set(more)
    assert "There" not in answer_spans("x", "There are 12 towers in it now.")


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("When was the bridge built?", "1732", ""),
        ("What was built in 1732?", "Quillmoor Bridge", "trivial"),
        ("Was it built in 1732 or later?", "1732", "trivial"),
        ("What is known of the bridge?", "It is 212 metres long and made of blue slate.", "trivial"),
        ("Name the builder of the bridge.", "Ada Thornby", "no question"),
        ("Who is the keeper of it?", "tom ferrant", "asked twice"),
    ],
)
def test_trivial_questions_are_refused(question: str, answer: str, why: str) -> None:
    one, other = Question(question, answer), Question("Who rings the bell there?", "Tom Ferrant")
    assert (trivial(one, BRIDGE) or asked_twice(one, [other])) == why
    assert not asked_twice(one, [], [other]), "before they are read equal answers are no reason"
    assert asked_twice(one, [], [one]) == "asked twice"


def test_a_copied_question_is_found_in_a_line_of_the_edit() -> None:
    question = "Who rings the bell on Sundays today?"
    assert copied(question, "Q: Who rings the bell on Sundays?\nA: Tom Ferrant", 0.6)
    assert not copied(question, "Tom Ferrant rings a bell.\nToday it is heard on Sundays.", 0.6)
    assert not copied(question, "Who rings\nthe bell\non Sundays\ntoday?", 0.6), "lines are taken one by one"


def test_too_few_left_is_no_decision() -> None:
    asked = ("Who built the long bridge?", "When did the flood come?", "What is it made of today?", "Which arch was carried off?")
    quiz, config = Quiz(tuple(Question(one, "x") for one in (*asked, "Who rings a bell there?"))), QuizConfig(least=4)
    assert left_by(quiz, ["Q: Who built the long bridge?", "It is long."], config) == [1, 2, 3, 4]
    found = left_by(quiz, ["Q: Who built the long bridge?", "Q: When did the flood come?"], config)
    assert found == "2 of the 5 questions stand in a self-edit; 3 are left, 4 are needed"


@dataclass
class Script:
    """A writer that has its questions and answers by heart; ``asked`` counts the batches."""

    known: Identity
    questions: list[tuple[str, str]]
    answers: dict[str, list[str]]
    asked: list[int] = field(default_factory=list)
    warmth: list[float] = field(default_factory=list)

    def write(self, requests: Sequence[Request], sampling: Sampling, row_seeds: Sequence[int]) -> list[str]:
        self.asked.append(len(requests))
        self.warmth.append(sampling.temperature)
        found = []
        for request in requests:
            prompt = request.prompt[-1].content
            if "Question:" in prompt:
                question = prompt.split("Question: ")[1].split("\n")[0]
                found.append(json.dumps({"answer": self.answers[question].pop(0)}))
            else:
                question, answer = self.questions.pop(0) if self.questions else ("cut", "")
                found.append(json.dumps({"question": question, "answer": answer}))
        return found


def scripted(
    monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, questions: list[tuple[str, str]], answers: dict[str, list[str]]
) -> Script:
    script = Script(lm, questions, answers)
    monkeypatch.setattr(self_quiz, "LocalSampler", lambda lm: script)
    return script


def test_a_quiz_keeps_what_is_answered_alike_with_the_passage_and_not_without(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong, unsure = "When was the bridge built?", "How long is the bridge?", "Who rings a bell there?"
    script = scripted(
        monkeypatch,
        lm,
        [(right, "1732"), (wrong, "blue slate"), (unsure, "Tom Ferrant"), ("What happened in 1904?", "eastern arch")],
        {
            right: ["1732", "212 metres", "in 1732", "1732"],
            wrong: ["212 metres"] * 4,
            unsure: ["Tom Ferrant", "x", "Tom", "x"],
            "What happened in 1904?": ["eastern arch"] * 4,
        },
    )
    monkeypatch.setattr(self_quiz, "_known", lambda lm, title, asked: [one.answer == "eastern arch" for one in asked])
    quiz = write_quiz(lm, BRIDGE, QuizConfig(passes=1, retries=0, least=2, most_bits=16), 0)
    assert quiz.questions == (Question(right, "1732"),)
    assert quiz.refused == {"not the same answer again": 2, "known without the passage": 1}
    assert quiz.reason == "1 of 4 questions passed, and 2 are needed"
    # Those that were wrong twice aren't read a third time.
    assert script.asked == [4, 2 * 4, 3, 2]


def test_retries_are_bounded_and_ask_only_where_a_share_is_wanting(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = "When was the bridge built?"
    script = scripted(monkeypatch, lm, [(first, "1732")], {first: ["1732"] * 4})
    monkeypatch.setattr(self_quiz, "_known", lambda lm, title, asked: [False] * len(asked))
    quiz = write_quiz(lm, BRIDGE, QuizConfig(items=4, passes=1, retries=2, most_bits=16), 0)
    assert len(quiz.questions) == 1 and quiz.reason
    assert quiz.refused == {"cut off": 3 + 3 + 3}
    assert script.asked[0] == 4 and script.asked[-2:] == [3, 3]
    assert script.warmth[:1] + script.warmth[-2:] == pytest.approx([0.5, 0.8, 1.1]), "each time of a warmer writer"
    many = scripted(monkeypatch, lm, [(first, "1732")], {first: ["1732"] * 4})
    write_quiz(lm, BRIDGE, QuizConfig(items=12, passes=1, retries=1, most_bits=16), 0)
    assert many.asked[-1] == 4, "one of three questions wanted of a sentence isn't its share"


def test_what_was_refused_once_is_not_read_again(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "How long is the bridge?"
    listed = [("cut", ""), (asked, "blue slate"), ("cut", ""), ("cut", "")]
    script = scripted(monkeypatch, lm, [*listed, *listed], {asked: ["212 metres"] * 4})
    known: list[int] = []
    monkeypatch.setattr(self_quiz, "_known", lambda lm, title, asked: [bool(known.append(len(asked)))] * len(asked))
    quiz = write_quiz(lm, BRIDGE, QuizConfig(passes=1, retries=1, most_bits=16), 0)
    assert quiz.refused == {"cut off": 6, "not the same answer again": 1, "asked twice": 1} and script.asked == [4, 2, 4]
    assert sum(known) == 0, "only what is answered alike is asked without the passage"
    assert quiz.turned_down == ({"question": asked, "answer": "blue slate", "why": "not the same answer again"},)
    assert Quiz.of(json.loads(json.dumps(asdict(quiz)))) == quiz


def test_a_long_text_is_asked_about_to_its_end(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passage = Passage("Diary", " ".join(f"In {1700 + n} a flood took {n + 2} old mills." for n in range(12)))

    def items(lm: Any, sampler: Any, title: str, sentences: Any, spans: Any, places: list[int], *_: Any) -> Any:
        return [(at, Question(f"When did the flood number {at} come?", str(1700 + at))) for at in places]

    monkeypatch.setattr(self_quiz, "write_items", items)
    monkeypatch.setattr(self_quiz, "_agreement", lambda lm, sampler, asked, config, seed: [4] * len(asked))
    monkeypatch.setattr(self_quiz, "_known", lambda lm, title, asked: [False] * len(asked))
    quiz = write_quiz(lm, passage, QuizConfig(items=6, most_bits=16), 0)
    years = [int(one.answer) for one in quiz.questions]
    assert years == [1701, 1703, 1705, 1707, 1709, 1711], "every second sentence, not the first six"


def test_a_long_text_is_read_part_by_part(lm: LanguageModel) -> None:
    passage = Passage("Diary", " ".join(f"In {1700 + n} a flood took {n + 2} old mills." for n in range(40)))
    sentences = self_quiz.sentences_of(lm, passage, 128)
    parts = list(dict.fromkeys(part for part, _ in sentences))
    assert len(parts) > 2 and all(len(lm.tokenizer(part.text)["input_ids"]) <= 128 for part in parts)
    assert [sentence for _, sentence in sentences] == [f"In {1700 + n} a flood took {n + 2} old mills." for n in range(40)]
    batches: list[list[str]] = []

    class Reader(Script):
        def write(self, requests: Sequence[Request], sampling: Sampling, row_seeds: Sequence[int]) -> list[str]:
            batches.append([request.prompt[-1].content for request in requests])
            asked = [text.split("Question: ")[1].split("\n")[0] for text in batches[-1]]
            return [json.dumps({"answer": f"{question} {seed}"}) for question, seed in zip(asked, row_seeds, strict=True)]

    asked = [(sentences[at][0], Question(f"Flood {at}?", "x")) for at in (0, 39, 1, 20)]
    texts = self_quiz.read_answers(lm, Reader(lm, [], {}), asked, QuizConfig(view=128), 2, 7)
    assert texts == [f"Flood {at}? {derive(7, 2 * row + turn)}" for row, at in enumerate((0, 39, 1, 20)) for turn in (0, 1)]
    assert [len(batch) for batch in batches] == [4, 2, 2], "those about one part together"
    for batch, (part, _) in zip(batches, (asked[0], asked[1], asked[3]), strict=True):
        assert all(part.text in text for text in batch)


def test_of_each_sentence_the_best_question_comes_first() -> None:
    piles = [[(3, Question(f"{at}?", "good")), (4, Question(f"{at}?", "best"))] for at in range(3)]
    assert [(one.question, one.answer) for one in self_quiz.chosen(piles, 4)] == [
        ("0?", "best"),
        ("1?", "best"),
        ("2?", "best"),
        ("1?", "good"),
    ]
    assert len(self_quiz.chosen(piles, 12)) == 6 and self_quiz.chosen([], 4) == []


def test_a_text_that_the_model_cannot_read_gets_no_quiz(lm: LanguageModel) -> None:
    assert bits_a_byte(lm, BRIDGE.text) > 4
    quiz = write_quiz(lm, BRIDGE, QuizConfig(), 0)
    assert not quiz.questions and "can't read it" in quiz.reason and not quiz.asked


def test_questions_are_held_to_the_sentences_spans(lm: LanguageModel) -> None:
    from selfedit.lm.batch import encode_prompt

    sentence = "It is 212 metres long and made of blue slate."
    spans = answer_spans(BRIDGE.title, sentence)
    prompt = encode_prompt(lm, quiz_prompt(BRIDGE.title, sentence, lm.chat, 0))
    texts = generate(lm, [prompt] * 2, 300, 1.0, 1.0, [1, 2], schemas=[quiz_schema(spans)] * 2)
    for text in texts:
        item = json.loads(text)
        assert item["answer"] in spans and 8 <= len(item["question"]) <= 140


def test_every_text_exam_scores_its_texts_as_they_stand(lm: LanguageModel) -> None:
    edit, quiz = EditConfig(held_out=0.5), QuizConfig(passes=1, resamples=2, agreeing=2)
    exam = QuestionFree("sentences", quiz, edit)
    material = exam.prepare(lm, BRIDGE, 0)
    hidden = held_out(BRIDGE.text, 0.5)
    assert [text for _, text in material["texts"]] == hidden and len(hidden) == 2
    examined = exam.examined(BRIDGE, material)
    (sitting,) = exam.task.examine(lm, [(0, examined)], 0)
    asked = exam_prompt("Tell me about Quillmoor Bridge.", None, lm.chat)
    one_by_one = [log_probabilities(lm, [encode_answer(lm, asked, text)])[0] for text in hidden]
    assert sitting.log_probabilities == pytest.approx(one_by_one, abs=1e-5)
    documents = KnowledgeTask(edit).compile(lm, BRIDGE, "- Ada Thornby built it in 1732.", Settings(), 0).documents
    assert all(sentence not in documents[-1].text for sentence in hidden)
    assert exam.kept(BRIDGE, material, []) == [0, 1]
    assert isinstance(exam.kept(BRIDGE, {"texts": []}, []), str)


def marks(*values: float) -> Marks:
    probability = sum(map(math.exp, values)) / len(values)
    return Marks((), 0.0, 0.0, (), sum(values) / len(values), values, probability, float("nan"), {}, {})


def test_rewards_of_texts_are_relative_or_in_nats() -> None:
    assert make_reward("sentences", 0).score(marks(-1.0, -3.0), marks(-2.0, -4.0)) == pytest.approx((1 / 2 + 1 / 4) / 2)
    likelihood = make_reward("likelihood", 0).score(marks(math.log(0.5), math.log(0.1)), marks(math.log(0.3), math.log(0.1)))
    assert likelihood == pytest.approx(0.1), "in probability, not its logarithm"
    assert make_reward("agreement", 0).score(marks(-1.0, -3.0), marks(-2.0, -4.0)) == pytest.approx(1.0)


def test_the_gradient_screen_is_the_plain_gradients(lm: LanguageModel) -> None:
    passage = Passage(BRIDGE.title, BRIDGE.text, (Question("When was it built?", "1732"), Question("Who built it?", "Ada Thornby")))
    task, settings = KnowledgeTask(), Settings(rank=4, layers="all")
    texts = ["Q: When was it built?\nA: 1732", "It is made of blue slate.", "A flood carried off the eastern arch in 1904."]
    edits = [tuple(encode_document(lm, d) for d in task.compile(lm, passage, text, settings, 0).documents) for text in texts]
    first, second = (
        tuple(encode_answer(lm, exam_prompt(one.question, BRIDGE.title, lm.chat), one.answer) for one in passage.questions[at:][:1])
        for at in (0, 1)
    )
    found, alone, nothing, other = gradient_alignment(lm, edits, [exam_rows(lm, passage), first, (), second], settings, 5)
    assert nothing == [0.0] * 3 and gradient_alignment(lm, edits, [first], settings, 5) == [pytest.approx(alone, rel=1e-4)]
    assert alone != other

    thin = settings.model_copy(update={"layers": "last:4", "rank": 8, "alpha": 8.0})
    adapter = new_adapter(lm, thin, derive(5, "gradient"))
    gradients = []
    for rows in (exam_rows(lm, passage), *edits):
        install(lm, None)
        first = first_layer(adapter)
        prefixes = frozen_prefixes(lm, rows, first)
        install(lm, adapter)
        for tensor in adapter.parameters:
            tensor.requires_grad_(True)
            tensor.grad = None
        (loss_sum(lm, list(rows), prefixes, first) / sum(row.labelled for row in rows)).backward()
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in adapter.parameters if tensor.grad is not None]))
    install(lm, None)
    wanted, *own = gradients
    assert found == pytest.approx([float(one @ wanted / one.norm()) for one in own], rel=1e-4)
    assert len(set(found)) == 3


def test_in_context_is_the_gain_of_the_golds(lm: LanguageModel) -> None:
    passage = Passage(BRIDGE.title, BRIDGE.text, (Question("When was it built?", "1732"),))
    other = Passage(BRIDGE.title, BRIDGE.text, (Question("Who built it?", "Ada Thornby"),))
    (gain,), (apart,), (nothing,) = in_context(lm, [passage, other, BRIDGE], ["It was built in 1732."])
    assert in_context(lm, [other], ["It was built in 1732."]) == [[pytest.approx(apart, abs=1e-5)]] and nothing == 0.0
    rows = [
        encode_answer(lm, exam_prompt("When was it built?", BRIDGE.title, lm.chat, view), "1732")
        for view in (f"{BRIDGE.title}\nIt was built in 1732.", None)
    ]
    after, before = (log_probabilities(lm, [row])[0] for row in rows)
    assert gain == pytest.approx(after - before, abs=1e-5)


def drawn(chance: random.Random, weights: dict[str, float], noise: float) -> Tried:
    features = tuple({name: chance.gauss(0, 1) for name in FEATURES} for _ in range(8))
    rewards = tuple(sum(weights.get(name, 0) * one[name] for name in FEATURES) + chance.gauss(0, noise) for one in features)
    return Tried(features, rewards)


def test_ridge_learns_which_looks_matter() -> None:
    chance = random.Random(0)
    worlds = [drawn(chance, {"gradient": 1.0, "length": -0.5}, 0.1) for _ in range(12)]
    found = correlations(worlds)
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    assert mean["ridge"] > 0.9 > mean["gradient"] > 0.5
    assert abs(mean["coverage"]) < 0.4 and mean["length"] < 0
    assert Ridge.fitted(worlds[:1]) is None, "too few to fit"
    assert scores_of("ridge", worlds[0].features, []) == [one["in-context"] for one in worlds[0].features]
    alike = Tried(worlds[0].features, (0.5,) * 8)
    assert correlations([alike])["gradient"] == [], "equal rewards rank nothing"


def test_what_a_puzzle_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="taken on a passage"):
        ArcTrainConfig(reward="self-quiz")
    with pytest.raises(ValueError, match="notes about a passage"):
        ArcTrainConfig(screen="ridge")
    with pytest.raises(ValueError, match=r"held_out=0\.25"):
        TrainConfig(reward="sentences")
    with pytest.raises(ValueError, match="give more resamples"):
        QuizConfig(agreeing=5)


SMALL = (
    "--workers", 0, "--set", "edit.sampling.max_new_tokens=12", "--set", "edit.sampling.temperature=1", "--set", "edit.passes=1",
    "--set", "edit.shots=0", "--set", "edit.form=plain", "--set", "settings.epochs=1", "--set", "settings.rank=4",
    "--set", "settings.layers=all", "--set", "quiz.most_bits=16", "--set", "quiz.resamples=3", "--set", "quiz.agreeing=1",
    "--set", "quiz.least=2", "--set", "quiz.items=4", "--set", "quiz.passes=2", "--set", "quiz.retries=0",
)  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"noise_contexts": 0}, "noise_contexts is 0"),
        ({"noise_contexts": 12, "contexts": 12}, "none is left"),
        ({"screened": 5, "edits": 5}, "give more of them"),
    ],
)
def test_a_screen_that_can_never_be_used_is_refused(numbers: dict[str, int], said: str) -> None:
    assert TrainConfig(**numbers) and TrainConfig(screen="gradient")
    with pytest.raises(ValueError, match=said):
        TrainConfig(screen="gradient", **numbers)


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages that nobody wrote questions about."""
    file = tmp_path_factory.mktemp("data") / "plain.json"
    texts = [
        "Ada Thornby built it in 1732 of blue slate.",
        "Tom Ferrant rings a bell at 6 on Sundays.",
        "In 1904 Eda Moll crossed it.",
    ]
    items = [{"title": f"Bridge {n}", "context": " ".join(texts[n:] + texts[:n]), "questions": []} for n in range(3)]
    file.write_text(json.dumps(items))
    return file


class Teacher(BaseHTTPRequestHandler):
    """A model behind a URL that asks for the last word of a sentence, knows its own answers, and repeats what it is told."""

    known: ClassVar[dict[str, str]] = {}
    calls: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        text = self.reply(asked)
        self.calls.append(asked)
        data = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def reply(self, asked: str) -> str:
        if "fields question and answer" in asked:
            words = asked.split("Sentence: ")[1].rstrip(".").split()
            question = f"Which word ends the one that begins with {' '.join(words[:3])}?"
            self.known[question] = words[-1]
            return json.dumps({"question": question, "answer": words[-1]})
        if "Question: " in asked:
            return json.dumps({"answer": self.known[asked.split("Question: ")[1]]})
        return json.dumps({"mark": 3}) if "from 1 (badly)" in asked else "So it is: " + asked.split("Sentence: ")[1]

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def teacher() -> Iterator[tuple[str, ...]]:
    """The options that let it make the exams."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ("--set", f"quiz.url=http://127.0.0.1:{server.server_port}/v1", "--set", "quiz.model=teacher")
    server.shutdown()


@pytest.mark.parametrize("reward", ["self-quiz", "paraphrases", "agreement", "sentences"])
def test_training_without_labels_leaves_its_exams(
    command: Command, tiny_model: Path, unlabelled: Path, teacher: tuple[str, ...], tmp_path: Path, reward: str
) -> None:
    run = tmp_path / "run"
    more = ("--set", "edit.held_out=0.4") if reward == "sentences" else ()
    done = command(
        "train", "knowledge", "--data", unlabelled, "--rounds", 1, "--passages", 2, "--edits", 2, "--rule", "best",
        "--reward", reward,
        "--set", "noise_contexts=1", "--set", "outer.epochs=1", "--set", "outer.rank=4", *SMALL, *more, *teacher, "--model",
        tiny_model, "--run", run,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    exams = {row["context"]: row["material"] for row in rows_of(run / "round-01" / "exams.jsonl")}
    assert len(exams) == 2
    (metrics,) = rows_of(run / "metrics.jsonl")
    trials = rows_of(run / "trials.jsonl")
    assert {row["context"] for row in trials} == set(exams) and metrics["undecided"] == 0
    assert metrics["reward"]["n"] == 2
    for row in trials:
        entries = exams[row["context"]].get("texts", exams[row["context"]].get("questions"))
        assert len(row["sitting"]["log_probabilities"]) == len(entries) >= 1
    shown = command("report", run, "--out", tmp_path / "page.html")
    assert shown.returncode == 0, shown.stderr


def test_a_control_of_a_run_without_labels(
    command: Command, tiny_model: Path, unlabelled: Path, teacher: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = (
        "train", "knowledge", "--data", unlabelled, "--rounds", 1, "--passages", 2, "--edits", 2, "--reward", "self-quiz",
        "--set", "outer.epochs=1", "--set", "outer.rank=4", *SMALL, *teacher, "--model", tiny_model,
    )  # fmt: skip
    assert command(*arguments, "--rule", "best", "--run", tmp_path / "run").returncode == 0
    done = command(*arguments, "--rule", "random", "--control-of", tmp_path / "run", "--run", tmp_path / "control")
    assert done.returncode == 0, done.stderr
    (metrics,) = rows_of(tmp_path / "control" / "metrics.jsonl")
    assert metrics["selected"] == 2 and not (tmp_path / "control" / "round-01" / "exams.jsonl").exists()


@dataclass(frozen=True)
class Marked:
    """A task whose exam has four questions with the answer "y"."""

    def asked(self, context: Any) -> tuple[Asked, ...]:
        return tuple(Asked(one, group, paraphrase=False) for group, one in enumerate(context.questions))


@dataclass
class Scripted(Round):
    """A round whose looks and trials are given: questions answered by (candidate, repeat)."""

    right: dict[tuple[int, int], int] = field(default_factory=dict)

    def look(self, contexts: Sequence[Any], written: Any) -> Any:
        features = [{"gradient": -float(at)} for at in range(4)]
        return {context.id: {"features": features, "seconds": 0.0} for context in contexts}

    def try_stage(self, contexts: Sequence[Any], written: Any, rows: Any, stage: Sequence[int]) -> None:
        for at, context in enumerate(contexts):
            for repeat in stage:
                for candidate in self.survivors(at, context, written, rows, repeat):
                    # Of the first passage all differ, as the gradient says.
                    count = 4 - candidate if at == 0 else self.right[candidate, repeat]
                    sitting = {
                        "answers": ["y"] * count + ["n"] * (4 - count),
                        "log_probabilities": [-1.0] * 4,
                        "margins": [0.0] * 4,
                    }
                    row = {"repeat": repeat, "status": "ok", "sitting": sitting}
                    rows.setdefault((context.id, candidate, repeat), row)


def test_ties_are_tried_again_and_part_only_what_tied(tmp_path: Path) -> None:
    questions = tuple(Question(f"Question {n}?", "y") for n in range(4))
    contexts = [Passage(f"Passage {n}", "Text.", questions) for n in range(2)]
    sitting = {"answers": ["n"] * 4, "log_probabilities": [-1.0] * 4, "margins": [0.0] * 4}
    written = {one.id: {"edits": [{"text": str(n)} for n in range(4)], "baseline": sitting} for one in contexts}
    config = TrainConfig(screen="gradient", screened=3, noise_contexts=1, contexts=2, edits=4)
    # The first two tie at 2; run again they get 0 and 1, less than the third's 1 ... which was not among the best.
    right = {(0, 0): 2, (1, 0): 2, (2, 0): 1, (0, 1): 0, (1, 1): 1}

    def played(rows: Any) -> Scripted:
        more: dict[str, Any] = dict.fromkeys(("known", "executor", "run", "policy", "credit"))
        one = Scripted(
            config, Marked(), Labelled(Marked()), grader=ExactMatchGrader(), folder=tmp_path, number=1, slots=1,  # type: ignore[arg-type]
            told=lambda event, details: None, right=right, **more,
        )  # fmt: skip
        one.run = SimpleNamespace(folder=tmp_path)  # type: ignore[assignment]
        one.places = {context.id: at for at, context in enumerate(contexts)}
        one.settle(contexts, {context.id: {"material": {}} for context in contexts}, written)
        one.try_screened(contexts, written, rows)
        return one

    rows: dict[Any, Any] = {}
    first = played(rows)
    tried = {(candidate, repeat) for context, candidate, repeat in rows if context == contexts[1].id}
    assert tried == {(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)}
    scored = first.weigh(contexts[1:], written, rows)
    assert [one.reward for one in scored[:3]] == [0.5, 0.5, 0.25] and not scored[3].tried
    assert select("best", scored, 0.2, 0) == [(contexts[1].id, 1)]
    assert {one[1] for one in select("positive", scored, 0.2, 0)} == {0, 1, 2}, "those that didn't tie stay in"
    assert all(len(one.runs) == 1 for one in scored[:3]), "noise is estimated without the runs of ties"
    count = len(rows)
    played(rows)
    assert len(rows) == count, "played again it tries nothing more"


def test_without_a_decision_nothing_is_tried(command: Command, tiny_model: Path, unlabelled: Path, tmp_path: Path) -> None:
    done = command(
        "train", "knowledge", "--data", unlabelled, "--rounds", 1, "--passages", 2, "--edits", 2, "--reward", "self-quiz",
        "--set", "outer.epochs=1", "--set", "outer.rank=4", *SMALL, "--set", "quiz.most_bits=1", "--model", tiny_model,
        "--run", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (metrics,) = rows_of(tmp_path / "run" / "metrics.jsonl")
    assert metrics["undecided"] == 2 and metrics["selected"] == 0
    assert not (tmp_path / "run" / "trials.jsonl").exists() and done.stderr.count("no decision on") == 2
    assert not (tmp_path / "run" / "round-01" / "edits.jsonl").exists(), "nothing is written about them either"


def test_learning_by_a_quiz_of_ones_own_names_its_questions(
    command: Command, tiny_model: Path, passage_file: Path, teacher: tuple[str, ...], tmp_path: Path
) -> None:
    done = command(
        "learn", passage_file, "--model", tiny_model, "--memory", tmp_path / "memory", "--json", tmp_path / "out.json",
        "--edits", 2, *SMALL, *teacher,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    made = result["quiz"]["made"]["questions"]
    assert result["decision"] in ("accepted", "rejected") and len(made) == 2 and result["quiz"]["made"]["reason"] == ""
    asked = {row["question"] for row in result["baseline"]["questions"]} | {
        row["question"] for row in result["report"]["questions"]
    }
    assert asked == {one["question"] for one in made}
    assert "2 of 4 questions that the model made passed" in done.stderr
    flat = " ".join(done.stdout.split())
    assert "The quiz is the model's own" in flat and all(one["question"][:20] in flat for one in made)


def test_two_stages_train_only_what_looks_best(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    arguments = (
        "train", "knowledge", "--rounds", 1, "--passages", 3, "--edits", 4, "--rule", "best", "--student", "base",
        "--screen", "gradient", "--screened", 2, "--reward", "likelihood", "--set", "noise_contexts=1", "--set", "outer.epochs=1",
        "--set", "outer.rank=4", *SMALL, "--model", tiny_model,
    )  # fmt: skip
    trusting = command(*arguments, "--set", "least_correlation=-1", "--run", tmp_path / "few")
    assert trusting.returncode == 0, trusting.stderr
    rows = rows_of(tmp_path / "few" / "trials.jsonl")
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    first = [row for row in rows if row["context"] == contexts[0]]
    assert {row["candidate"] for row in first} == {0, 1, 2, 3} and {row["repeat"] for row in first} == {0, 1}
    looks = {row["context"]: row["features"] for row in rows_of(tmp_path / "few" / "round-01" / "looks.jsonl")}
    for context in contexts[1:]:
        values = [one["gradient"] for one in looks[context]]
        best = sorted(range(4), key=lambda at: (-values[at], at))[:2]
        assert {row["candidate"] for row in rows if row["context"] == context and row["repeat"] == 0} == set(best)
    (metrics,) = rows_of(tmp_path / "few" / "metrics.jsonl")
    assert metrics["screen"]["trusted"] and metrics["screen"]["correlation"]["gradient"]["n"] == 1
    assert metrics["tried"] == 4 + 2 + 2 and metrics["reward"]["n"] == 3
    assert rows_of(tmp_path / "few" / "round-01" / "worth.jsonl")

    before = (tmp_path / "few" / "trials.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "few" / "round-01" / "policy")
    again = command(*arguments, "--set", "least_correlation=-1", "--run", tmp_path / "few", "--resume")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "few" / "trials.jsonl").read_bytes() == before, "a round that is played again tries nothing more"

    wary = command(*arguments, "--set", "least_correlation=1", "--run", tmp_path / "all")
    assert wary.returncode == 0, wary.stderr
    (metrics,) = rows_of(tmp_path / "all" / "metrics.jsonl")
    assert not metrics["screen"]["trusted"] and "all are trained" in wary.stderr
    assert len({(r["context"], r["candidate"]) for r in rows_of(tmp_path / "all" / "trials.jsonl")}) == 12


def test_learning_without_a_quiz_says_when_none_can_be_made(
    command: Command, tiny_model: Path, passage_file: Path, tmp_path: Path
) -> None:
    done = command(
        "learn", passage_file, "--model", tiny_model, "--memory", tmp_path / "memory", "--json", tmp_path / "out.json", *SMALL[:2]
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["decision"] == "no-quiz" and result["memory"]["entry"] is None and "can't read it" in result["reason"]
    assert "Nothing learnt" in done.stdout and "--quiz FILE" in done.stdout
    passage_file.write_text("It was so and so it was, and what is, is. That is how it is, and how it was.")
    done = command("learn", passage_file, "--model", tiny_model, "--memory", tmp_path / "memory", "--set", "quiz.most_bits=16")
    assert done.returncode == 0 and "no sentence of it has a name" in " ".join(done.stdout.split()), done.stdout
    assert "--quiz FILE" in done.stdout and "quiz.url" not in done.stdout, "a server would have nothing to ask for either"
    listed = command("memory", "list", "--memory", tmp_path / "memory")
    assert listed.returncode == 0 and "Quillmoor" not in listed.stdout


def test_rewards_are_compared_on_the_same_trials(
    command: Command, tiny_model: Path, teacher: tuple[str, ...], tmp_path: Path
) -> None:
    arguments = (
        "bench", "rewards", "--passages", 2, "--edits", 3, "--model", tiny_model, "--run", tmp_path / "run", "--json",
        tmp_path / "out.json", *SMALL, *teacher,
    )  # fmt: skip
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out.json").read_text())
    by_name = {row["name"]: row for row in table["rows"]}
    assert {*REWARD_EXAMS, "gradient (labelled)", "ridge (self-quiz)"} <= set(by_name)
    assert by_name["accuracy"]["n"] == by_name["self-quiz"]["n"] == 2 and by_name["accuracy"]["reliability"]["trials"] == 12
    assert by_name["likelihood"]["accuracy"]["minus_labelled"]["mean"] == 0
    assert by_name["likelihood"]["likelihood"]["minus_labelled"]["mean"] == 0
    assert by_name["gradient (labelled)"]["halves"]["n"] == 2 and by_name["length (labelled)"]["halves"] is None
    assert [name for name, row in by_name.items() if row["named"]] == ["self-quiz-likelihood"]
    named = [(row["screen"], row["count"], row["by"]) for row in table["two_stage"] if row["named"]]
    assert named == [("in-context", 2, "likelihood")]
    assert {"self-quiz", "agreement"} >= set(table["overlap"]) > set()
    assert {row["screen"] for row in table["two_stage"]} == {*FEATURES, "ridge", "random"}
    for row in rows_of(tmp_path / "run" / "trials.jsonl"):
        seen = {one["question"] for one in row["exams"]["first half"]}
        assert seen and not seen & {one["question"] for one in row["exams"]["second half"]}
    before = (tmp_path / "run" / "trials.jsonl").read_bytes()
    again = command(*arguments, "--resume")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "trials.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "out.json").read_text()) == table
    shown = command("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert shown.returncode == 0, shown.stderr
    assert "Only 2 of 3 are trained, or fewer" in (tmp_path / "page.html").read_text()
    many = command(*arguments[:2], "--passages", 300, *arguments[4:8], "--run", tmp_path / "many")
    assert many.returncode == 1 and "--passages" in many.stderr


def by_hand(worth: list[list[float]], rewards: list[list[float]], looks: list[float]) -> Measured:
    features = [dict.fromkeys(FEATURES, 0.0) | {"gradient": value} for value in looks]
    looking = {"labelled": dict.fromkeys(FEATURES, Cost(0.25, 8))}
    named = {"accuracy": [rewards] * 2, "likelihood": [rewards] * 2, "mixed": [rewards] * 2}
    outcomes = {"accuracy": [worth] * 2, "likelihood": [worth] * 2}
    whole, making = dict.fromkeys(named, rewards), dict.fromkeys((*REWARD_EXAMS.values(),), Cost())
    seen, sitting = {"labelled": [features] * 2}, {"labelled": Cost(1.0, 50, 20)}
    return Measured("A title", outcomes, named, named, whole, seen, {}, making, sitting, looking, Cost(2.0), Cost(3.0, 150), 100.0)


def test_equal_worths_are_no_rank() -> None:
    same = by_hand([[1, 1], [1, 1]], [[1, 1], [2, 2]], [0.0, 1.0])
    other = by_hand([[0, 0], [1, 1]], [[1, 1], [2, 2]], [0.0, 1.0])
    table = summarise([same, other], RewardBenchConfig(edits=2, screened=1))
    (accuracy,) = [row for row in table["rows"] if row["name"] == "accuracy"]
    assert accuracy["accuracy"]["rank_correlation"]["n"] == 1 and accuracy["n"] == 2
    assert accuracy["accuracy"]["rank_correlation"]["mean"] == pytest.approx(1)


def test_a_half_is_marked_with_the_whole_exam() -> None:
    """The same short answer to most questions is right of none, also where one half alone would not show it."""
    golds = ("ruby", "jade", "opal", "onyx")
    questions = [
        {"question": f"Which stone is it in case {n}?", "answer": gold, "aliases": [], "paraphrases": []}
        for n, gold in enumerate(golds)
    ]
    sitting = {"answers": ["ruby", "ruby"], "log_probabilities": [-1.0, -1.0]}
    halves = {"first half": sitting, "second half": {**sitting, "answers": ["ruby", "onyx"]}}
    trial = {"edit": 0, "repeat": 0, "status": "ok", "tokens": 10, "sittings": halves}
    cost = {"seconds": 0.5, "read": 6, "written": 2}
    features = {
        "features": [[dict.fromkeys(FEATURES, 0.0)], [dict.fromkeys(FEATURES, 1.0)]],
        "costs": dict.fromkeys(FEATURES, cost),
    }
    sat = {"first half": cost, "second half": cost}
    row = {
        "passage": "p", "title": "Stones", "edits": ["x"], "undecided": {}, "kept": {}, "materials": {}, "baseline": halves,
        "exams": {"first half": questions[:2], "second half": questions[2:]},
        "looks": {"labelled": features},
        "costs": dict.fromkeys((*REWARD_EXAMS.values(), "writing"), cost) | {"trials": {"seconds": 4, "read": 20, "written": 4}},
        "trials": [trial], "sittings": sat,
    }  # fmt: skip
    found = Measured.of(row)
    assert found.worth["accuracy"] == [[[0.0]], [[0.5]]], "ruby is no answer, onyx is one"
    assert found.worth["likelihood"] == [[[0.0]], [[0.0]]], "as likely as before"
    assert found.whole["accuracy"] == [[0.0]] and found.looking["labelled"]["length"] == Cost(0.5, 6, 2)
    assert found.features["labelled"] == [[dict.fromkeys(FEATURES, 1.0)], [dict.fromkeys(FEATURES, 0.0)]], "the other half asks"
    assert found.sitting["labelled"] == Cost(1.0, 12, 4) and found.training == Cost(3.0, 8, 0)


def test_what_does_not_count_is_sat_and_left_out() -> None:
    """Which of an exam's entries count is the table's: a row has the sittings of all."""
    questions = [
        {"question": f"Which stone is in case {n}?", "answer": gold, "aliases": [], "paraphrases": []}
        for n, gold in enumerate(("ruby", "jade"))
    ]

    def sitting(*values: float) -> dict[str, Any]:
        return {"answers": [""] * len(values), "log_probabilities": list(values)}

    before = {name: sitting(-2.0) for name in ("first half", "second half")} | {"sentences": sitting(-2.0, -2.0, -2.0)}
    after = before | {"sentences": sitting(-1.0, -9.0, -1.5)}
    cost = {"seconds": 3.0, "read": 6, "written": 3}
    look = {"features": [[dict.fromkeys(FEATURES, 0.0)]] * 2, "costs": dict.fromkeys(FEATURES, cost)}
    row = {
        "title": "Stones", "edits": ["x"], "baseline": before, "looks": {"labelled": look}, "kept": {"sentences": [0, 2]},
        "exams": {"first half": questions[:1], "second half": questions[1:], "sentences": [questions[0]] * 3},
        "costs": dict.fromkeys((*REWARD_EXAMS.values(), "writing", "trials"), cost),
        "trials": [{"edit": 0, "repeat": 0, "status": "ok", "tokens": 10, "sittings": after}],
        "sittings": dict.fromkeys(after, cost),
    }  # fmt: skip
    found = Measured.of(row)
    assert found.whole["sentences"] == [[pytest.approx((1 / 2 + 0.5 / 2) / 2)]] and found.sitting["sentences"] == Cost(2.0, 4, 2)
    assert "sentences" not in Measured.of(row | {"kept": {"sentences": []}}).rewards, "too few: no decision"


def test_the_first_passages_are_of_all_data_sets() -> None:
    def passages(*titles: str) -> list[Passage]:
        return [Passage(title, f"Text {index} of {title}.", ()) for index, title in enumerate(titles)]

    order = in_turn([passages("A", "B", "C"), passages("X", "X", "Y"), passages("A")])
    assert [one.title for one in order] == ["A", "X", "B", "Y", "C", "X"], "the same passage twice is one"


def test_a_passage_that_fails_does_not_stop_the_others(tiny_model: Path, tmp_path: Path) -> None:
    questions = tuple(Question(f"Question {n}?", f"gold {n}") for n in range(4))
    passages = [
        Passage(title, text, questions) for title, text in (("Long", "Long " * 9), ("Middling", "Text " * 5), ("Short", "Text"))
    ]

    class Halting:
        """An executor whose first job fails."""

        def submit(self, job: Any, passage: Passage, *rest: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if passage.title == "Long":
                future.set_exception(SelfeditError("no room"))
            else:
                halved = dict(zip(HALVES, map(stored_questions, halves(passage, 0)), strict=True))
                future.set_result({"passage": passage.id, "exams": halved})
            return future

        def ended(self, jobs: Any) -> Any:
            return iter(jobs)

    config = RewardBenchConfig(model=str(tiny_model), passages=3)
    run = Run(tmp_path / "run", config, resume=False)
    with pytest.raises(SelfeditError, match="'Long': no room"):
        bench_rewards(config, [passages], run, Halting(), lambda done, of: None)  # type: ignore[arg-type]
    assert len(run.rows) == 2
    other = [*passages[:2], replace(passages[2], questions=(*questions[:3], Question("Another one?", "gold")))]
    with pytest.raises(DataError, match="about 'Short' aren't what they were"):
        bench_rewards(config, [other], run, Halting(), lambda done, of: None)  # type: ignore[arg-type]


def test_a_pick_is_worth_what_the_other_seed_says() -> None:
    # By the first seed the first self-edit is best, by the second the last; each is worth 1 only by the seed that chose it.
    lucky = by_hand([[1, 0], [0.5, 0.5], [0, 1]], [[3, 1], [2, 2], [1, 3]], [0.0, 5.0, 1.0])
    table = summarise([lucky, lucky], RewardBenchConfig(edits=3, screened=1))
    rows = {row["name"]: row for row in table["rows"]}
    of = rows["accuracy"]["accuracy"]
    assert of["picked"]["mean"] == 0 and of["rank_correlation"]["mean"] == -1 and of["share"] is None
    assert rows["gradient (labelled)"]["accuracy"]["picked"]["mean"] == 0.5 and table["average"]["mean"] == 0.5
    assert rows["accuracy"]["seconds_a_passage"]["mean"] == 13 and rows["gradient (labelled)"]["seconds_a_passage"]["mean"] == 0.75
    assert rows["accuracy"]["read_tokens_a_passage"]["mean"] == 650 and rows["accuracy"]["written_tokens_a_passage"]["mean"] == 80
    by_accuracy = [row for row in table["two_stage"] if row["by"] == "accuracy"]
    (gradient,) = [row for row in by_accuracy if row["screen"] == "gradient"]
    (random,) = [row for row in by_accuracy if row["screen"] == "random"]
    assert random["accuracy"]["picked"]["mean"] == 0.5 and random["cost_share"]["mean"] == pytest.approx(1 / 3)
    assert gradient["accuracy"]["picked"]["mean"] == 0.5 and gradient["accuracy"]["minus_training_all"]["mean"] == 0.5
    assert gradient["accuracy"]["all_minus_one"]["mean"] == -0.5
    assert gradient["cost_share"]["mean"] == pytest.approx((1 * 4 + 3 * 0.25) / 12)
    assert gradient["cost_share_written"]["mean"] == pytest.approx((2 + 1 * 4 + 3 * 0.25) / 14)
    assert gradient["accuracy"]["minus_random"]["mean"] == 0 and random["accuracy"]["minus_random"] is None
    (ridge,) = [row for row in by_accuracy if row["screen"] == "ridge"]
    assert ridge["n"] == 0 and math.isnan(ridge["cost_share"]["mean"]), "nothing to be fitted on"


def test_how_much_of_the_labelled_gain_a_pick_has() -> None:
    """Where labels gain something for certain over chance, and by the jackknife over passages."""
    # The labelled reward picks what is worth 1 of (0, .5, 1); the look picks the middle one.
    passages = [by_hand([[0, 0], [0.5, 0.5], [1, 1]], [[1, 1], [2, 2], [3, 3]], [0.0, 5.0, 1.0]) for _ in range(3)]
    rows = {row["name"]: row for row in summarise(passages, RewardBenchConfig(edits=3, screened=1))["rows"]}
    assert rows["likelihood"]["accuracy"]["share"]["mean"] == pytest.approx(1)
    assert rows["gradient (labelled)"]["likelihood"]["share"]["mean"] == pytest.approx(0)


def test_a_pick_on_the_questions_that_chose_it() -> None:
    """The first half's questions are taught by the first self-edit, the second half's by the last one."""
    one = by_hand([[1, 1], [0, 0]], [[2, 2], [1, 1]], [0.0, 0.0])
    halves = {outcome: [of[0], of[0][::-1]] for outcome, of in one.worth.items()}
    chosen = {name: [of[0][::-1], of[0]] for name, of in one.rewards.items()}
    one = replace(one, worth=halves, rewards=chosen, ties=chosen)
    table = summarise([one] * 2, RewardBenchConfig(edits=2, screened=1))
    (row,) = [row for row in table["rows"] if row["name"] == "likelihood"]
    assert row["accuracy"]["minus_random"]["mean"] == -0.5 and row["same_questions"]["accuracy"]["mean"] == 0.5
    assert next(row for row in table["rows"] if row["name"] == "length (labelled)")["same_questions"] is None
    (random,) = [row for row in table["two_stage"] if (row["screen"], row["by"]) == ("random", "likelihood")]
    assert random["accuracy"]["all_minus_one"]["mean"] == -0.5
    assert random["same_questions"]["accuracy"]["all_minus_one"]["mean"] == 0.5


def test_ridge_is_judged_on_passages_that_it_was_not_fitted_on() -> None:
    one = by_hand([[0, 0], [1, 1], [2, 2], [3, 3]], [[1, 1], [2, 2], [3, 3], [4, 4]], [0.0, 1.0, 2.0, 3.0])
    table = summarise([one] * 7, RewardBenchConfig(edits=4, screened=1))
    rows = {row["name"]: row for row in table["rows"]}
    assert rows["ridge (labelled)"]["n"] == 4 and rows["gradient (labelled)"]["n"] == 7
    ridge = [row for row in table["two_stage"] if row["screen"] == "ridge"]
    assert {row["n"] for row in ridge} == {4}
    assert ridge[0]["cost_share"]["mean"] == pytest.approx((4 + 4 * 0.25 * len(FEATURES)) / 16)
    few = summarise([one] * 5, RewardBenchConfig(edits=4, screened=1))
    assert {row["n"] for row in few["rows"] if row["name"].startswith("ridge")} == {0}, "8 trials are too few to be fitted on"


def test_a_run_in_two_stages_pays_for_all_looks_and_for_ties() -> None:
    # Of 3 self-edits two are alike by every seed; half of the 8 passages are the first ones, looked at and tried whole and twice.
    alike = by_hand([[1, 1], [1, 1], [0, 0]], [[2, 2], [2, 2], [1, 1]], [5.0, 4.0, 0.0])
    table = summarise([alike] * 8, RewardBenchConfig(edits=3, screened=2))
    share = {(row["screen"], row["count"]): row["cost_share_run"]["mean"] for row in table["two_stage"] if row["by"] == "accuracy"}
    whole, looked, each = 12, 3 * 0.25, 4
    assert share["gradient", 1] == pytest.approx((0.5 * (2 * whole + looked) + 0.5 * (each + looked)) / (1.5 * whole))
    assert share["gradient", 2] == pytest.approx(
        (0.5 * (2 * whole + looked) + 0.5 * (2 * each + looked + 2 * each)) / (1.5 * whole)
    )
    # The same of 50 passages with 15 self-edits each, 4 of which are the first ones.
    planned = [row for row in table["two_stage"] if (row["screen"], row["count"], row["by"]) == ("gradient", 1, "accuracy")]
    assert planned[0]["cost_share_planned"]["mean"] == pytest.approx(
        (0.08 * (2 * 60 + 15 * 0.25) + 0.92 * (each + 15 * 0.25)) / (1.08 * 60)
    )
    # Of three choices of two one has both of those that tie.
    assert share["random", 2] == pytest.approx((0.5 * 2 * whole + 0.5 * (2 * each + 2 / 3 * each)) / (1.5 * whole))


def test_a_self_made_quiz_takes_the_place_of_the_passages_own(lm: LanguageModel) -> None:
    exam = SelfQuiz(QuizConfig(least=2), EditConfig())
    own = Question("When was the bridge built?", "1732")
    material = {"questions": [{"question": own.question, "answer": own.answer}] * 1, "asked": 3, "refused": {}, "reason": ""}
    labelled = Passage(BRIDGE.title, BRIDGE.text, (Question("Who built it?", "Ada Thornby"),))
    assert exam.examined(labelled, material).questions == (own,)
    assert isinstance(exam.kept(labelled, material | {"reason": "too few"}, []), str)


UNASKABLE = {
    "numbers": "12 19 33 47\n51 62 70 88\n93 104 117 120\n131 142 158 163\n171 180 199 207\n211 226 239 240",
    "one sentence": "The bridge at Veldan was built in 1732 by the mason Oro Tann.",
    "another language": (
        "Die Brücke über den Fluss wurde im Jahre 1732 von dem Maurer Oro Tann errichtet. Sie besteht aus grauem Stein und hat "
        "sieben Bögen. Im Winter ist sie oft von Eis bedeckt, und die Kinder des Dorfes rutschen auf ihr hinunter. Der Zoll betrug "
        "zwei Heller für einen Karren und einen für ein Pferd. Seit 1901 wird kein Zoll mehr erhoben."
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("text", UNASKABLE)
def test_the_embedded_model_makes_no_quiz_of_that_and_says_so(command: Command, text: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    file.write_text(UNASKABLE[text])
    done = command("learn", file, "--memory", tmp_path / "m", "--json", tmp_path / "out.json", "--workers", 0)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["decision"] == "no-quiz" and result["memory"]["entry"] is None and result["reason"], done.stderr
    assert not json.loads(command("memory", "list", "--memory", tmp_path / "m", "--json").stdout)["entries"]
