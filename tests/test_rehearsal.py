"""The base's own answers beside a lesson: what they are, that they stay what they are, and what they are for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfedit.config import OuterConfig, Settings
from selfedit.edits import Document, Message, TrainingPlan
from selfedit.lm.adapter import Adapter, install, install_stack, new_adapter, standing
from selfedit.lm.batch import soft_targets
from selfedit.lm.load import load_model
from selfedit.lm.score import token_log_probabilities
from selfedit.lm.train import schedule_steps, train
from selfedit.lm.train_many import Job, train_many
from selfedit.tasks.general import general_questions
from selfedit.tasks.general.rehearsal import _asked, rehearsals, rehearsed, rows_of

LESSON = Document("red", (Message("user", "What colour is Alder?"),))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan(rehearsal: float, documents: int = 1, seed: int = 0) -> TrainingPlan:
    settings = Settings(rank=4, alpha=8, layers="all", epochs=10, learning_rate=5e-3, rehearsal=rehearsal)
    return TrainingPlan((LESSON,) * documents, settings, seed)


def test_nothing_that_is_rehearsed_is_asked_by_the_general_exam() -> None:
    asked = _asked()
    assert not {text.lower() for text in asked["questions"]} & {text.lower() for text in general_questions()}
    assert len(asked["questions"]) == len(set(asked["questions"]))


def test_they_are_made_once_and_read_again(tiny_model: Path, cache: Path) -> None:
    made = rehearsals(load_model(str(tiny_model), "cpu", "float32"))
    (file,) = (cache / "rehearsals").glob("*.safetensors")
    before = file.read_bytes()
    read = rehearsals(load_model(str(tiny_model), "cpu", "float32"))
    assert [row.ids for row in read] == [row.ids for row in made] and file.read_bytes() == before
    for row in read:
        assert row.soft is not None and row.soft.ids.shape[0] == row.labelled > 0
        assert torch.allclose(row.soft.shares.sum(1), torch.ones(row.labelled), atol=1e-5)
    file.write_bytes(before[: len(before) // 2])
    again = rehearsals(load_model(str(tiny_model), "cpu", "float32"))
    assert [row.ids for row in again] == [row.ids for row in made] and file.read_bytes() == before, "a damaged file is made again"


def test_the_base_alone_is_rehearsed(tiny_model: Path, cache: Path) -> None:
    plain = rehearsals(load_model(str(tiny_model), "cpu", "float32"))
    for file in (cache / "rehearsals").iterdir():
        file.unlink()
    lm = load_model(str(tiny_model), "cpu", "float32")
    noise = new_adapter(lm, plan(0).settings, 0)
    generator = torch.Generator().manual_seed(1)
    loud = Adapter({name: (a, torch.randn(b.shape, generator=generator)) for name, (a, b) in noise.weights.items()}, noise.alpha)
    install_stack(lm, [loud])
    install(lm, loud)
    with standing(lm, [loud]):
        again = rehearsals(lm)
    for row, other in zip(again, plain, strict=True):
        assert row.ids == other.ids and row.soft is not None and other.soft is not None
        assert torch.equal(row.soft.ids, other.soft.ids) and torch.equal(row.soft.shares, other.soft.shares)


def test_a_plan_gets_its_share_drawn_by_its_seed(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    first, again, other = (rows_of(lm, [plan(0.5, 3, seed)])[0] for seed in (0, 0, 1))
    assert [row.soft is None for row in first] == [True] * 3 + [False] * 30 and plan(0.5, 3).steps == 60
    assert first == again != other
    steps = schedule_steps(first, plan(0.5, 3).settings, 0)
    epochs = [[row for ((row,),) in steps[at : at + 6]] for at in range(0, 60, 6)]
    assert len(steps) == 60 and all(sum(row.soft is None for row in shown) == 3 for shown in epochs), "the lesson in each epoch"
    fresh = [row.ids for shown in epochs for row in shown if row.soft is not None]
    assert len(set(fresh)) == 30, "what is rehearsed is new in each epoch"
    pool = len(rehearsals(lm))
    drawn = rehearsed(lm, pool + 5, 1, 0)
    assert len(drawn) == pool + 5 and len({row.ids for row in drawn[:pool]}) == len({row.ids for row in rehearsals(lm)})
    assert len(rows_of(lm, [plan(0.0, 3)])[0]) == 3


def test_a_taught_lesson_and_what_is_rehearsed_train_in_one_step(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    both = plan(0.5, 2)
    settings = both.settings.model_copy(update={"distil": 0.5, "batch_size": 4, "epochs": 2})
    documents = tuple(replace(document, view="Alder is red.") for document in both.documents)
    (rows,) = rows_of(lm, [replace(both, documents=documents, settings=settings)])
    assert len({row.soft.ids.shape[1] for row in rows if row.soft is not None}) == 2
    targets = soft_targets(rows, torch.tensor([token for row in rows for token in row.ids[-row.labelled :]]))
    assert targets is not None and torch.allclose(targets.shares.sum(1), torch.ones(len(targets.shares)), atol=1e-5)
    (stacked,) = train_many(lm, [Job(rows, settings, 0)], 1)
    alone = train(lm, rows, settings, 0)
    assert not isinstance(stacked, Exception) and stacked.losses == pytest.approx(alone.losses, abs=1e-4)


def test_other_words_before_a_question_are_other_rehearsals(tiny_model: Path, cache: Path) -> None:
    for template in (None, "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"):
        lm = load_model(str(tiny_model), "cpu", "float32")
        lm.tokenizer.chat_template = template or lm.tokenizer.chat_template
        rehearsals(lm)
    assert len(list((cache / "rehearsals").glob("*.safetensors"))) == 2


def test_what_is_rehearsed_stays_nearer_to_the_base(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    asked = rehearsals(lm)[::7]
    before = token_log_probabilities(lm, asked)

    def distance(share: float) -> float:
        (trained,) = train_many(lm, [Job(rows_of(lm, [plan(share, 4)])[0], plan(share).settings, 0)], 1)
        assert not isinstance(trained, Exception)
        with standing(lm, [trained.adapter]):
            after = token_log_probabilities(lm, asked)
        return sum(abs(a - b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))

    assert distance(0.5) < 0.8 * distance(0.0)


def test_a_policy_rehearses_nothing() -> None:
    with pytest.raises(ValueError, match="writing alone; give 0"):
        OuterConfig(outer=Settings(rehearsal=0.3))
