from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from selfedit.config import Settings
from selfedit.edits import Document, Message
from selfedit.errors import DivergedError, MemoryStoreError, ModelError
from selfedit.lm import train as training
from selfedit.lm.adapter import first_layer, install, install_stack, load_adapter, merged_state, new_adapter, save_adapter
from selfedit.lm.batch import encode_answer, encode_document, pad
from selfedit.lm.load import load_model
from selfedit.lm.score import log_probabilities
from selfedit.lm.train import learning_rate_factor, schedule_steps, train

EXAMPLE = Path(__file__).parent.parent / "examples" / "seal_minimal.py"


def rows_of(lm: Any) -> list[Any]:
    documents = [
        Document("Quillmoor Bridge\nIt was built in 1732."),
        Document("slate", (Message("user", "What is it made of?"),)),
        Document("Quillmoor Bridge\nIt is 212 metres long, and nobody knows why it was ever built."),
        Document("Ada Thornby", (Message("user", "Who built it?"),)),
        Document("a"),
    ]
    return [encode_document(lm, document) for document in documents]


@pytest.fixture
def oracle() -> Any:
    spec = importlib.util.spec_from_file_location("seal_minimal", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("layers", ["all", "last:2"])
def test_same_losses_as_the_oracle_at_each_step(lm: Any, tiny_model: Path, oracle: Any, batch_size: int, layers: str) -> None:
    from transformers import AutoModelForCausalLM

    rows = rows_of(lm)
    settings = Settings(rank=8, alpha=16, epochs=6, learning_rate=5e-3, batch_size=batch_size, layers=layers)
    ours = train(lm, rows, settings, seed=11)
    theirs_settings = {
        "rank": 8,
        "alpha": 16,
        "epochs": 6,
        "learning_rate": 5e-3,
        "batch_size": batch_size,
        "clip": 1.0,
        "layers": [2, 3] if layers == "last:2" else None,
    }
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    _, losses = oracle.train(model, [(list(row.ids), row.unlabelled) for row in rows], theirs_settings, 11)
    assert len(losses) == 6 * math.ceil(5 / batch_size)
    assert ours.losses == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0] - 0.05


def test_the_frozen_prefix_changes_nothing(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(lm)
    settings = Settings(rank=4, alpha=8, epochs=3, learning_rate=5e-3, layers="last:1")
    reused = train(lm, rows, settings, seed=3)
    assert first_layer(reused.adapter) == 3
    monkeypatch.setattr(training, "first_layer", lambda adapter: 0)
    full = train(lm, rows, settings, seed=3)
    for mine, other in zip(reused.adapter.parameters, full.adapter.parameters, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text"])
def test_the_frozen_prefix_in_other_families(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from conftest import make_tiny_model

    lm = load_model(str(make_tiny_model(tmp_path / family, family=family)), dtype="float32")
    rows = rows_of(lm)
    settings = Settings(rank=4, alpha=8, epochs=2, learning_rate=5e-3, layers="last:2")
    reused = train(lm, rows, settings, seed=3).losses
    monkeypatch.setattr(training, "first_layer", lambda adapter: 0)
    assert reused == pytest.approx(train(lm, rows, settings, seed=3).losses, abs=1e-5)


def test_same_seed_same_bytes_other_seed_other_bytes(lm: Any) -> None:
    settings = Settings(rank=4, alpha=8, epochs=2, dropout=0.1)
    first, second, third = (train(lm, rows_of(lm), settings, seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.adapter.parameters, second.adapter.parameters, strict=True))
    assert not torch.equal(first.adapter.parameters[0], third.adapter.parameters[0])


def test_padding_never_matters(lm: Any) -> None:
    rows = rows_of(lm)
    one_by_one = [log_probabilities(lm, [row])[0] for row in rows]
    assert log_probabilities(lm, rows) == pytest.approx(one_by_one, abs=1e-5)


def test_labels_are_only_on_the_answer(lm: Any) -> None:
    row = encode_answer(lm, (Message("user", "Who?"),), "Ada")
    _, labels = pad([row, rows_of(lm)[0]], 1, torch.device("cpu"))
    kept = [i for i in labels[0].tolist() if i != training.IGNORED]
    assert lm.tokenizer.decode(kept) == "Ada<|im_end|>"
    assert row.labelled == 4


def test_schedule_covers_every_row_each_epoch_in_a_new_order(lm: Any) -> None:
    rows = rows_of(lm)
    steps = schedule_steps(rows, Settings(epochs=4, batch_size=2, accumulation=2), seed=1)
    assert [len(step) for step in steps] == [2, 1] * 4
    epochs = [[row for step in steps[at : at + 2] for batch in step for row in batch] for at in range(0, 8, 2)]
    assert all(sorted(epoch, key=str) == sorted(rows, key=str) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_accumulation_equals_a_larger_batch(lm: Any) -> None:
    large = train(lm, rows_of(lm)[:4], Settings(rank=4, alpha=8, epochs=2, batch_size=4), seed=2)
    small = train(lm, rows_of(lm)[:4], Settings(rank=4, alpha=8, epochs=2, batch_size=1, accumulation=4), seed=2)
    assert large.losses == pytest.approx(small.losses, abs=1e-5)


def test_learning_rate_schedules_against_transformers() -> None:
    from transformers import get_scheduler

    for name, warmup in itertools.product(("linear", "cosine", "constant"), (0.0, 0.3)):
        settings = Settings(schedule=name, warmup=warmup, learning_rate=1e-3)
        optimiser = torch.optim.AdamW([torch.zeros(1)], lr=1.0)
        full_name = f"{name}_with_warmup" if name == "constant" else name
        theirs = get_scheduler(full_name, optimiser, num_warmup_steps=math.ceil(warmup * 7), num_training_steps=7)
        for step in range(7):
            assert learning_rate_factor(step, 7, settings) == pytest.approx(optimiser.param_groups[0]["lr"])
            optimiser.step()
            theirs.step()


def test_divergence_is_an_error_with_the_remedy(lm: Any) -> None:
    with pytest.raises(DivergedError, match="lower the learning rate"):
        train(lm, rows_of(lm), Settings(learning_rate=0.1, clip=1e6, epochs=200, rank=64, alpha=4096), seed=0)


def test_settings_name_layers_that_exist(lm: Any) -> None:
    assert {name.rsplit(".", 1)[-1] for name in new_adapter(lm, Settings(targets="qv"), 0).weights} == {"q_proj", "v_proj"}
    assert first_layer(new_adapter(lm, Settings(layers="last:1"), 0)) == 3
    assert first_layer(new_adapter(lm, Settings(layers="last:9"), 0)) == 0
    with pytest.raises(ModelError, match="no linear layer x_proj"):
        new_adapter(lm, Settings(targets="x_proj"), 0)


def test_saved_adapter_answers_alike_in_peft(lm: Any, tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trained = train(lm, rows_of(lm), Settings(rank=4, alpha=8, epochs=3, learning_rate=1e-2, layers="last:2"), seed=1)
    save_adapter(trained.adapter, tmp_path / "a", str(tiny_model))
    ids = torch.tensor([rows_of(lm)[2].ids])
    with torch.no_grad():
        mine = lm.model(input_ids=ids).logits
        install(lm, None)
        bare = lm.model(input_ids=ids).logits
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
        theirs = PeftModel.from_pretrained(model, tmp_path / "a")(input_ids=ids).logits
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert not torch.allclose(mine, bare, atol=1e-2)


def test_a_damaged_adapter_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    for number, content in enumerate((None, b"{", b"\x00" * 40)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if content is not None:
            (folder / "adapter_config.json").write_text('{"lora_alpha": 8}')
            (folder / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(MemoryStoreError, match="can't be read"):
            load_adapter(folder)


def test_stack_equals_merged_and_survives_the_disk(lm: Any, tiny_model: Path, tmp_path: Path) -> None:
    adapters = []
    for seed in (1, 2):
        trained = train(lm, rows_of(lm), Settings(rank=4, alpha=8, epochs=2, learning_rate=1e-2), seed=seed)
        save_adapter(trained.adapter, tmp_path / str(seed), "tiny")
        adapters.append(load_adapter(tmp_path / str(seed)))
    ids = torch.tensor([rows_of(lm)[0].ids])
    stacked, wide = (load_model(str(tiny_model), dtype="float32") for _ in range(2))
    install_stack(stacked, adapters)
    install_stack(wide, adapters * 40)
    dense = [layer for layer in wide.model.modules() if hasattr(layer, "frozen") and not layer.frozen]
    assert dense and all(layer.base.weight is not layer.original[0] for layer in dense)
    plain = load_model(str(tiny_model), dtype="float32")
    plain.model.load_state_dict(merged_state(load_model(str(tiny_model), dtype="float32"), adapters))
    heavy = load_model(str(tiny_model), dtype="float32")
    heavy.model.load_state_dict(merged_state(load_model(str(tiny_model), dtype="float32"), adapters * 40))
    with torch.no_grad():
        assert torch.allclose(stacked.model(input_ids=ids).logits, plain.model(input_ids=ids).logits, atol=1e-4)
        assert torch.allclose(wide.model(input_ids=ids).logits, heavy.model(input_ids=ids).logits, atol=1e-3)
