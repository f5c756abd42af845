"""The outer loop: selection, statistics, and a toy world in which the policy learns which self-edit teaches the fact."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from conftest import make_tiny_model
from selfedit.config import EditConfig, Settings, TrainConfig
from selfedit.contexts import Passage, Question
from selfedit.edits import Document, Message, Prompt, TrainingPlan
from selfedit.errors import DataError, InvalidEditError
from selfedit.executors.local import LocalExecutor, ModelChoice
from selfedit.graders.text import ExactMatchGrader
from selfedit.lm.batch import encode_answer
from selfedit.lm.load import Identity, LanguageModel, identify, load_model
from selfedit.outer.draw import check_begun, draw
from selfedit.outer.loop import train
from selfedit.runs import Run
from selfedit.selection import Scored, preferences, round_summary, select
from selfedit.stats import best_of_retested, mean_and_error, paired_difference, reliability
from selfedit.tasks.base import Asked, Candidate, Item, Request, Sitting, sit_items
from selfedit.tasks.knowledge.credit import LineCredit
from selfedit.tasks.knowledge.task import KnowledgeTask

EDITS = "abcdefgh"
FACT = "c"
WRITE: Prompt = (Message("text", "Edit:"),)
ASK: Prompt = (Message("text", "Fact:"),)


@dataclass(frozen=True)
class Place:
    """A context of the toy world; all teach the same fact."""

    id: str


@dataclass(frozen=True)
class OneLetter:
    """A user's own task: a self-edit is one letter, and teaches the model to answer the question with it."""

    def style(self, candidate: int) -> str:
        return "letter"

    def requests(self, lm: Identity, context: Place, candidate: int) -> list[Request]:
        return [Request(WRITE, 3)]

    def joined(self, candidate: int, texts: Sequence[str]) -> str:
        return texts[0]

    def compile(self, lm: Identity, context: Place, text: str, settings: Settings, seed: int) -> TrainingPlan:
        if text not in tuple(EDITS):
            raise InvalidEditError(f"{text!r} is none of {EDITS}")
        return TrainingPlan((Document(text, ASK),), settings, seed)

    def asked(self, context: Place) -> tuple[Asked, ...]:
        return (Asked(Question("Fact?", FACT), 0, paraphrase=False),)

    def examine(self, lm: LanguageModel, seats: Sequence[tuple[int, Place]], first: int) -> list[Sitting]:
        found = sit_items(lm, [Item(ASK, FACT, (), slot) for slot, _ in seats], first, longest=3)
        return [Sitting((answer,), (likelihood,), (margin,)) for answer, likelihood, margin in found]


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers, 32 wide, that writes each of the 8 letters about equally often, and no fact."""
    folder = make_tiny_model(tmp_path_factory.mktemp("toy") / "model", chat=False, layers=2)
    lm = load_model(str(folder), dtype="float32")
    torch.manual_seed(0)
    lm.model.requires_grad_(True)
    optimiser = torch.optim.AdamW(lm.model.parameters(), lr=1e-2)
    rows = [encode_answer(lm, WRITE, letter) for letter in EDITS] + [encode_answer(lm, ASK, "?")] * 8
    ids = torch.tensor([row.ids for row in rows])
    for _ in range(150):
        lm.model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    lm.model.save_pretrained(folder)
    return folder


def toy_config(model: Path, seed: int, **more: Any) -> TrainConfig:
    inner = Settings(rank=4, alpha=8, layers="all", epochs=30, learning_rate=5e-2, clip=1e6)
    outer = Settings(rank=4, alpha=8, layers="all", epochs=4, learning_rate=1e-2, batch_size=4)
    sampling = {"sampling": {"temperature": 1.0, "top_p": 1.0, "resamples": 0}}
    chosen = {"rounds": 3, "contexts": 6, "edits": 8, "noise_contexts": 1} | more
    return TrainConfig(model=str(model), dtype="float32", seed=seed, settings=inner, outer=outer, edit=sampling, **chosen)


@pytest.fixture(scope="module")
def executor(toy_model: Path) -> Iterator[LocalExecutor]:
    with LocalExecutor(ModelChoice(str(toy_model), dtype="float32"), 0) as running:
        yield running


def play(folder: Path, config: TrainConfig, executor: LocalExecutor, places: int = 0) -> list[dict[str, Any]]:
    contexts = [Place(f"place {n}") for n in range(places or config.rounds * config.contexts)]
    run = Run(folder, config, resume=folder.exists())
    return list(train(config, OneLetter(), [contexts], ExactMatchGrader(), run, executor, lambda event, details: None)["rounds"])


def test_in_a_toy_world_the_policy_learns_what_teaches(toy_model: Path, executor: LocalExecutor, tmp_path: Path) -> None:
    rises = []
    for seed in range(5):
        rounds = play(tmp_path / f"best-{seed}", toy_config(toy_model, seed, rule="best"), executor)
        rewards = [row["reward"]["mean"] for row in rounds]
        print(rewards)
        rises.append(rewards[-1] - rewards[0])
    assert min(rises) > 0.1, rises


def test_in_a_toy_world_random_edits_teach_nothing(toy_model: Path, executor: LocalExecutor, tmp_path: Path) -> None:
    changes = []
    for seed in range(5):
        run = play(tmp_path / f"random-{seed}", toy_config(toy_model, seed, rule="random"), executor)
        assert all(row["selected"] == 6 for row in run)
        letters = [letters_of(tmp_path / f"random-{seed}", number) for number in (1, 3)]
        changes.append(share(letters[1]) - share(letters[0]))
    change = paired_difference(changes, [0.0] * 5)
    print(changes)
    assert change.low <= 0 <= change.high, changes


def test_a_finished_run_goes_on_with_more_rounds_and_not_with_fewer(
    toy_model: Path, executor: LocalExecutor, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"contexts": 2, "edits": 3, "rule": "best", "merge": True}
    first, second = (toy_config(toy_model, 0, rounds=rounds, **small) for rounds in (1, 2))
    whole = tmp_path / "whole"
    play(whole, second, executor, places=4)
    play(tmp_path / "grown", first, executor, places=4)
    merged = tmp_path / "grown" / "merged" / "model.safetensors"
    before = merged.read_bytes()
    play(tmp_path / "grown", second, executor, places=4)
    weights = "round-02/policy/adapter_model.safetensors"
    assert (tmp_path / "grown" / weights).read_bytes() == (whole / weights).read_bytes()
    assert merged.read_bytes() == (whole / "merged" / "model.safetensors").read_bytes() != before
    assert json.loads((tmp_path / "grown" / "run.json").read_text())["config"]["rounds"] == 2
    with pytest.raises(DataError, match="made with rounds=2, now 1"):
        Run(tmp_path / "grown", first, resume=True)


def letters_of(run: Path, number: int) -> list[str]:
    rows = [json.loads(line) for line in (run / f"round-{number:02d}" / "edits.jsonl").read_text().splitlines()]
    return [edit["text"] for row in rows for edit in row["edits"]]


def share(letters: list[str]) -> float:
    return fmean(letter == FACT for letter in letters)


def scored(*rewards: float, context: str = "x", usable: bool = True) -> list[Scored]:
    return [Scored(context, index, reward, reward, 0.0, usable) for index, reward in enumerate(rewards)]


def test_selection_rules() -> None:
    rows = [*scored(0.0, 0.4, 0.4), *scored(-0.2, 0.0, context="y"), *scored(0.0, context="z", usable=False)]
    assert select("best", rows, 0.2, 0) == [("x", 1), ("y", 1)]
    assert select("positive", rows, 0.2, 0) == [("x", 1), ("x", 2)]
    assert select("best-positive", rows, 0.2, 0) == [("x", 1)]
    assert select("top-fraction", rows, 0.5, 0) == [("x", 0), ("x", 1), ("x", 2)]
    halved = [replace(one, tried=True, runs=({},) * (2 if one.candidate else 1)) for one in scored(0.9, *[0.1] * 3)]
    assert len(select("top-fraction", halved, 0.5, 0)) == 2, "a share of all, though halving let one go"
    assert ("x", 0) not in select("top-fraction", halved, 1.0, 0)
    tied = [Scored("x", 0, 0.4, 0.4, 0.1, True), Scored("x", 1, 0.4, 0.4, 0.3, True)]
    assert select("best", tied, 0.2, 0) == [("x", 1)], "ties go by the margin"
    assert preferences(rows, rows) in ([("x", 2, 0), ("y", 1, 0)], [("x", 1, 0), ("y", 1, 0)])
    assert preferences(rows, rows[:1] + rows[2:]) == [("x", 2, 0), ("y", 1, 0)], "what halving let go is not the best"
    drawn = [select("random", rows, 0.2, seed) for seed in range(40)]
    assert {pick for picks in drawn for pick in picks} == {("x", 0), ("x", 1), ("x", 2), ("y", 0), ("y", 1)}
    assert all(len(picks) == 2 for picks in drawn)


def test_reliability_on_made_up_variances() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    rewards = []
    for _ in range(400):
        edits = generator.normal(0, 2.0, 5)
        rewards.append([[float(edit + generator.normal(0, 1.0)) for _ in range(3)] for edit in edits])
    found = reliability(rewards)
    assert found is not None
    assert found.edit_variance == pytest.approx(4.0, rel=0.1) and found.seed_variance == pytest.approx(1.0, rel=0.1)
    assert found.single == pytest.approx(0.8, abs=0.03) and found.mean == pytest.approx(12 / 13, abs=0.02)
    picked = best_of_retested(rewards)
    assert picked["average"].mean < picked["retested"].mean < picked["seen"].mean
    assert 0 < found.single_se < 0.03 and 0 < found.mean_se < 0.02 and abs(found.single - 0.8) < 4 * found.single_se
    one = reliability(rewards[:1])
    assert one is not None and math.isnan(one.single_se), "one passage has no error"
    assert reliability([[[1.0], [2.0]]]) is None
    assert mean_and_error([]).n == 0


def test_data_that_have_changed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "round-01").mkdir()
    (tmp_path / "round-01" / "edits.jsonl").write_text('{"context": "a"}\n')
    check_begun(tmp_path, [[Place("a"), Place("b")], [Place("c")]])
    with pytest.raises(DataError, match=r"round 1 has 1 contexts that would not be drawn for it now; give --data as it was"):
        check_begun(tmp_path, [[Place("b"), Place("c")], [Place("a")]])


def test_rewards_of_one_context_are_one(toy_model: Path) -> None:
    rows = [replace(one, runs=({"accuracy": one.reward},)) for one in (*scored(0.2, 0.4), *scored(0.9, context="y"))]
    summary = round_summary(rows, [("x", 0), ("x", 1), ("y", 0)], "accuracy")
    assert summary["reward_selected"]["n"] == 2 and summary["reward_selected"]["mean"] == pytest.approx(0.6)
    assert summary["tried"] == 3 and round_summary(scored(0.0, 0.0), [], "accuracy")["tried"] == 0, "a control tries nothing"


def test_a_run_without_enough_contexts_says_so(toy_model: Path, executor: LocalExecutor, tmp_path: Path) -> None:
    config = toy_config(toy_model, 0)
    run = Run(tmp_path / "run", config, False)
    with pytest.raises(DataError, match=r"3 rounds of 6 need 18"):
        train(config, OneLetter(), [[Place("a")]], ExactMatchGrader(), run, executor, lambda *_: None)


def test_small_data_sets_are_drawn_from_as_often_as_large_ones_while_they_last(toy_model: Path) -> None:
    large, small = [Place(f"l{n}") for n in range(20)], [Place(f"s{n}") for n in range(3)]
    rounds = draw(toy_config(toy_model, 0, rounds=2, contexts=4), [large, [*small, large[0]]])
    first, second = ([context.id for context in contexts] for contexts in rounds)
    assert len({*first, *second}) == 8, "each context once, also one that stands in two data sets"
    assert {place.id for place in small} <= {*first, *second}
    alone = draw(toy_config(toy_model, 0, rounds=1, contexts=4), [large])
    assert [one for one in first if one[0] == "l"][:1] == [alone[0][0].id], "each set in its own shuffled order"


LESSONS = Passage(
    "Weir", "Tamsin Orr built it of slate in 1732.",
    (Question("When?", "1732", (), ("In which year?",)), Question("Of what?", "slate"), Question("Who?", "Tamsin Orr")),
)  # fmt: skip


def line_credit() -> tuple[LineCredit, list[Candidate]]:
    """Three self-edits of pairs about the one sentence; the gains are of the wordings 1732, 1732, slate, Tamsin Orr."""
    edit = EditConfig(styles=("self-qa",), passes=1)
    written = (
        ("Q: When was it built?\nA: 1732\nQ: When?\nA: When\nQ: What stone?\nA: of slate", (0.1, 0.3, 0.4, 0.0)),
        ("Q: In what year did she build it?\nA: in 1732\nQ: Who was it?\nA: Tamsin Orr", (0.5, 0.5, 0.9, 0.05)),
        ("Q: Where?\nA: the moon of Bessarabia", (0.9, 0.9, 0.9, 0.9)),
    )
    return LineCredit(KnowledgeTask(edit)), [Candidate(n, (text,), gains) for n, (text, gains) in enumerate(written)]


def test_a_row_is_put_together_of_the_lines_that_taught_best(tiny_model: Path) -> None:
    credit, candidates = line_credit()
    (row,) = credit.rows(identify(str(tiny_model)), LESSONS, credit.task.asked(LESSONS), candidates)
    # 1732 by the second (.5 against .2), slate by the first, which alone has it; the name taught too little to be credited (.05),
    # but fills the row up; what isn't in the passage, or is in its own question, does not; in the order of the passage.
    pairs = ["Q: Who was it?\nA: Tamsin Orr", "Q: What stone?\nA: of slate", "Q: In what year did she build it?\nA: in 1732"]
    assert row["completion"] == "\n".join(pairs) and row["lines"] == 3 and row["candidates"] == [0, 1]
    assert "slate" in row["messages"][-1]["content"]
    nothing = [Candidate(one.number, one.texts, (0.0, 0.0, 0.05, 0.0)) for one in candidates]
    assert credit.rows(identify(str(tiny_model)), LESSONS, credit.task.asked(LESSONS), nothing) == []


def test_the_control_of_lines_draws_as_many_to_the_same_prompt(tiny_model: Path) -> None:
    credit, candidates = line_credit()
    known = identify(str(tiny_model))
    wanted = credit.rows(known, LESSONS, credit.task.asked(LESSONS), candidates)
    drawn = [credit.random_rows(known, LESSONS, candidates, [*wanted, {"messages": [], "lines": 1}], seed)[0] for seed in range(40)]
    assert all(row["messages"] == wanted[0]["messages"] and row["lines"] == 3 for row in drawn)
    found = {part for row in drawn for part in row["completion"].split("Q: ") if part}
    assert len(found) >= 4 and not any("moon" in part for part in found), "any line that would be trained on, and no other"
    # As the run's rows are filled up: three that say something else each, in the order of the passage.
    for row in drawn:
        answers = [line.partition("A: ")[2] for line in row["completion"].splitlines() if line.startswith("A: ")]
        assert answers[:2] == ["Tamsin Orr", "of slate"] and answers[2] in ("1732", "in 1732")
    (elsewhere,) = credit.random_rows(known, LESSONS, candidates, [{"messages": [], "lines": 2}], 0)
    assert elsewhere["messages"] == wanted[0]["messages"] and elsewhere["lines"] == 2, "a row that can't be had is another one"
