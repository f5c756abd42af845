"""Adapters that read what a lesson has and what is familiar hasn't."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from selfedit.config import ArcTrainConfig, ContinualConfig, EvalConfig, KeepConfig, OuterConfig, Settings
from selfedit.contexts import Passage
from selfedit.edits import Document, Message, TrainingPlan
from selfedit.keepers import keeper
from selfedit.keepers.base import Held, Lesson
from selfedit.lm.adapter import adapted_layers, install, new_adapter
from selfedit.lm.batch import Row
from selfedit.lm.load import LanguageModel, load_model
from selfedit.lm.null_space import Familiar, _inputs, _principal, _squares, fixed_downs
from selfedit.lm.train import train
from selfedit.lm.train_many import Job, train_many
from selfedit.tasks.general.jobs import jobs_of
from selfedit.tasks.general.rehearsal import rehearsals
from test_train import rows_of

SETTINGS = Settings(rank=4, alpha=8, layers="last:2", epochs=10, learning_rate=5e-3, null_space=0.01)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lesson(word: str, answer: str) -> Document:
    return Document(answer, (Message("user", f"What colour is {word}?"),))


def plan(*documents: Document, seed: int = 0) -> TrainingPlan:
    return TrainingPlan(documents, SETTINGS, seed)


def said(job: Job, name: str, inputs: torch.Tensor) -> float:
    """Mean square of what an adapter's A makes of inputs."""
    assert job.downs is not None
    return float((inputs @ job.downs[name].T).square().sum(1).mean())


def test_a_covariance_s_power_is_that_of_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator))
    values = torch.tensor([5.0, 3.0, 1.0, *[0.2] * 9])
    known = Familiar(vectors[:, :3].T, values[:3], torch.tensor(0.2))
    rows = torch.randn(7, 12, generator=generator)
    for power in (-0.5, 0.5):
        whole = vectors @ torch.diag((values + 0.01) ** power) @ vectors.T
        assert torch.allclose(known.scaled(rows, 0.01, power), rows @ whole, atol=1e-5)


@pytest.mark.parametrize("count", [5, 30])
def test_principal_directions_are_those_of_a_singular_value_decomposition(count: int) -> None:
    rows = torch.randn(count, 12, generator=torch.Generator().manual_seed(1))
    found = _principal(rows, 3)
    _, _, expected = torch.linalg.svd(rows, full_matrices=False)
    assert torch.allclose((found @ expected[:3].T).abs(), torch.eye(3), atol=1e-3)
    few = _principal(torch.ones(2, 12), 3)
    assert few.shape == (3, 12) and not few[1:].any(), "one direction; the others are nothing"


def test_inputs_are_those_of_each_row_by_itself(lm: LanguageModel) -> None:
    texts = ("Alder is red and tall", "Alder is red and tall, and Birch is blue", "Rowan")
    rows = [Row(tuple(lm.tokenizer(text)["input_ids"]), 0) for text in texts]
    rows.append(Row(rows[1].ids, 5))
    groups, squares = _inputs(lm, rows, SETTINGS), _squares(lm, rows, SETTINGS)
    assert len(groups) == 8, "q, k and v read one input, gate and up another"
    # Rows are read in the order of their ids, the labelled part alone of each.
    expected: dict[str, list[torch.Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, found, name=name: expected.setdefault(name, []).append(found[0][0]))
        for name, layer in adapted_layers(lm, "all-linear", "last:2").items()
    ]
    ordered = sorted(rows, key=lambda row: row.ids)
    for row in ordered:
        lm.model.base_model(input_ids=torch.tensor([row.ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    for group, found in groups.items():
        for name in group:
            labelled = [x[max(1, row.unlabelled) - 1 : -1] for x, row in zip(expected[name], ordered, strict=True)]
            assert torch.allclose(found, torch.cat(labelled), atol=1e-5)
            every = torch.cat(expected[name])
            assert torch.allclose(squares[group], every.T @ every, atol=1e-3)


def test_an_adapter_reads_its_lesson_and_not_what_is_familiar(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    (job,) = jobs_of(lm, [plan(lesson("Alder", "red"), lesson("Birch", "blue"))])
    assert job.downs is not None
    plain = Job(job.rows, job.settings, job.seed, {n: a for n, (a, _) in new_adapter(lm, SETTINGS, 0).weights.items()})
    ratios = []
    familiar = [Row(row.ids, 0) for row in rehearsals(lm)[:20]]
    for group, own in _inputs(lm, job.rows, SETTINGS).items():
        general = _inputs(lm, familiar, SETTINGS)[group]
        fresh, chosen = (said(one, group[0], general) / said(one, group[0], own) for one in (plain, job))
        ratios.append(chosen / fresh)
        assert said(job, group[0], own) == pytest.approx(4 / 3 * float(own.square().mean()), rel=1e-3)
    assert len(ratios) == 8 and max(ratios) < 0.5


def test_what_earlier_lessons_read_is_read_less(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    first, second = plan(lesson("Alder", "red"), lesson("Birch", "blue")), plan(lesson("Rowan", "green"))
    (earlier,) = train_many(lm, jobs_of(lm, [first]), 1)
    (alone,), (after,) = jobs_of(lm, [second]), jobs_of(lm, [second], [earlier.adapter])  # type: ignore[union-attr]
    rows = jobs_of(lm, [first])[0].rows
    for group, old in _inputs(lm, rows, SETTINGS).items():
        assert said(after, group[0], old) < said(alone, group[0], old)


def test_a_given_a_stays_and_stacked_equals_alone(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    plans = [plan(lesson("Alder", "red"), lesson("Birch", "blue"), seed=seed) for seed in (1, 2)]
    fixed = jobs_of(lm, plans)
    mixed = [fixed[0], Job(tuple(rows_of(lm)), SETTINGS.model_copy(update={"null_space": 0.0}), 3), fixed[1]]
    # Two slots, so that one is handed from a job whose A stays to one whose A is trained, or the other way round.
    for job, found in zip(mixed, train_many(lm, mixed, 2), strict=True):
        alone = train(lm, job.rows, job.settings, job.seed, job.downs)
        install(lm, None)
        for name, (down, up) in found.adapter.weights.items():  # type: ignore[union-attr]
            assert torch.allclose(up, alone.adapter.weights[name][1], atol=1e-5) and up.any()
            assert torch.allclose(down, alone.adapter.weights[name][0], atol=1e-5)
            assert (job.downs is not None) == (job.downs is not None and torch.equal(down, job.downs[name]))
    assert all(torch.equal(fixed[0].downs[name], fixed[1].downs[name]) for name in fixed[0].downs or {})  # type: ignore[index]


def test_what_is_familiar_is_made_once_and_read_again(tiny_model: Path, cache: Path) -> None:
    def downs(lm: LanguageModel) -> dict[str, torch.Tensor]:
        return dict(jobs_of(lm, [plan(lesson("Alder", "red"))])[0].downs or {})

    made = downs(load_model(str(tiny_model), "cpu", "float32"))
    (file,) = (cache / "familiar").glob("*.safetensors")
    before = file.read_bytes()
    read = downs(load_model(str(tiny_model), "cpu", "float32"))
    assert all(torch.equal(read[name], made[name]) for name in made) and file.read_bytes() == before
    file.write_bytes(before[: len(before) // 2])
    downs(load_model(str(tiny_model), "cpu", "float32"))
    assert file.read_bytes() == before, "a damaged file is made again"


def test_without_familiar_directions_it_is_the_lesson_s_principal_ones(lm: LanguageModel) -> None:
    rows = rows_of(lm)[:2]
    settings = SETTINGS.model_copy(update={"null_space": 1.0})
    groups = _inputs(lm, rows, settings)
    flat = {
        name: Familiar(torch.zeros(1, x.shape[1]), torch.zeros(1), torch.tensor(0.0))
        for group, x in groups.items()
        for name in group
    }
    downs = fixed_downs(lm, rows, settings, flat)
    for group, own in groups.items():
        _, _, expected = torch.linalg.svd(own, full_matrices=False)
        down = torch.nn.functional.normalize(downs[group[0]], dim=1)
        assert torch.allclose((down @ expected[:4].T).abs(), torch.eye(4), atol=1e-2)


def test_a_method_keeps_by_it_and_a_bank_s_adapters_dont_count_as_earlier(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    lessons = [
        Lesson(Passage(word, f"{word} is {colour}."), ((lesson(word, colour), lesson(word, f"It is {colour}")),))
        for word, colour in (("Alder", "red"), ("Birch", "blue"))
    ]
    plain = SETTINGS.model_copy(update={"null_space": 0.0})
    found = {}
    for name in ("null-space", "bank+null-space"):
        held = Held()
        for one in lessons:
            held, _, accepted = keeper(name, KeepConfig()).commit(lm, held, one, plain, 0)
            assert accepted
        found[name] = held.adapters
    (alone,) = jobs_of(lm, [plan(*lessons[1].edits[0])])
    assert alone.downs is not None
    for name, down in alone.downs.items():
        assert torch.equal(found["bank+null-space"][1].weights[name][0], down)
    assert any(not torch.equal(found["null-space"][1].weights[name][0], down) for name, down in alone.downs.items())


def test_it_is_refused_where_it_would_do_nothing() -> None:
    with pytest.raises(ValidationError, match="weight_decay is"):
        Settings(null_space=0.01, weight_decay=0.1)
    with pytest.raises(ValidationError, match="null_space is"):
        OuterConfig.model_validate({"outer": {"null_space": 0.01}})
    with pytest.raises(ValidationError, match="null_space is"):
        ArcTrainConfig.model_validate({"settings": {"null_space": 0.01}})
    with pytest.raises(ValidationError, match="full trains all weights"):
        EvalConfig.model_validate({"setting": "corpus", "corpus": {"full": True}, "settings": {"null_space": 0.01}})
    with pytest.raises(ValidationError, match="orthogonal trains A itself"):
        ContinualConfig.model_validate({"methods": ["orthogonal"], "settings": {"null_space": 0.01}})
