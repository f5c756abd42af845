from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfedit.config import EditConfig, LearnConfig, Sampling, Settings
from selfedit.contexts import Passage, Question
from selfedit.edits import SelfEdit
from selfedit.errors import DataError, MemoryStoreError
from selfedit.executors.local import LocalExecutor, ModelChoice, cores, default_workers, result, workers_that_pay
from selfedit.graders.text import RecallGrader
from selfedit.inner import Outcome, run_trials
from selfedit.learn import Candidate, choose, enough, guess_rate, learn, noise_chance
from selfedit.lm.batch import encode_answer
from selfedit.lm.score import log_probabilities
from selfedit.marks import Marks, split_quiz
from selfedit.memory.ledger import Base, Memory
from selfedit.memory.unfinished import Unfinished
from selfedit.tasks.base import Asked, Sitting
from selfedit.tasks.knowledge.exam import Paper, exam_questions, sit_exams
from selfedit.tasks.knowledge.prompts import exam_prompt


def marks(by_fact: list[float], margins: list[float] | None = None, probability: float = 0.0) -> Marks:
    values = margins or [0.0] * len(by_fact)
    mean, facts = sum(values) / len(values), dict(enumerate(by_fact))
    return Marks((), sum(by_fact) / len(by_fact), 0.0, (), -9.0, (), probability, mean, facts, dict(enumerate(values)))


def candidate(m: Marks | None) -> Candidate:
    return Candidate(SelfEdit("c", "s", "t"), [], marks=m)


def test_the_best_by_accuracy_then_probability_then_index() -> None:
    assert choose([candidate(None), candidate(None)]) is None
    assert choose([candidate(marks([0, 1])), candidate(None), candidate(marks([1, 1]))]) == 2
    assert choose([candidate(marks([0, 1], [9, 9], 0.1)), candidate(marks([1, 0], [0, 0], 0.2))]) == 1
    assert choose([candidate(marks([0, 1])), candidate(marks([1, 0]))]) == 0


def test_few_questions_ask_for_more_than_one_lucky_answer() -> None:
    three = marks([0, 0, 0], [-3, -3, -3])
    assert not enough(marks([0, 0, 0], [-1, -1, -1]), three), "no gain in accuracy"
    assert not enough(marks([1, 0, 0], [-1, -4, -4]), three)
    assert enough(marks([1, 0, 0], [-1, -2, -4]), three)
    assert enough(marks([1, 1, 0], [-1, -4, -4]), three)
    assert not enough(marks([0.5, 0, 0], [-1, -1, -1]), three), "half a fact"
    assert not enough(None, three)
    six = marks([0] * 6)
    assert enough(marks([1, 0, 0, 0, 0, 0], [-9] * 6), six)


def asked_and_answered(answers: list[str]) -> tuple[list[Asked], Outcome]:
    golds = ["Ada Thornby", "1732", "slate"]
    asked = [Asked(Question(f"Q{n}?", gold), n, False) for n, gold in enumerate(golds)]
    return asked, Outcome("ok", "", (Sitting(tuple(answers), (0.0, 0.0, 0.0)),), (), 0, 0.0)


def test_the_chance_of_noise_counts_luck_and_all_that_was_tried() -> None:
    baseline, good = marks([0, 0, 0]), marks([1, 1, 1])
    asked, exact = asked_and_answered(["Ada Thornby", "1732", "slate"])
    rate = guess_rate(asked, exact.sittings)
    assert rate == pytest.approx(1 / 8), "six answers held against other questions, none right, one hit and one miss added"
    best = candidate(good)
    best.outcomes = (exact,)
    assert noise_chance([best, candidate(None)], 0, baseline, asked) == pytest.approx(rate**3)
    _, reciting = asked_and_answered(["1732 slate Ada Thornby"] * 3)
    lucky = candidate(good)
    lucky.outcomes = (reciting,)
    one, two = noise_chance([lucky], 0, baseline, asked), noise_chance([lucky, lucky], 0, baseline, asked)
    assert one is not None and two is not None and 0.6 < one < two < 1
    assert noise_chance([candidate(None)], None, baseline, asked) is None


def test_a_lesson_that_costs_earlier_ones_more_than_the_budget_is_not_kept(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfedit.learn.enough", lambda marks, baseline: marks is not None)
    monkeypatch.setattr(
        "selfedit.learn._others",
        lambda grader, earlier, *_: [{"entry": n, "title": "", "before": 0.5, "after": 0.2} for n, _ in earlier],
    )
    questions = [Question(f"What is it {n}?", f"a {n}") for n in range(3)]

    def learnt(title: str, budget: float) -> dict[str, Any]:
        config = LearnConfig(
            model=str(tiny_model), dtype="float32", edits=1, keep="stack", budget=budget, settings=Settings(rank=4, epochs=1),
            edit=EditConfig(form="plain", sampling=Sampling(max_new_tokens=8)),
        )  # fmt: skip
        passage = Passage(title, f"{title} is made of slate. It stands.")
        return learn(config, passage, questions, tmp_path / "m", RecallGrader(), lambda *_: None, workers=0)

    assert learnt("Tower", 0.1)["decision"] == "accepted", "there is nothing earlier to be lost"
    before = Memory.open(tmp_path / "m").digest()
    refused = learnt("Bridge", 0.1)
    assert refused["decision"] == "rejected" and refused["over_budget"] and refused["memory"]["entry"] is None
    assert Memory.open(tmp_path / "m").digest() == before
    kept = learnt("Bridge", 0.3)
    assert kept["decision"] == "accepted" and not kept["over_budget"]


def test_an_interrupted_call_goes_on_and_finds_what_a_whole_one_finds(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [Question(f"What is it {n}?", f"a {n}") for n in range(3)]
    passage = Passage("Tower", "The tower is made of slate. It stands by 12 mills.")
    config = LearnConfig(
        model=str(tiny_model), dtype="float32", edits=3, slots=1, settings=Settings(rank=4, epochs=2),
        edit=EditConfig(form="plain", sampling=Sampling(max_new_tokens=8, temperature=1.0)),
    )  # fmt: skip
    told: list[tuple[str, dict[str, Any]]] = []

    def learnt(memory: str, **changed: Any) -> dict[str, Any]:
        told.clear()
        now = config.model_copy(update=changed)
        return learn(now, passage, questions, tmp_path / memory, RecallGrader(), lambda *one: told.append(one), workers=0)

    def without_seconds(found: dict[str, Any]) -> Any:
        return found | {"config": {}, "candidates": [row | {"seconds": 0} for row in found["candidates"]]}

    whole = learnt("whole")
    unfinished = tmp_path / "cut" / "unfinished"
    assert not (tmp_path / "whole" / "unfinished").exists(), "nothing is left of what is through"
    calls = 0

    def trials(*arguments: Any) -> list[Outcome]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return run_trials(*arguments)

    monkeypatch.setattr("selfedit.learn.run_trials", trials)
    with pytest.raises(KeyboardInterrupt):
        learnt("cut")
    assert {file.stem for file in unfinished.glob("*/*.json")} == {"self-edits", "exam", "trials-0-by-1"}
    monkeypatch.setattr("selfedit.learn.write_as", None)
    # Another grader marks what is there.
    assert without_seconds(learnt("cut", grader="em")) == without_seconds(whole) and calls == 4, "two of three trials were left"
    assert told[0] == ("going on", {"done": {"self-edits", "exam", "trials-0-by-1"}})
    left = dict(told)["wrote"]["candidates"][1:]
    assert dict(told)["wrote"]["steps"] == sum(one.plans[0].steps for one in left)
    assert not unfinished.exists()


def test_a_commit_that_fails_is_made_again(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfedit.learn.enough", lambda marks, baseline: marks is not None)
    questions = [Question(f"What is it {n}?", f"a {n}") for n in range(3)]
    config = LearnConfig(
        model=str(tiny_model), dtype="float32", edits=1, settings=Settings(rank=4, epochs=1),
        edit=EditConfig(form="plain", sampling=Sampling(max_new_tokens=8)),
    )  # fmt: skip
    told: list[str] = []

    def learnt() -> dict[str, Any]:
        told.clear()
        passage = Passage("Tower", "The tower is made of slate. It stands.")
        return learn(config, passage, questions, tmp_path / "m", RecallGrader(), lambda what, _: told.append(what), workers=0)

    def full(*_: Any) -> int:
        raise OSError("no space left")

    with monkeypatch.context() as disk, pytest.raises(MemoryStoreError, match="no space left"):
        disk.setattr("selfedit.memory.ledger._add_state", full)
        learnt()
    assert learnt()["decision"] == "accepted" and told[0] == "going on", "the adapter that went with the commit is trained again"
    assert not (tmp_path / "m" / "unfinished").exists()
    memory = Memory.open(tmp_path / "m")
    Unfinished(memory, ["another"]).folder.mkdir(parents=True)
    with memory.writing():
        memory.undo_last()
    assert not (tmp_path / "m" / "unfinished").exists(), "of no use to another state"


def test_what_an_interrupted_call_left_is_of_no_other(tiny_model: Path, tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", Base("b", "f"))
    here = Unfinished(memory, ["one"])
    with LocalExecutor(ModelChoice(str(tiny_model)), 0) as executor:
        sitting = Sitting(("yes",), (-0.1,), (float("nan"),))
        assert result(here.submit(executor, "sat", list[Sitting], given, sitting)) == [sitting]
        again = Unfinished(memory, ["one"])
        found = result(again.submit(executor, "sat", list[Sitting], given, None))
        assert again.done == {"sat"} and repr(found) == repr([sitting]), "also what isn't a number"
        assert result(again.submit(executor, "sat", list[Sitting], given, sitting, whole=lambda _: False)) == [sitting]
        for name in ("sat", "later"):
            (here.folder / f"{name}.json").write_text('[{"answers": 1}]')
        damaged = Unfinished(memory, ["one"])
        assert damaged.done == {"sat", "later"}
        assert result(damaged.submit(executor, "sat", list[Sitting], given, sitting)) == [sitting] and not damaged.done
    assert not Unfinished(memory, ["another"]).done and not (here.folder / "sat.json").exists()
    again.close()
    assert not here.folder.exists()


def given(lm: Any, sitting: Sitting) -> list[Sitting]:
    return [sitting]


def test_what_is_given_up_is_not_waited_for(tiny_model: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with LocalExecutor(ModelChoice(str(tiny_model)), 1) as executor:
        job = executor.submit(long_work, begun)
        while not begun.exists() and not job.done():
            time.sleep(0.05)
        executor.give_up()
        start = time.monotonic()
    assert time.monotonic() - start < 30 and begun.exists()


def long_work(lm: Any, begun: Path) -> None:
    begun.touch()
    time.sleep(120)


def test_the_halves_of_a_quiz() -> None:
    questions = [Question(f"Q{n}?", "a") for n in range(5)]
    choosing, reporting = split_quiz(questions, 0.6, 0)
    assert len(choosing) == 3 and sorted(choosing + reporting) == [0, 1, 2, 3, 4]
    assert (choosing, reporting) == split_quiz(questions, 0.6, 0)
    assert len({tuple(split_quiz(questions, 0.6, seed)[0]) for seed in range(20)}) > 3
    assert [len(half) for half in split_quiz(questions[:2], 0.9, 0)] == [1, 1]
    with pytest.raises(DataError, match="at least 2"):
        split_quiz(questions[:1], 0.5, 0)


def test_a_margin_weighs_the_gold_against_the_other_questions_golds(lm: Any) -> None:
    golds = ["Ada Thornby", "1732", "slate", "1732"]
    questions = [Question(f"Question {n}?", gold, paraphrases=(f"Else {n}?",)) for n, gold in enumerate(golds)]
    passage = Passage("Bridge", "text", tuple(questions))
    asked = tuple(exam_questions(questions))
    with_margins, without = sit_exams(lm, [Paper(passage, asked, "titled", margins=True), Paper(passage, asked, "titled")])
    assert without.margins == () and without.log_probabilities == pytest.approx(with_margins.log_probabilities, abs=1e-5)
    assert without.answers == with_margins.answers
    prompt = exam_prompt("Else 1?", "Bridge", lm.chat)
    own, ada, slate = log_probabilities(lm, [encode_answer(lm, prompt, gold) for gold in ("1732", "Ada Thornby", "slate")])
    assert with_margins.margins[3] == pytest.approx(own - (ada + slate) / 2, abs=1e-5)
    (alone,) = sit_exams(lm, [Paper(passage, tuple(exam_questions(questions, [0])), "titled", margins=True)])
    assert alone.margins == alone.log_probabilities


def test_a_quiz_that_asks_twice_is_refused() -> None:
    twice = [Question("Who built it?", "a"), Question("When?", "b"), Question("who built it", "a")]
    with pytest.raises(DataError, match=r"questions 1 and 3"):
        split_quiz(twice, 0.5, 0)
    paraphrased = [Question("Who?", "a", paraphrases=("By whom?",)), Question("By whom?", "a")]
    with pytest.raises(DataError, match="twice"):
        split_quiz(paraphrased, 0.5, 0)


def test_questions_that_differ_by_a_sign_are_two() -> None:
    for one, other in (("What is C?", "What is C++?"), ("Is it 4.2?", "Is it 42?"), ("What costs $5?", "What costs 5%?")):
        assert split_quiz([Question(one, "a"), Question(other, "b")], 0.5, 0)


def test_half_a_question_s_gain_is_weighed_by_the_luck_of_either_wording() -> None:
    asked, outcome = asked_and_answered(["Ada Thornby", "1732", "slate"])
    both = [wording for one in asked for wording in (one, replace(one, paraphrase=True))]
    good = candidate(marks([0.5, 0, 0]))
    good.outcomes = (replace(outcome, sittings=(Sitting(("Ada Thornby", "x", "y", "y", "z", "z"), (0.0,) * 6),)),)
    lucky = guess_rate(both, good.outcomes[0].sittings)
    chance = noise_chance([good], 0, marks([0, 0, 0]), both)
    assert chance == pytest.approx(1 - (1 - lucky) ** 6)


@pytest.mark.parametrize(("speeds", "workers"), [({1: 1, 2: 1.9, 4: 3.5}, 4), ({1: 1, 2: 1.9, 4: 2.0}, 2), ({1: 1, 2: 0.7}, 1)])
def test_workers_are_as_many_as_bring_more(speeds: dict[int, float], workers: int) -> None:
    assert workers_that_pay(speeds.__getitem__, max(speeds)) == workers


def test_the_timing_of_workers_leaves_torch_as_it_was() -> None:
    before = torch.get_num_threads()
    assert 1 <= default_workers("cpu") <= cores()
    assert torch.get_num_threads() == before
    assert default_workers("meta") == 1, "one process, whatever isn't a CPU"


def test_a_worker_whose_parent_is_gone_already_ends() -> None:
    code = (
        "import multiprocessing, types; multiprocessing.parent_process = lambda: types.SimpleNamespace(pid=-1)\n"
        "from selfedit.executors.local import _die_with_parent; _die_with_parent(); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
