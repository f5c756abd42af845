"""The engine is exact: many adapters in one pass equal each one trained and examined alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_tiny_model
from selfedit import seeds
from selfedit.config import EditConfig, Settings
from selfedit.contexts import Passage, Question
from selfedit.edits import Document, TrainingPlan
from selfedit.errors import DivergedError
from selfedit.inner import Trial, run_trials
from selfedit.lm import flat, stack
from selfedit.lm import train_many as engine
from selfedit.lm.adapter import Adapter, adapted_layers, install, install_stack, load_adapter, new_adapter, save_adapter
from selfedit.lm.batch import Row, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel, load_model
from selfedit.lm.score import log_probabilities
from selfedit.lm.stack import Slots, slots_that_fit
from selfedit.lm.train import Trained, train
from selfedit.lm.train_many import Job, train_many
from selfedit.tasks.base import Asked
from selfedit.tasks.knowledge.exam import Paper, sit_exams
from selfedit.tasks.knowledge.task import KnowledgeTask, Together
from test_train import rows_of

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text", "smollm3")


def mixed_jobs(lm: LanguageModel, layers: str = "all", **more: Any) -> list[Job]:
    """Five jobs that differ in everything that a job may choose; the longest has 30 steps."""
    rows = rows_of(lm)

    def job(chosen: list[Row], seed: int, rank: int, **own: Any) -> Job:
        return Job(tuple(chosen), Settings(rank=rank, layers=layers, **{"learning_rate": 2e-4} | own | more), seed)

    return [
        job(rows, 1, rank=4, alpha=8, epochs=6),
        job(rows[1:4], 2, rank=8, alpha=8, epochs=10, schedule="cosine", learning_rate=4e-4),
        job(rows[2:], 3, rank=2, alpha=4, epochs=5, batch_size=2, learning_rate=1e-4),
        job(rows[:4], 4, rank=4, alpha=8, epochs=4, warmup=0.2, accumulation=2),
        job(rows[:2], 5, rank=8, alpha=16, epochs=3, clip=0.1, weight_decay=0.1),
    ]


def whole(results: list[Trained | DivergedError]) -> list[Trained]:
    assert all(isinstance(result, Trained) for result in results)
    return [result for result in results if isinstance(result, Trained)]


def difference(a: Adapter, b: Adapter) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a.parameters, b.parameters, strict=True))


@pytest.fixture(scope="module", params=FAMILIES)
def family_lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("families") / request.param
    lm = load_model(str(make_tiny_model(folder, family=request.param)), dtype="float32")
    # With the small weights of a fresh model some gradients are no larger than rounding, and AdamW makes steps of them.
    for weight in lm.model.parameters():
        if weight.ndim > 1:
            weight.mul_(2)
    return lm


@pytest.mark.parametrize("layers", ["all", "last:2"])
@pytest.mark.parametrize("targets", ["all-linear", "qv"])
def test_stacked_equals_alone_in_every_family(family_lm: LanguageModel, layers: str, targets: str) -> None:
    jobs = mixed_jobs(family_lm, layers, targets=targets)
    together = whole(train_many(family_lm, jobs, 3))
    for job, mine in zip(jobs, together, strict=True):
        alone = train(family_lm, list(job.rows), job.settings, job.seed)
        install(family_lm, None)
        assert mine.losses == pytest.approx(alone.losses, abs=1e-5)
        assert mine.tokens == alone.tokens
        assert difference(mine.adapter, alone.adapter) <= 1e-5
        assert mine.adapter.rank == job.settings.rank and mine.adapter.alpha == job.settings.alpha


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_slot_does_not_depend_on_its_neighbours(lm: LanguageModel, count: int) -> None:
    jobs = mixed_jobs(lm)
    forwards = whole(train_many(lm, jobs, count))
    backwards = whole(train_many(lm, jobs[::-1], 3))[::-1]
    for mine, other in zip(forwards, backwards, strict=True):
        assert difference(mine.adapter, other.adapter) <= 1e-5


def test_same_plan_same_bytes(lm: LanguageModel) -> None:
    first, second = (whole(train_many(lm, mixed_jobs(lm, dropout=0.1), 2)) for _ in range(2))
    for mine, other in zip(first, second, strict=True):
        assert difference(mine.adapter, other.adapter) == 0


def test_dropout_is_drawn_for_each_slot_alone(lm: LanguageModel) -> None:
    jobs = mixed_jobs(lm, dropout=0.2)
    together = whole(train_many(lm, jobs, 3))
    plain = whole(train_many(lm, mixed_jobs(lm), 3))
    for job, mine, undropped in zip(jobs, together, plain, strict=True):
        (alone,) = whole(train_many(lm, [job], 1))
        assert difference(mine.adapter, alone.adapter) <= 1e-5
        assert difference(mine.adapter, undropped.adapter) > 1e-5


def test_a_job_that_diverges_disturbs_nobody(lm: LanguageModel) -> None:
    wild = Job(tuple(rows_of(lm)), Settings(learning_rate=0.1, clip=1e6, epochs=200, rank=8, alpha=4096, layers="all"), 0)
    jobs = mixed_jobs(lm)
    results = train_many(lm, [jobs[0], wild, *jobs[1:]], 3)
    assert isinstance(results[1], DivergedError) and "lower the learning rate" in str(results[1])
    for mine, other in zip(whole([results[0], *results[2:]]), whole(train_many(lm, jobs, 5)), strict=True):
        assert difference(mine.adapter, other.adapter) <= 1e-5


def test_a_finished_slot_does_not_move(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = mixed_jobs(lm)[:2]
    short = Job(jobs[0].rows[:1], jobs[0].settings, 9)
    seen: list[torch.Tensor] = []
    original = Slots.take

    def spy(self: Slots, slot: int, like: Adapter) -> Adapter:
        seen.append(self.values_KP[0].clone())
        return original(self, slot, like)

    monkeypatch.setattr(Slots, "take", spy)
    train_many(lm, [short, jobs[1]], 2)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_entries_beyond_a_small_rank_stay_zero(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(rows_of(lm))
    kept: list[Slots] = []
    original = Slots.__init__

    def spy(self: Slots, *arguments: Any, **more: Any) -> None:
        original(self, *arguments, **more)
        kept.append(self)

    monkeypatch.setattr(Slots, "__init__", spy)
    settings = Settings(rank=2, alpha=4, epochs=2, weight_decay=0.1, learning_rate=1e-2)
    train_many(lm, [Job(rows, settings, 1), Job(rows, settings.model_copy(update={"rank": 8}), 2)], 2)
    for down_Kri, up_Kor in kept[0]._views(kept[0].values_KP).values():
        assert float(down_Kri[0, 2:].abs().max()) == 0 and float(up_Kor[0, :, 2:].abs().max()) == 0
        assert float(up_Kor[0, :, :2].abs().max()) > 0 and float(up_Kor[1, :, 2:].abs().max()) > 0


def test_a_step_in_parts_equals_a_step_in_one_pass(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = mixed_jobs(lm)
    once = whole(train_many(lm, jobs, 5))
    monkeypatch.setattr(flat, "MOST_TOKENS", 40)
    parts = whole(train_many(lm, jobs, 5))
    for mine, other in zip(once, parts, strict=True):
        assert difference(mine.adapter, other.adapter) <= 1e-5


def test_grouped_products_equal_a_loop_over_slots(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = mixed_jobs(lm)
    looped = whole(train_many(lm, jobs, 3))
    adapters = adapters_of(lm)
    rows, owners = rows_of(lm)[:3] * 3, [slot for slot in range(3) for _ in range(3)]
    with seated(lm, adapters).installed():
        before = log_probabilities(lm, rows, owners)
    used: list[int] = []
    monkeypatch.setattr(stack, "grouped", lambda x, own, stream: used.append(1) or stream.ends is not None)
    for mine, other in zip(whole(train_many(lm, jobs, 3)), looped, strict=True):
        assert difference(mine.adapter, other.adapter) <= 1e-5
    with seated(lm, adapters).installed():
        assert log_probabilities(lm, rows, owners) == pytest.approx(before, abs=1e-4)
    assert used


def test_a_full_prefix_cache_is_computed_again(lm: LanguageModel) -> None:
    rows = rows_of(lm)
    roomy, tight = flat.Prefixes(lm, 2), flat.Prefixes(lm, 2, limit=1)
    with engine.document_attention(lm):
        for order in (rows, rows[::-1], rows[2:]):
            assert torch.allclose(roomy.states(order, [0] * len(order)), tight.states(order, [0] * len(order)), atol=1e-6)
    assert tight.used <= 1 and roomy.used > 1


def test_sliding_windows_are_kept_within_documents(tmp_path: Path) -> None:
    lm = load_model(str(make_tiny_model(tmp_path / "g", family="gemma3_text")), dtype="float32")
    assert "sliding_attention" in lm.model.config.layer_types
    lm.model.config.sliding_window = 8
    for layer in lm.model.base_model.layers:
        if layer.self_attn.is_sliding:
            layer.self_attn.sliding_window = 8
    for rows, size in ((rows_of(lm), 1), (sharing_rows(lm), 6)):
        job = Job(tuple(rows), Settings(rank=4, alpha=8, epochs=3, learning_rate=2e-4, batch_size=size), 1)
        (mine,) = whole(train_many(lm, [job], 1))
        alone = train(lm, list(job.rows), job.settings, job.seed)
        assert difference(mine.adapter, alone.adapter) <= 1e-5


def test_training_on_top_of_earlier_adapters(lm: LanguageModel, tiny_model: Path) -> None:
    earlier = [train(lm, rows_of(lm), Settings(rank=4, alpha=8, epochs=2, learning_rate=1e-2), seed).adapter for seed in (1, 2)]
    on_top = load_model(str(tiny_model), dtype="float32")
    install_stack(on_top, earlier)
    jobs = mixed_jobs(on_top, "last:2")
    for job, mine in zip(jobs, whole(train_many(on_top, jobs, 3)), strict=True):
        alone = train(on_top, list(job.rows), job.settings, job.seed)
        install(on_top, None)
        assert difference(mine.adapter, alone.adapter) <= 1e-5


def adapters_of(lm: LanguageModel, layers: str = "all") -> list[Adapter]:
    """Three adapters that change the model's answers a great deal."""
    made = []
    for seed, rank in ((1, 4), (2, 8), (3, 4)):
        adapter = new_adapter(lm, Settings(rank=rank, alpha=16, layers=layers), seed)
        generator = torch.Generator().manual_seed(seeds.derive(seed, "up"))
        for _, up in adapter.weights.values():
            up.copy_(torch.randn(up.shape, generator=generator))
        made.append(adapter)
    return made


def seated(lm: LanguageModel, adapters: list[Adapter], layers: str = "all") -> Slots:
    slots = Slots(lm, "all-linear", layers, max(adapter.rank for adapter in adapters), len(adapters), training=False)
    for slot, adapter in enumerate(adapters):
        slots.put(slot, adapter)
    return slots


def questions_of(lm: LanguageModel) -> list[tuple[int, ...]]:
    from selfedit.edits import Message

    long = "A system message that all share, long enough to be read once."
    texts = ("Who built it?", "When was the bridge built, and why?", "Who built it?")
    return [encode_prompt(lm, (Message("system", long), Message("user", text))) for text in texts]


@pytest.mark.parametrize("layers", ["all", "last:2"])
def test_batched_answers_equal_one_by_one(family_lm: LanguageModel, layers: str) -> None:
    lm, prompts = family_lm, questions_of(family_lm)
    adapters = adapters_of(lm, layers)
    asked = [(slot, ids) for slot in range(3) for ids in prompts]
    slots = seated(lm, adapters, layers)
    with slots.installed():
        together = generate(lm, [ids for _, ids in asked], 12, slots=[slot for slot, _ in asked], first=slots.first)
        rows = [Row((*ids, 5, 6, 7), len(ids)) for _, ids in asked]
        likelihoods = log_probabilities(lm, rows, [slot for slot, _ in asked], slots.first)
    alone, alone_likelihoods = [], []
    for (slot, ids), row in zip(asked, rows, strict=True):
        install(lm, adapters[slot])
        alone.append(generate(lm, [ids], 12)[0])
        alone_likelihoods += log_probabilities(lm, [row])
    install(lm, None)
    assert together == alone
    assert len(set(together)) >= len(adapters)
    assert likelihoods == pytest.approx(alone_likelihoods, abs=1e-4)


def test_exams_sat_together_are_those_sat_apart(lm: LanguageModel) -> None:
    passages = [
        Passage(
            title, "Text.", (Question("Who built it?", "Ada", paraphrases=("Its builder?",)), Question("When was that?", "In 1811"))
        )
        for title in ("Bridge", "Tower", "Mill")
    ]
    papers = {passages[0].id: (Paper(passages[2], (Asked(passages[2].questions[1], 0, paraphrase=False),), "titled"),)}
    together = Together(EditConfig(), forms=("titled", "bare"), elsewhere=papers)
    seats = [(0, passages[0]), (1, passages[1]), (1, passages[0])]
    with seated(lm, adapters_of(lm, "last:2"), "last:2").installed():
        sat = together.examine(lm, seats, 1)
        titled, bare = (KnowledgeTask(EditConfig(), form=form).examine(lm, seats, 1) for form in ("titled", "bare"))
        far = sit_exams(lm, [replace(paper, slot=slot) for slot in (0, 1) for paper in papers[passages[0].id]], 1)
    assert [len(sitting.answers) for sitting in sat] == [len(together.asked(passage)) for _, passage in seats] == [6, 5, 6]
    expected = [[titled[0], bare[0], far[0]], [titled[1], bare[1]], [titled[2], bare[2], far[1]]]
    for (_, passage), sitting, own in zip(seats, sat, expected, strict=True):
        found = together.apart(passage, sitting)
        assert [one.answers for one in found] == [one.answers for one in own]
        for one, alone in zip(found, own, strict=True):
            assert one.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-5)


def test_below_the_adapted_layers_a_prompt_is_read_once_for_all_slots(lm: LanguageModel) -> None:
    """Tokens that pass each layer's MLP until the first answer's token: shared by all slots below, by each slot above."""
    prompts = questions_of(lm)
    slots = seated(lm, adapters_of(lm, "last:2"), "last:2")
    asked = [(slot, ids) for slot in range(3) for ids in prompts]
    seen = [0] * len(lm.model.base_model.layers)
    hooks = [
        layer.mlp.register_forward_hook(lambda _m, _i, out, at=at: seen.__setitem__(at, seen[at] + out[..., 0].numel()))
        for at, layer in enumerate(lm.model.base_model.layers)
    ]
    with slots.installed():
        generate(lm, [ids for _, ids in asked], 1, slots=[slot for slot, _ in asked], first=slots.first)
    for hook in hooks:
        hook.remove()
    assert seen[: slots.first] == [seen[0]] * slots.first
    assert seen[slots.first :] == [3 * seen[0]] * (len(seen) - slots.first)
    assert seen[0] < sum(len(ids) for ids in prompts[:2]), "what the prompts begin with is read once"


def test_any_slot_leaves_as_a_peft_adapter_with_equal_logits(lm: LanguageModel, tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trained = whole(train_many(lm, mixed_jobs(lm, "last:2"), 3))
    ids = torch.tensor([rows_of(lm)[0].ids])
    for index, result in enumerate(trained):
        save_adapter(result.adapter, tmp_path / str(index), str(tiny_model))
        install(lm, load_adapter(tmp_path / str(index)))
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
        with torch.no_grad():
            mine = lm.model(input_ids=ids).logits
            theirs = PeftModel.from_pretrained(base, tmp_path / str(index))(input_ids=ids).logits
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_head_loss_equals_torch_with_and_without_a_cap(lm: LanguageModel) -> None:
    states = torch.randn(7, 32, requires_grad=True)
    targets, weights = torch.arange(7) + 3, torch.rand(7)
    for cap in (None, 2.0):
        lm.model.config.final_logit_softcapping = cap
        loss, nll = engine.head_loss(lm, states, targets, weights)
        (mine,) = torch.autograd.grad(loss, states)
        logits = lm.model.get_output_embeddings()(states)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        (theirs,) = torch.autograd.grad((expected * weights).sum(), states)
        assert torch.allclose(nll, expected, atol=1e-5)
        assert torch.allclose(mine, theirs, atol=1e-6)
    lm.model.config.final_logit_softcapping = None


def test_jobs_of_other_shapes_are_refused_together_and_run_apart(lm: LanguageModel, make_trial: Callable[..., Trial]) -> None:
    jobs = [*mixed_jobs(lm)[:1], *mixed_jobs(lm, "last:2")[:1]]
    with pytest.raises(ValueError, match="adapt the same layers"):
        train_many(lm, jobs, 2)
    trials = [make_trial(layers="all", seed=1), make_trial(layers="last:2", seed=2), make_trial(layers="all", seed=3)]
    mixed = run_trials(lm, [KnowledgeTask(EditConfig())], trials, 4)
    for trial, outcome in zip(trials, mixed, strict=True):
        (alone,) = run_trials(lm, [KnowledgeTask(EditConfig())], [trial], 1)
        assert outcome.losses == pytest.approx(alone.losses, abs=1e-5)
        assert outcome.sittings[0].answers == alone.sittings[0].answers


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    passage = Passage("Bridge", "It was built in 1732.", (Question("When was it built?", "1732"),))

    def make(layers: str, seed: int) -> Trial:
        settings = Settings(rank=4, alpha=8, epochs=3, layers=layers)
        documents = (Document("It was built in 1732."), Document("It is long."))
        return Trial(passage, TrainingPlan(documents, settings, seed))

    return make


def test_slots_fit_the_memory(lm: LanguageModel) -> None:
    assert slots_that_fit(lm, Settings(rank=4, alpha=8), device="cpu", workers=2) == 8
    assert slots_that_fit(lm, Settings(rank=512, alpha=8), device="cpu", workers=10**9) == 1


def test_slots_leave_room_for_the_model_and_count_what_is_adapted(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(memory: float, **more: Any) -> int:
        monkeypatch.setattr(stack, "memory_here", lambda: int(memory))
        return slots_that_fit(lm, Settings(rank=16, alpha=8, **more), device="cpu", workers=1)

    weights = 4 * sum(weight.numel() for weight in lm.model.parameters())
    # Parameters, gradients, two moments and as much for activations, in float32.
    slot = 32 * 16 * sum(sum(linear.base.weight.shape) for linear in adapted_layers(lm, "all-linear", "all").values())
    assert fit(weights + 2 * 3.5 * slot) == 3, "half of what the model leaves"
    assert fit(weights) == 1
    assert fit(weights + 2 * 3.5 * slot, targets="qv") == 8 > fit(weights + 2 * 3.5 * slot, layers="last:2") >= 6


def test_a_model_without_finite_states_has_the_least_log_probability(tiny_model: Path) -> None:
    lm = load_model(str(tiny_model), dtype="float32")
    adapter = new_adapter(lm, Settings(rank=2, layers="all"), 0)
    for _, up in adapter.weights.values():
        up.data.fill_(math.nan)
    install(lm, adapter)
    assert log_probabilities(lm, rows_of(lm)[:2]) == [-1000.0, -1000.0]


def test_a_job_that_diverged_leaves_nothing_to_the_next_in_its_slot(tiny_model: Path) -> None:
    half = load_model(str(tiny_model), dtype="bfloat16")
    rows = tuple(rows_of(half))
    # Gradients beyond float32: by how much a processor rounds must not decide whether it diverges.
    settings = Settings(learning_rate=0.1, clip=1e6, epochs=5, rank=1, layers="all").model_copy(update={"alpha": 1e37})
    wild = Job(rows, settings, 0)
    calm = Job(rows, Settings(rank=4, alpha=8, epochs=2, layers="all"), 1)
    first, second = train_many(half, [wild, calm], 1)
    assert isinstance(first, DivergedError) and isinstance(second, Trained)
    (alone,) = whole(train_many(half, [calm], 1))
    assert second.losses == alone.losses


def test_dropout_does_not_depend_on_neighbours_in_a_step_of_several_parts(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "MOST_TOKENS", 200)
    jobs = [Job(tuple(rows_of(lm)), Settings(rank=4, alpha=8, epochs=3, batch_size=4, dropout=0.2), seed) for seed in (1, 2, 3)]
    for job, mine in zip(jobs, whole(train_many(lm, jobs, 3)), strict=True):
        (alone,) = whole(train_many(lm, [job], 1))
        assert difference(mine.adapter, alone.adapter) <= 1e-5


@pytest.mark.slow
def test_compiled_layers_train_alike(tiny_model: Path) -> None:
    results = []
    for compiled in (False, True):
        lm = load_model(str(tiny_model), dtype="float32")
        if compiled:
            stack.compile_layers(lm)
        results.append(whole(train_many(lm, mixed_jobs(lm, "last:2"), 3)))
    for plain, mine in zip(*results, strict=True):
        assert difference(plain.adapter, mine.adapter) <= 1e-5


def sharing_rows(lm: LanguageModel) -> list[Row]:
    """Documents of one beginning: some part early, some late, two are equal, one begins like none."""
    system = "Answer in a few words, please, and never in a whole sentence. "
    texts = ("Who built it? Ada", "Who paid for it? Nobody", "Who built it? Ada", "Who", "Where?")
    rows = [Row(tuple(lm.tokenizer(system + text)["input_ids"]), 40 + 3 * at) for at, text in enumerate(texts)]
    return [*rows, Row(tuple(lm.tokenizer("It is long.")["input_ids"]), 0)]


@pytest.mark.parametrize("layers", ["all", "last:2"])
def test_what_documents_begin_with_is_read_once_and_counts_for_each(family_lm: LanguageModel, layers: str) -> None:
    rows = tuple(sharing_rows(family_lm))
    jobs = [
        Job(rows, Settings(rank=4, alpha=8, epochs=8, batch_size=size, layers=layers, learning_rate=2e-4), size) for size in (3, 6)
    ]
    for job, mine in zip(jobs, whole(train_many(family_lm, jobs, 2)), strict=True):
        alone = train(family_lm, list(job.rows), job.settings, job.seed)
        assert mine.losses == pytest.approx(alone.losses, abs=1e-5)
        assert difference(mine.adapter, alone.adapter) <= 1e-5
    assert log_probabilities(family_lm, rows) == pytest.approx([log_probabilities(family_lm, [row])[0] for row in rows], abs=1e-5)


def test_a_step_reads_what_documents_begin_with_once_in_whatever_order_they_are_drawn(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row((*[group] * 20, at + 1), 20) for at in range(4) for group in (2, 3)]
    laid: list[int] = []
    packed = flat.pack
    monkeypatch.setattr(flat, "pack", lambda *args: laid.append(sum(s.length for s in packed(*args).spans)) or packed(*args))
    whole(train_many(lm, [Job(tuple(rows), Settings(rank=4, epochs=2, batch_size=8), 0)], 1))
    assert laid == [2 * 20 + 8] * 2


def test_rows_are_laid_out_without_what_stands_before_them(lm: LanguageModel) -> None:
    rows = sharing_rows(lm)
    packed = flat.pack([*((0, row) for row in rows), (1, rows[0])])
    laid = [row.ids[at] for row, skip in zip([*rows, rows[0]], packed.skips, strict=True) for at in range(skip, len(row.ids))]
    for row, path, span in zip([*rows, rows[0]], packed.paths, packed.spans, strict=True):
        assert tuple(laid[at] for at in path) == row.ids
        assert span.total == len(row.ids) and span.length >= 1
    assert packed.skips[0] == packed.skips[5] == packed.skips[6] == 0, "neither another beginning nor another slot is shared"
    assert min(packed.skips[1:5]) > 60
    assert not any(flat.pack([(0, row) for row in rows], sharing=False).skips)


@pytest.mark.parametrize("window", [None, 8])
def test_one_kernel_for_all_documents_equals_one_call_each(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """The kernel itself needs a GPU; here a loop that keeps its contract (packed rows, last query meets last key) stands for it."""
    import torch.nn.attention.varlen as varlen

    def kernel(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, q_ends: torch.Tensor, k_ends: torch.Tensor, *longest: int, **more: Any
    ) -> torch.Tensor:
        outs = []
        for (a, b), (c, d) in zip(itertools.pairwise(q_ends), itertools.pairwise(k_ends), strict=True):
            assert b - a <= longest[0] and d - c <= longest[1]
            distance = torch.arange(d - c)[-(b - a) :, None] - torch.arange(d - c)[None]
            left = more["window_size"][0]
            mask = (distance >= 0) & (distance <= (left if left >= 0 else d - c))
            parts = (part.transpose(0, 1)[None] for part in (q[a:b], k[c:d], v[c:d]))
            own = torch.nn.functional.scaled_dot_product_attention(
                *parts, attn_mask=mask, scale=more["scale"], enable_gqa=more["enable_gqa"]
            )
            outs.append(own[0].transpose(0, 1))
        return torch.cat(outs)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    rows = [(0, row) for row in sharing_rows(lm)]
    packed = flat.pack(rows)
    bounds, whole_bounds, paths = (torch.tensor(numbers) for numbers in packed.index)
    stream = stack.Stream(packed.spans, bounds=bounds.int(), whole_bounds=whole_bounds.int(), paths=paths)
    length = sum(span.length for span in packed.spans)
    query, key, value = (torch.randn(1, heads, length, 8) for heads in (4, 2, 2))
    with stack.streaming(stream):
        looped, _ = stack._attend(torch.nn.Module(), query, key, value, None, 0.3, window)
        assert torch.allclose(stack._attend_in_one_kernel(query, key, value, stream, 0.3, window), looped, atol=1e-6)


def test_what_memory_held_before_reaches_no_adapter(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = mixed_jobs(lm)
    clean = whole(train_many(lm, jobs, 2))
    made = torch.empty

    def dirty(*sizes: Any, **more: Any) -> torch.Tensor:
        return made(*sizes, **more) if more.get("requires_grad") else made(*sizes, **more).fill_(float("nan"))

    monkeypatch.setattr(stack.torch, "empty", dirty)
    for mine, other in zip(whole(train_many(lm, jobs, 2)), clean, strict=True):
        assert difference(mine.adapter, other.adapter) == 0


def test_a_document_without_a_label_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="carries loss"):
        train_many(lm, [Job((Row((5,), 0),), Settings(rank=2, alpha=2), 0)], 1)


def test_passes_of_scoring_count_what_is_laid_out(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(0, row) for row in sharing_rows(lm)[:4]]
    monkeypatch.setattr(flat, "MOST_TOKENS", len(rows[0][1].ids) + 60)
    assert len(list(flat.parts_of(rows, laid_out=True))) == 1 < len(list(flat.parts_of(rows)))
