"""Adapters that read what a lesson has and what is familiar hasn't."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError

from conftest import learn_whatever
from selfedit import seeds
from selfedit.config import (
    ArcTrainConfig,
    ContinualConfig,
    EvalConfig,
    KeepConfig,
    LearnConfig,
    OuterConfig,
    Settings,
)
from selfedit.contexts import Passage
from selfedit.edits import Document, Message, TrainingPlan
from selfedit.errors import DataError
from selfedit.keepers import keeper
from selfedit.keepers.base import Held, Lesson
from selfedit.lm import train_many as engine
from selfedit.lm.adapter import (
    Adapter,
    Directions,
    adapted_layers,
    install,
    install_saved_stack,
    install_stack,
    load_adapter,
    new_adapter,
    save_adapter,
    shrunk,
    shrunk_gradient,
    standing,
    summed,
)
from selfedit.lm.batch import Row
from selfedit.lm.load import LanguageModel, load_model
from selfedit.lm.null_space import Familiar, Moments, _avoiding, _inputs, directions_of, principal
from selfedit.lm.train import train
from selfedit.lm.train_many import Job, train_many
from selfedit.memory.ledger import Memory
from selfedit.memory.rebuild import plan_of
from selfedit.tasks.general.jobs import jobs_of
from selfedit.tasks.general.rehearsal import familiar, rehearsals
from selfedit.tasks.knowledge.prompts import GAP
from test_train import rows_of

Command = Callable[..., subprocess.CompletedProcess[str]]
SETTINGS = Settings(rank=4, alpha=8, layers="last:2", epochs=10, learning_rate=5e-3, null_space=0.01)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def lesson(word: str, answer: str) -> Document:
    return Document(answer, (Message("user", f"What colour is {word}?"),))


def plan(*documents: Document, seed: int = 0) -> TrainingPlan:
    return TrainingPlan(documents, SETTINGS, seed)


def inputs_of(lm: LanguageModel, rows: Any) -> dict[tuple[str, ...], Moments]:
    """Each distinct input in the places that count."""
    return _inputs(lm, rows, adapted_layers(lm, SETTINGS.targets, SETTINGS.layers))


def square_of(inputs: Moments) -> torch.Tensor:
    """Their second moments, summed."""
    rows = torch.cat(inputs.rows) if inputs.square is None else torch.zeros(0)
    return rows.T @ rows if inputs.square is None else inputs.square


def said(job: Job, name: str, inputs: Moments) -> float:
    """Mean square of what an adapter's A makes of inputs."""
    assert job.directions is not None
    return inputs.mean_square(job.directions.downs[name]).item()


def test_a_covariance_s_power_is_that_of_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator))
    values = torch.tensor([5.0, 3.0, 1.0, *[0.2] * 9])
    known = Familiar(vectors[:, :3].T, values[:3], torch.tensor(0.2), torch.tensor(7.0))
    rows = torch.randn(7, 12, generator=generator)
    for power in (-0.5, 0.5):
        whole = vectors @ torch.diag((values + 0.01) ** power) @ vectors.T
        assert torch.allclose(known.scaled(rows, 0.01, power), rows @ whole, atol=1e-5)
    inputs = torch.randn(20000, 12, generator=generator) * (7 * values).sqrt() @ vectors.T
    assert known.energy(rows).item() == pytest.approx((inputs @ rows.T).square().sum(1).mean().item(), rel=0.05)


@pytest.mark.parametrize("count", [5, 30])
def test_principal_directions_are_those_of_a_singular_value_decomposition(count: int) -> None:
    rows = torch.randn(count, 12, generator=torch.Generator().manual_seed(1))
    found = principal(rows, 3)
    _, sizes, expected = torch.linalg.svd(rows, full_matrices=False)
    assert torch.allclose((found.vectors @ expected[:3].T).abs(), torch.eye(3), atol=1e-3)
    assert torch.allclose(found.values, sizes[:3].square(), rtol=1e-4)
    few = principal(torch.ones(2, 12), 3).vectors
    assert few.shape == (3, 12) and few[0].any() and not few[1:].any(), "one direction; the others are nothing"


def test_a_wide_layer_s_directions_are_found_without_all_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(600, 400, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 401) ** -0.7
    whole, state = principal(rows, 20), torch.get_rng_state()
    monkeypatch.setattr("selfedit.lm.null_space.WIDE", 300)
    found = principal(rows, 20)
    assert torch.equal(torch.get_rng_state(), state), "nothing else draws otherwise for it"
    assert torch.equal(principal(rows, 20).vectors, found.vectors)
    assert torch.allclose(found.values, whole.values, rtol=1e-2)
    shared = (whole.vectors[:15] @ found.vectors.T).square().sum(1)
    assert shared.min() > 0.99 and torch.allclose(found.vectors @ found.vectors.T, torch.eye(20), atol=1e-3)
    assert not torch.equal(found.values, whole.values), "another way"


def test_few_rows_and_their_second_moments_say_the_same() -> None:
    rows = torch.randn(30, 12, generator=torch.Generator().manual_seed(1))
    whole, parts, down = Moments(), Moments(), torch.randn(3, 12)
    whole.rows, whole.count = [rows], 30  # Kept as rows, though there are many.
    for at in range(0, 30, 5):
        parts.add(rows[at : at + 5])
    assert parts.square is not None and parts.count == 30 and not parts.rows
    assert parts.mean_square().item() == pytest.approx(rows.square().mean().item(), rel=1e-5)
    assert parts.mean_square(down).item() == pytest.approx(whole.mean_square(down).item(), rel=1e-4)
    stretch = torch.linspace(0.5, 2, 12)
    found, expected = (one.principal(3, lambda x: x * stretch) for one in (parts, whole))
    assert torch.allclose(found.values, expected.values, rtol=1e-4)
    assert torch.allclose((found.vectors @ expected.vectors.T).abs(), torch.eye(3), atol=1e-3)


def test_inputs_are_those_of_each_row_by_itself(lm: LanguageModel) -> None:
    texts = ("Alder is red and tall", "Alder is red and tall, and Birch is blue", "Rowan")
    rows = [Row(tuple(lm.tokenizer(text)["input_ids"]), 0) for text in texts]
    rows.append(Row(rows[1].ids, 5))
    groups = inputs_of(lm, rows)
    assert len(groups) == 8, "q, k and v read one input, gate and up another"
    # Rows are read in the order of their ids; of each the places that foretell a labelled token, but for the first.
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
            labelled = [x[max(2, row.unlabelled) - 1 : -1] for x, row in zip(expected[name], ordered, strict=True)]
            assert found.count == len(torch.cat(labelled))
            assert torch.allclose(square_of(found), torch.cat(labelled).T @ torch.cat(labelled), rtol=1e-3, atol=1e-3)


def test_where_answers_are_foretold_weighs_as_much_as_all_familiar_places(lm: LanguageModel) -> None:
    ids = tuple(lm.tokenizer("Alder is red and tall, and Birch is blue")["input_ids"])
    rows = [Row(ids, 0), Row(ids[:-1], 5)]
    layers = adapted_layers(lm, SETTINGS.targets, SETTINGS.layers)
    answers = inputs_of(lm, rows[1:])
    everywhere = inputs_of(lm, [Row(row.ids, 0) for row in rows])
    places, taught = sum(len(row.ids) - 2 for row in rows), rows[1].labelled
    for group, found in _inputs(lm, rows, layers, everywhere=True).items():
        assert found.count == places + taught
        expected = square_of(everywhere[group]) + square_of(answers[group]) * places / taught
        assert torch.allclose(square_of(found), expected, rtol=1e-3, atol=1e-3)


def test_gaps_in_the_base_s_own_texts_are_familiar(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    known, rows = rehearsals(lm), familiar(lm)
    added = rows[len(known) :]
    asked = [lm.tokenizer.decode(row.ids[: row.unlabelled]) for row in added]
    gaps = [row for row, text in zip(added, asked, strict=True) if GAP in text]
    assert rows[: len(known)] == known and len(gaps) > 30 and added[-len(gaps) :] == gaps
    assert all(row.labelled for row in gaps)


@pytest.mark.parametrize("chat", [True, False])
def test_words_of_the_base_s_answers_are_familiar_as_answers(
    tiny_model: Path, tiny_base_model: Path, cache: Path, chat: bool
) -> None:
    lm = load_model(str(tiny_model if chat else tiny_base_model), "cpu", "float32")
    known = rehearsals(lm)
    requests = {row.ids[: row.unlabelled] for row in known if row.unlabelled}
    words = [row for row in familiar(lm)[len(known) :] if GAP not in lm.tokenizer.decode(row.ids)]
    texts = [lm.tokenizer.decode(row.ids[row.unlabelled :], skip_special_tokens=True) for row in words]
    assert words and all(row.ids[: row.unlabelled] in requests for row in words)
    assert len(set(texts)) == len(texts), "each once"
    assert all(len(text.split()) == 1 and row.labelled > 2 for row, text in zip(words, texts, strict=True))
    said = " ".join(lm.tokenizer.decode(row.ids, skip_special_tokens=True) for row in known).lower()
    assert all(text.lower() in said for text in texts)


def test_an_adapter_reads_its_lesson_and_not_what_is_familiar(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    (job,) = jobs_of(lm, [plan(lesson("Alder", "red"), lesson("Birch", "blue"))])
    assert job.directions is not None
    plain = Job(job.rows, job.settings, job.seed, Directions({n: a for n, (a, _) in new_adapter(lm, SETTINGS, 0).weights.items()}))
    ratios = []
    familiar = [Row(row.ids, 0) for row in rehearsals(lm)[:20]]
    for group, own in inputs_of(lm, job.rows).items():
        general = inputs_of(lm, familiar)[group]
        fresh, chosen = (said(one, group[0], general) / said(one, group[0], own) for one in (plain, job))
        ratios.append(chosen / fresh)
        assert said(job, group[0], own) == pytest.approx(4 / 3 * own.mean_square().item(), rel=1e-3)
    assert len(ratios) == 8 and max(ratios) < 0.5


def test_what_earlier_lessons_read_is_read_less(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    first, second = plan(lesson("Alder", "red"), lesson("Birch", "blue")), plan(lesson("Rowan", "green"))
    (earlier,) = train_many(lm, jobs_of(lm, [first]), 1)
    (alone,), (after,) = jobs_of(lm, [second]), jobs_of(lm, [second], [earlier.adapter])  # type: ignore[union-attr]
    rows = jobs_of(lm, [first])[0].rows
    for group, old in inputs_of(lm, rows).items():
        assert said(after, group[0], old) < said(alone, group[0], old)


@pytest.mark.parametrize(("tokens", "dead_zone"), [(384, 0.0), (24, 0.0), (384, 0.5), (24, 0.5)])
def test_a_given_a_stays_and_stacked_equals_alone(
    tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, dead_zone: float
) -> None:
    monkeypatch.setattr(engine, "CPU_TOKENS", tokens)  # So few that a step has several parts.
    lm = load_model(str(tiny_model), "cpu", "float32")
    quiet = SETTINGS.model_copy(update={"dead_zone": dead_zone})
    documents = (lesson("Alder", "red"), lesson("Birch", "blue"))
    fixed = jobs_of(lm, [TrainingPlan(documents, quiet, seed) for seed in (1, 2)])
    mixed = [fixed[0], Job(tuple(rows_of(lm)), SETTINGS.model_copy(update={"null_space": 0.0}), 3), fixed[1]]
    # Two slots, so that one is handed from a job whose A stays to one whose A is trained, or the other way round.
    for job, found in zip(mixed, train_many(lm, mixed, 2), strict=True):
        alone = train(lm, job.rows, job.settings, job.seed, job.directions)
        install(lm, None)
        for name, (down, up) in found.adapter.weights.items():  # type: ignore[union-attr]
            assert torch.allclose(up, alone.adapter.weights[name][1], atol=1e-5) and up.any()
            assert torch.allclose(down, alone.adapter.weights[name][0], atol=1e-5)
            start = new_adapter(lm, job.settings, seeds.derive(job.seed, "init"), job.directions).weights[name][0]
            assert torch.equal(down, start) == (job.directions is not None)
    first, second = (job.directions for job in fixed)
    assert first is not None and second is not None and bool(first.floors) == bool(dead_zone)
    assert all(torch.equal(down, second.downs[name]) for name, down in first.downs.items())


def test_the_dead_zone_s_gradient_is_autograd_s() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, 4, generator=generator).requires_grad_()
    floors = torch.tensor([[0.0], [2.0], [6.0]])
    dy = torch.randn(6, 3, 4, generator=generator)
    y = shrunk(z, floors)
    y.backward(dy)  # type: ignore[no-untyped-call]
    assert z.grad is not None and torch.allclose(shrunk_gradient(dy, z.detach(), floors), z.grad, atol=1e-5)
    silent = z.detach().square().sum(-1) <= floors[:, 0]
    assert 0 < silent.sum() < silent.numel() and not y[silent].any() and y[~silent].all()
    assert torch.equal(y[:, 0], z[:, 0]) and not shrunk_gradient(dy, z.detach(), floors)[silent].any()
    nothing = torch.zeros(1, 3, 4)
    assert not shrunk(nothing, floors).any() and torch.equal(shrunk_gradient(dy[:1], nothing, floors)[:, 0], dy[:1, 0])


def test_adapters_with_a_dead_zone_stand_are_saved_and_no_sum_of_weights(tiny_model: Path, cache: Path, tmp_path: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    quiet = SETTINGS.model_copy(update={"dead_zone": 0.5})
    plans = [TrainingPlan((lesson("Alder", "red"), lesson("Birch", "blue")), quiet, 1), plan(lesson("Rowan", "green"))]
    floored, plain = (one.adapter for one in train_many(lm, jobs_of(lm, plans), 2))  # type: ignore[union-attr]
    small = new_adapter(lm, SETTINGS.model_copy(update={"rank": 2}), 5)
    small.floors = dict.fromkeys(small.weights, 0.1)
    for _, up in small.weights.values():
        up.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    assert floored.floors and not plain.floors
    save_adapter(floored, tmp_path / "one", lm.name)
    again = load_adapter(tmp_path / "one")
    assert again.floors == pytest.approx(floored.floors) and again.scale == floored.scale
    with pytest.raises(KeyError, match="SELFEDIT_FLOORED_LORA"):
        peft.PeftConfig.from_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="no sum of weights"):
        summed([plain, floored])

    ids = torch.tensor([lm.tokenizer("What colour is Alder? It is red")["input_ids"]])

    def states(*below: Adapter, active: Adapter | None = None) -> torch.Tensor:
        with torch.no_grad(), standing(lm, below):
            install(lm, active)
            found: torch.Tensor = lm.model.base_model(input_ids=ids).last_hidden_state
            install(lm, None)
        return found

    one, other = states(floored, plain, small), states(plain, small, active=floored)
    assert torch.allclose(one, other, atol=1e-4) and not torch.allclose(one, states(plain, small), atol=1e-3)
    assert torch.allclose(states(small, floored), states(small, active=again), atol=1e-4), "ranks that differ are padded"
    loud = replace(floored, floors=dict.fromkeys(floored.floors, 1e9))
    assert torch.equal(states(loud), states()), "below the floor not a bit is changed"
    before = states(floored, plain, small)
    install_stack(lm, [floored, plain, small])
    assert torch.allclose(states(), before, atol=1e-4)


def test_a_lesson_on_top_of_one_with_a_dead_zone_is_trained_as_alone(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    beneath = new_adapter(lm, SETTINGS, 7)
    beneath.floors = dict.fromkeys(beneath.weights, 0.05)
    for _, up in beneath.weights.values():
        up.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    settings = SETTINGS.model_copy(update={"dead_zone": 0.2})
    with standing(lm, [beneath]):
        jobs = jobs_of(lm, [TrainingPlan((lesson(*one),), settings, 1) for one in (("Alder", "red"), ("Birch", "blue"))], [beneath])
        alone = [train(lm, job.rows, job.settings, job.seed, job.directions) for job in jobs]
        install(lm, None)
        stacked = train_many(lm, jobs, 2)
    for one, other in zip(alone, stacked, strict=True):
        for name, (_, up) in one.adapter.weights.items():
            assert up.any() and torch.allclose(up, other.adapter.weights[name][1], atol=1e-5)  # type: ignore[union-attr]


def test_a_memory_with_a_dead_zone_answers_gives_entries_back_and_is_no_sum(
    command: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(rank=4, alpha=8, epochs=2, null_space=0.01, dead_zone=0.3)
    passages = [
        Passage("Ashby Tower", "It was built in 1890 by Ned Fell."),
        Passage("Quillmoor", "It was built in 1732 by Ada Thornby."),
    ]
    learn_whatever(monkeypatch, tiny_model, tmp_path / "m", passages, settings)
    memory = Memory.open(tmp_path / "m")
    first, second = (load_adapter(folder) for folder in memory.adapter_folders())
    assert first.floors.keys() == first.weights.keys() and second.floors

    lm = load_model(str(tiny_model), dtype="float32")
    plan_2 = plan_of(memory.entries()[1].record, {})
    (on_base,) = train_many(lm, jobs_of(lm, [plan_2]), 1)
    install_saved_stack(lm, [str(memory.adapter_folders()[0])])
    (on_top,) = train_many(lm, jobs_of(lm, [plan_2]), 1)

    def alike(one: Adapter, other: Adapter) -> bool:
        return all(torch.allclose(up, other.weights[name][1], atol=1e-5) for name, (_, up) in one.weights.items())

    assert alike(on_top.adapter, second) and not alike(on_base.adapter, second)  # type: ignore[union-attr]
    asked = command("ask", "When was it built?", "--title", "Quillmoor", "--memory", tmp_path / "m")
    assert asked.returncode == 0, asked.stderr
    refused = command("memory", "export", tmp_path / "out", "--memory", tmp_path / "m")
    assert refused.returncode == 1 and "dead zone" in refused.stderr and not (tmp_path / "out").exists()
    assert f"memory consolidate --memory {tmp_path / 'm'} --set dead_zone=0" in " ".join(refused.stderr.split())
    done = command("memory", "undo", 1, "--memory", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    (rebuilt,) = (load_adapter(folder) for folder in Memory.open(tmp_path / "m").adapter_folders())
    assert alike(rebuilt, on_base.adapter)  # type: ignore[union-attr]
    plain = command("memory", "consolidate", "--set", "dead_zone=0", "--budget", 1, "--memory", tmp_path / "m")
    assert plain.returncode == 0, plain.stderr
    exported = command("memory", "export", tmp_path / "out", "--memory", tmp_path / "m")
    assert exported.returncode == 0 and (tmp_path / "out" / "config.json").is_file(), exported.stderr


def test_what_is_familiar_is_made_once_and_read_again(tiny_model: Path, cache: Path) -> None:
    def downs(lm: LanguageModel) -> dict[str, torch.Tensor]:
        (job,) = jobs_of(lm, [plan(lesson("Alder", "red"))])
        assert job.directions is not None
        return dict(job.directions.downs)

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
    groups = inputs_of(lm, rows)
    flat = {}
    for group in groups:
        width = square_of(groups[group]).shape[0]
        flat |= {name: Familiar(torch.zeros(1, width), torch.zeros(1), torch.tensor(0.0), torch.tensor(1.0)) for name in group}
    downs = directions_of(lm, rows, settings, flat).downs
    for group, own in groups.items():
        _, vectors = torch.linalg.eigh(square_of(own))
        down = torch.nn.functional.normalize(downs[group[0]], dim=1)
        assert torch.allclose((down @ vectors.flip(1)[:, :4]).abs(), torch.eye(4), atol=1e-2)


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
    faster = keeper("null-space", KeepConfig(null_space_rate=0.05, null_space_rank=2)).parts[0].settings(plain)
    assert (faster.learning_rate, faster.null_space, faster.rank, faster.alpha) == (0.05, KeepConfig().null_space, 2, plain.alpha)
    (alone,) = jobs_of(lm, [plan(*lessons[1].edits[0])])
    assert alone.directions is not None
    for name, down in alone.directions.downs.items():
        assert torch.equal(found["bank+null-space"][1].weights[name][0], down)
    assert any(not torch.equal(found["null-space"][1].weights[name][0], down) for name, down in alone.directions.downs.items())


def test_an_earlier_adapter_of_any_layer_with_the_same_input_counts(tiny_model: Path, cache: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    (job,) = jobs_of(lm, [plan(lesson("Alder", "red"))])
    earlier = new_adapter(lm, SETTINGS.model_copy(update={"targets": "v_proj,up_proj"}), 1)
    (after,) = jobs_of(lm, [plan(lesson("Alder", "red"))], [earlier])
    assert job.directions is not None and after.directions is not None
    for name, down in job.directions.downs.items():
        assert torch.equal(down, after.directions.downs[name]) == name.endswith(("o_proj", "down_proj")), name


def test_more_earlier_directions_than_the_width_are_avoided_by_how_often_they_are_read() -> None:
    often, once = torch.eye(4)[:2], torch.eye(4)[1:]
    kept = _avoiding([often, often, torch.cat([once, once]), torch.zeros(3, 4)])(torch.eye(4))
    assert torch.allclose(kept, torch.diag((1 + 100 * torch.tensor([2.0, 3.0, 1.0, 1.0])) ** -0.5), atol=1e-5)
    assert torch.equal(_avoiding([])(often), often)


def test_a_stack_s_adapters_count_as_earlier(tiny_model: Path, cache: Path, tmp_path: Path) -> None:
    lm = load_model(str(tiny_model), "cpu", "float32")
    first, second = plan(lesson("Alder", "red"), lesson("Birch", "blue")), plan(lesson("Rowan", "green"))
    (earlier,) = train_many(lm, jobs_of(lm, [first]), 1)
    save_adapter(earlier.adapter, tmp_path / "one", lm.name)  # type: ignore[union-attr]
    with standing(lm, [earlier.adapter]):  # type: ignore[union-attr]
        (beside,) = jobs_of(lm, [second], [earlier.adapter])  # type: ignore[union-attr]
    install_saved_stack(lm, [str(tmp_path / "one")])
    (stacked,) = jobs_of(lm, [second])
    assert beside.directions is not None and stacked.directions is not None
    for name, down in beside.directions.downs.items():
        other = stacked.directions.downs[name]
        assert torch.allclose(down.T @ down, other.T @ other, rtol=1e-2, atol=1e-3), name


def test_a_training_without_its_directions_is_refused(lm: LanguageModel) -> None:
    rows = tuple(rows_of(lm))
    with pytest.raises(ValueError, match="no directions are given"):
        train_many(lm, [Job(rows, SETTINGS, 0)], 1)
    with pytest.raises(ValueError, match="no directions are given"):
        train(lm, rows, SETTINGS, 0)
    given = Directions({name: a for name, (a, _) in new_adapter(lm, SETTINGS, 0).weights.items()})
    decaying = SETTINGS.model_copy(update={"weight_decay": 0.1})
    with pytest.raises(ValueError, match="would shrink an A"):
        train_many(lm, [Job(rows, decaying, 0, given)], 1)


def test_it_is_refused_where_it_would_do_nothing() -> None:
    with pytest.raises(ValidationError, match="weight_decay is"):
        Settings(null_space=0.01, weight_decay=0.1)
    with pytest.raises(ValidationError, match="but A is trained"):
        Settings(dead_zone=0.5)
    with pytest.raises(ValidationError, match="null_space is"):
        OuterConfig.model_validate({"outer": {"null_space": 0.01}})
    with pytest.raises(ValidationError, match="null_space is"):
        ArcTrainConfig.model_validate({"settings": {"null_space": 0.01}})
    with pytest.raises(ValidationError, match="replay mixes in"):
        LearnConfig.model_validate({"replay": 0.5, "settings": {"null_space": 0.01}})
    with pytest.raises(ValidationError, match="null-space holds A"):
        ContinualConfig.model_validate({"methods": ["null-space"], "settings": {"weight_decay": 0.1}})
    variants = {"corpus": {"variants": [{"null_space": 0.01}]}, "setting": "corpus", "settings": {"weight_decay": 0.1}}
    with pytest.raises(ValidationError, match="null_space holds A"):
        EvalConfig.model_validate(variants)
    with pytest.raises(DataError, match="null-space and replay"):
        keeper("null-space+replay", KeepConfig())
    with pytest.raises(ValidationError, match="full trains all weights"):
        EvalConfig.model_validate({"setting": "corpus", "corpus": {"full": True}, "settings": {"null_space": 0.01}})
    with pytest.raises(ValidationError, match="orthogonal trains A itself"):
        ContinualConfig.model_validate({"methods": ["orthogonal"], "settings": {"null_space": 0.01}})
