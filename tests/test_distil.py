"""Context distillation: soft targets are what the teacher says; both trainers, and stored entries again, learn them alike."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import learn_whatever, make_tiny_model
from selfedit.cli.common import build_config
from selfedit.config import (
    ArcEvalConfig,
    ArcTrainConfig,
    ContinualConfig,
    EditConfig,
    EvalConfig,
    Settings,
    TrainConfig,
)
from selfedit.contexts import Passage
from selfedit.corpus import _documents, train_on_all
from selfedit.edits import Document, TrainingPlan, in_view
from selfedit.errors import DataError
from selfedit.inner import Trial, run_trials
from selfedit.lm import train_many as engine
from selfedit.lm.adapter import Adapter, install, install_stack, load_adapter, new_adapter, standing
from selfedit.lm.batch import Row, SoftTargets, encode_answer, encode_document, soft_targets
from selfedit.lm.distil import LIKELIEST, seen_by_teacher, taught
from selfedit.lm.load import LanguageModel, load_model
from selfedit.lm.train import train
from selfedit.lm.train_many import Job, train_many
from selfedit.memory.ledger import Memory
from selfedit.memory.rebuild import plan_of, together, train_again
from selfedit.tasks.knowledge.prompts import exam_prompt
from selfedit.tasks.knowledge.task import KnowledgeTask
from test_cli import learn as learn_by_command
from test_stack import difference, whole

Command = Callable[..., subprocess.CompletedProcess[str]]
BRIDGE = Passage("Quillmoor Bridge", "It was built in 1732 by Ada Thornby. It is 212 metres long.")
TOWER = Passage("Ashby Tower", "It was built in 1890 by Ned Fell. It is 40 metres high.")
ASKED = (
    ("When was it built?", BRIDGE.title, "1732"),
    ("Who built it?", None, "Ada Thornby"),
    ("How long is it?", None, "212 metres"),
)
PLAIN = Document("Quillmoor Bridge\nIt is 212 metres long.")


def documents_of(lm: LanguageModel) -> tuple[Document, ...]:
    return (*(Document(answer, exam_prompt(question, title, lm.chat)) for question, title, answer in ASKED), PLAIN)


def dense(soft: SoftTargets, vocabulary: int) -> torch.Tensor:
    return torch.zeros(len(soft.ids), vocabulary).scatter_add_(1, soft.ids, soft.shares)


def apart(*adapters: Adapter) -> float:
    return min(difference(a, b) for at, a in enumerate(adapters) for b in adapters[:at])


@pytest.fixture(scope="module", params=[("llama", None), ("gemma3_text", 2.0)], ids=lambda param: param[0])
def family_lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    family, cap = request.param
    folder = tmp_path_factory.mktemp("families") / family
    lm = load_model(str(make_tiny_model(folder, family=family)), dtype="float32")
    lm.model.config.final_logit_softcapping = cap
    # With the small weights of a fresh model some gradients are no larger than rounding, and AdamW makes steps of them.
    for weight in lm.model.parameters():
        if weight.ndim > 1:
            weight.mul_(2)
    return lm


@pytest.mark.parametrize("layers", ["all", "last:2"])
def test_soft_and_plain_slots_side_by_side_equal_the_plain_trainer(family_lm: LanguageModel, layers: str) -> None:
    documents = in_view(documents_of(family_lm), BRIDGE.view)
    plain, half, whole_share = (tuple(taught(family_lm, documents, share)) for share in (0.0, 0.5, 1.0))
    settings = Settings(rank=4, alpha=8, layers=layers, learning_rate=2e-4, epochs=3)
    jobs = [
        Job(plain, settings, 1),
        Job(half, settings, 1),
        Job(whole_share, settings.model_copy(update={"rank": 8, "batch_size": 2, "epochs": 5}), 2),
        Job((*half[:2], *plain[2:]), settings, 1),
    ]
    together = whole(train_many(family_lm, jobs, 3))
    for job, mine in zip(jobs, together, strict=True):
        alone = train(family_lm, list(job.rows), job.settings, job.seed)
        install(family_lm, None)
        assert len(alone.losses) >= 10
        assert mine.losses == pytest.approx(alone.losses, abs=1e-5)
        assert difference(mine.adapter, alone.adapter) <= 1e-5
        (unshared,) = whole(train_many(family_lm, [job], 1))
        assert difference(mine.adapter, unshared.adapter) <= 1e-5
    assert apart(*(together[at].adapter for at in (0, 1, 3))) > 1e-4


@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_gradient_of_soft_targets_equals_torch(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, cap: float | None) -> None:
    monkeypatch.setattr(engine, "HEAD_CHUNK", 3)
    lm.model.config.final_logit_softcapping = cap
    states, weights = torch.randn(7, 32, requires_grad=True), torch.rand(7)
    ids = torch.randint(3, 9, (4, 5))
    assert any(len(set(row.tolist())) < 5 for row in ids), "an id may stand twice"
    rows = [Row((1, 2, 7), 1), Row((1, 3, 4, 5, 6), 1, SoftTargets(ids, torch.rand(4, 5).softmax(-1))), Row((8, 9), 0)]
    targets = torch.tensor([2, 7, 3, 4, 5, 6, 9])
    soft = soft_targets(rows, targets)
    assert soft is not None
    expected_NV = dense(soft, 258)
    assert torch.equal(expected_NV[[0, 1, 6]], torch.nn.functional.one_hot(targets[[0, 1, 6]], 258).float())
    loss, each = engine.head_loss(lm, states, targets, weights, soft)
    (mine,) = torch.autograd.grad(loss, states)
    logits = lm.model.get_output_embeddings()(states)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = torch.nn.functional.cross_entropy(logits, expected_NV, reduction="none")
    (theirs,) = torch.autograd.grad((expected * weights).sum(), states)
    assert torch.allclose(each, expected, atol=1e-5)
    assert torch.allclose(mine, theirs, atol=1e-6)
    assert soft_targets([rows[0], rows[2]], targets[[0, 1, 6]]) is None


@pytest.mark.parametrize("model", ["lm", "base_lm"])
def test_targets_are_what_the_model_says_with_the_passage_in_its_prompt(model: str, request: pytest.FixtureRequest) -> None:
    lm = request.getfixturevalue(model)
    documents = in_view(documents_of(lm), BRIDGE.view)
    rows = taught(lm, documents, 0.3)
    head = tuple(lm.tokenizer(f"{BRIDGE.view}\n\n")["input_ids"])
    plain = encode_document(lm, PLAIN)
    read = [encode_answer(lm, exam_prompt(question, title, lm.chat, BRIDGE.view), answer) for question, title, answer in ASKED]
    read.append(Row((*head, *plain.ids), len(head) + 1))
    for document, row, seen in zip(documents, rows, read, strict=True):
        assert row.soft is not None and replace(row, soft=None) == encode_document(lm, document)
        assert seen == seen_by_teacher(lm, document, row)
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([seen.ids])).logits[0, seen.unlabelled - 1 : -1]
        probabilities = logits.softmax(-1)
        top = probabilities.topk(LIKELIEST)
        expected = torch.zeros_like(probabilities).scatter_(1, top.indices, top.values / top.values.sum(-1, keepdim=True))
        labels = torch.tensor(row.ids[-row.labelled :])
        expected = 0.3 * expected + 0.7 * torch.nn.functional.one_hot(labels, logits.shape[1])
        assert torch.allclose(dense(row.soft, logits.shape[1]), expected, atol=1e-6)


def test_the_teacher_is_what_stands_without_an_adapter_in_training(lm: LanguageModel) -> None:
    documents = in_view(documents_of(lm), BRIDGE.view)
    adapter = new_adapter(lm, Settings(rank=4, alpha=64, layers="all"), 1)
    for _, up in adapter.weights.values():
        up.normal_(generator=torch.Generator().manual_seed(1))

    def targets() -> torch.Tensor:
        return torch.cat([dense(row.soft, 258) for row in taught(lm, documents, 1.0) if row.soft is not None])

    bare = targets()
    install(lm, adapter)
    assert torch.equal(targets(), bare)
    with standing(lm, [adapter]):
        assert (targets() - bare).abs().max() > 0.01


def test_plain_targets_where_there_is_no_teacher(lm: LanguageModel) -> None:
    request = exam_prompt("Who?", None, lm.chat)
    long = "x" * 1800
    documents = (
        Document("Ada", request),
        Document("Ada", request, whole=True, view="Title\nText"),
        Document("a" * 200, request, view=long),
        Document("Ada", request, view=long),
    )
    rows = taught(lm, documents, 1.0)
    assert [row.soft is not None for row in rows] == [False, False, False, True]
    assert rows[:3] == [encode_document(lm, document) for document in documents[:3]]


def test_the_view_stands_after_the_beginning_of_the_sequence(lm: LanguageModel) -> None:
    lm.tokenizer.bos_token = "<|im_start|>"
    seen = seen_by_teacher(lm, Document("ab", view="V"), Row((0, 50, 51, 1), 0))
    assert seen is not None and seen.ids[0] == 0 and seen.ids[-3:] == (50, 51, 1)
    assert lm.tokenizer.decode(seen.ids[1:-3]) == "V\n\n" and seen.labelled == 3


def test_documents_shared_by_plans_are_taught_by_each_plan_s_own_view_and_share(lm: LanguageModel, tmp_path: Path) -> None:
    settings = Settings(rank=4, alpha=8, layers="all", learning_rate=2e-4, epochs=3)
    bare = documents_of(lm)
    plans = [
        TrainingPlan(in_view(bare, view), settings.model_copy(update={"distil": share}), 1)
        for view, share in ((BRIDGE.view, 0.5), (BRIDGE.view, 0.0), (TOWER.view, 0.5), ("", 0.5), (BRIDGE.view, 1.0))
    ]
    run_trials(lm, [], [Trial(None, plan, str(tmp_path / f"{at}")) for at, plan in enumerate(plans)], 2)
    trained = [load_adapter(tmp_path / f"{at}") for at in range(5)]
    assert apart(*(trained[at] for at in (0, 1, 2, 4))) > 1e-4
    for at, plan in enumerate(plans):
        run_trials(lm, [], [Trial(None, plan, str(tmp_path / "alone"))], 1)
        assert difference(load_adapter(tmp_path / "alone"), trained[at]) <= 1e-5


def test_without_a_share_or_a_view_it_is_plain_sft_to_the_byte(lm: LanguageModel, tmp_path: Path) -> None:
    settings = Settings(rank=4, alpha=8, epochs=2)
    documents = documents_of(lm)
    plans = [
        TrainingPlan(documents, settings, 1),
        TrainingPlan(in_view(documents, BRIDGE.view), settings, 1),
        TrainingPlan(documents, settings.model_copy(update={"distil": 0.5}), 1),
    ]
    for at, plan in enumerate(plans):
        run_trials(lm, [], [Trial(None, plan, str(tmp_path / f"{at}"))], 1)
    plain, *others = ((tmp_path / f"{at}" / "adapter_model.safetensors").read_bytes() for at in range(3))
    assert others == [plain, plain]


def test_a_self_edit_s_documents_have_the_whole_passage_in_view(lm: LanguageModel) -> None:
    long = Passage("Long", " ".join(f"Sentence number {at} is about the bridge." for at in range(60)))
    for passage in (BRIDGE, long):
        plan = KnowledgeTask(EditConfig(grounding=0)).compile(lm, passage, "Q: Who built it?\nA: Ada Thornby", Settings(), 0)
        assert len(plan.documents) > 2
        assert {document.view for document in plan.documents} == {f"{passage.title}\n{passage.text}"}


def test_many_passages_are_each_taught_with_their_own_in_view(lm: LanguageModel) -> None:
    listed = [{"text": "It stands.", "request": None}, {"text": "1732", "request": [["user", "When?"]]}]
    written = {
        passage.id: {"plans": [{"method": "self", "documents": listed[: at + 1]}]} for at, passage in enumerate((TOWER, BRIDGE))
    }
    documents = _documents("self", [TOWER, BRIDGE], written)
    assert [(document.text, document.view) for document in documents] == [("It stands.", TOWER.view), ("1732", BRIDGE.view)]
    losses = {}
    for full in (False, True):
        config = build_config(EvalConfig, None, {"setting": "corpus", "corpus.full": full}, [])
        for share in (0.0, 0.5):
            settings = Settings(rank=4, alpha=8, epochs=2, learning_rate=1e-4, batch_size=2, distil=share)
            losses[full, share] = train_on_all(lm, "self", config, documents, settings, (), None, {})["losses"]
    for share in (0.0, 0.5):
        assert losses[True, share][0] == pytest.approx(losses[False, share][0], abs=1e-5), "the same targets before the first step"
    assert abs(losses[True, 0.5][0] - losses[True, 0.0][0]) > 1e-3


@pytest.fixture
def learnt(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory of two passages, the second with the first one's lessons replayed."""
    settings = Settings(rank=4, alpha=8, epochs=2, distil=0.5)
    learn_whatever(monkeypatch, tiny_model, tmp_path / "learnt", (TOWER, BRIDGE), settings, replay=0.5)
    return tmp_path / "learnt"


def test_an_entry_trained_again_has_the_same_teacher(command: Command, learnt: Path, tiny_model: Path, tmp_path: Path) -> None:
    memory = Memory.open(learnt)
    first, second = memory.adapter_folders()
    records = {entry.id: entry.record for entry in memory.entries()}
    assert records[2]["settings"]["distil"] == 0.5 and records[2]["replayed"]
    plan = plan_of(records[2], records)
    own = len(records[2]["documents"])
    assert [document.view for document in plan.documents] == [BRIDGE.view] * own + [""] * len(records[2]["replayed"])

    def again(plan: TrainingPlan, *beneath: Path) -> Adapter:
        lm = load_model(str(tiny_model), dtype="float32")
        install_stack(lm, [load_adapter(folder) for folder in beneath])
        train_again(lm, plan, str(tmp_path / "again"))
        return load_adapter(tmp_path / "again")

    assert difference(again(plan, first), load_adapter(second)) <= 1e-5
    plain = replace(plan, settings=plan.settings.model_copy(update={"distil": 0.0}))
    assert difference(again(plain, first), load_adapter(second)) > 1e-4
    assert {one.view for one in together([plan_of(records[1], {}), plan_of(records[2], {})], {}).documents} == {
        TOWER.view,
        BRIDGE.view,
    }

    done = command("memory", "undo", 1, "--memory", learnt)
    assert done.returncode == 0, done.stderr
    (rebuilt,) = Memory.open(learnt).adapter_folders()
    assert difference(load_adapter(rebuilt), again(plan_of(records[2], {}))) <= 1e-5


def test_learn_takes_the_setting(command: Command, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path) -> None:
    marks = []
    for share in (0.0, 0.5):
        more = ("--set", f"settings.distil={share}", "--seed", 5, "--json", tmp_path / "r.json")
        done = learn_by_command(command, tiny_model, passage_file, quiz_file, tmp_path / f"m{share}", *more)
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "r.json").read_text())
        assert result["config"]["settings"]["distil"] == share
        assert [row["status"] for row in result["candidates"]] == ["ok", "ok"]
        marks.append([(row["edit"], row["tokens"], row["logprob"]) for row in result["candidates"]])
    assert [row[:2] for row in marks[0]] == [row[:2] for row in marks[1]]
    assert all(plain[2] != soft[2] for plain, soft in zip(*marks, strict=True))


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        (ContinualConfig, "settings", "without the passage in view"),
        (ArcTrainConfig, "settings", "a puzzle has no passage"),
        (ArcTrainConfig, "outer", "learns to write"),
        (ArcEvalConfig, "settings", "a puzzle has no passage"),
        (TrainConfig, "outer", "learns to write"),
    ],
)
def test_where_no_passage_can_be_in_view_the_setting_is_refused(kind: Any, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: .*distil is 0.5, but .*{reason}.*give 0"):
        build_config(kind, None, {}, [f"{name}.distil=0.5"])
    with pytest.raises(DataError, match="distil"):
        build_config(TrainConfig, None, {}, ["settings.distil=1.5"])
    assert build_config(TrainConfig, None, {}, ["settings.distil=0.5"]).settings.distil == 0.5
