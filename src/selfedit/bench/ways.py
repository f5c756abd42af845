"""The ways to train one self-edit's adapter: ours, PEFT's, TRL's, the reference code's."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from selfedit import seeds
from selfedit.bench.machine import peak_memory_mb
from selfedit.bench.work import EXAM_QUESTIONS, Turn, Workload, encoded
from selfedit.config import Settings

REFERENCE_LENGTH = 2048
SEED = 0
# Keeps a self-edit's flat weights and says where.
Keep = Callable[[int, Any], str]


def prepare(name: str, work: Workload) -> Callable[[], Turn]:
    """A row's turn, with the model loaded and warm."""
    from selfedit.lm.load import load_model

    lm = load_model(work.model, "cpu", "float32")
    rows = encoded(lm, work)
    settings = work.settings(name)
    # What warms a row up: two documents of each self-edit, once.
    few, brief = [some[:2] for some in rows], settings.model_copy(update={"epochs": 1})

    def keep(index: int, weights: Any) -> str:
        """To a file, so that what is compared later doesn't count as the row's memory now."""
        import numpy as np

        file = f"{work.folder}/{name}-{index}.npy"
        np.save(file, weights)
        return file

    if name.startswith("stacked"):
        from selfedit.lm.buffers import keep_freed_memory
        from selfedit.lm.stack import compile_layers
        from selfedit.lm.train_many import Job, train_many

        keep_freed_memory()
        if work.compiled:
            compile_layers(lm)
        train_many(lm, [Job(tuple(rows[0]), brief, SEED)], 1)
        alone = peak_memory_mb()
        train_many(lm, [Job(tuple(some), brief, SEED) for some in few], work.slots)
        return lambda: _stacked(lm, rows, settings, keep, work, alone)
    if name == "reference-qv":
        return lambda: _reference(lm, rows, settings, work.reference_steps)
    way = _trl if name == "trl" else _peft
    way(lm, few[:1], brief, keep)
    return lambda: way(lm, rows, settings, keep)


def _stacked(lm: Any, edits: list[list[Any]], settings: Settings, keep: Keep, work: Workload, alone: float) -> Turn:
    """Ours: ``lm/train_many.py``, then the exam of all adapters, ``slots`` at a time."""
    from selfedit.lm.stack import Slots
    from selfedit.lm.train import Trained
    from selfedit.lm.train_many import Job, train_many
    from selfedit.tasks.knowledge.exam import Paper, exam_questions, sit_exams

    jobs = [Job(tuple(rows), settings, seeds.derive(SEED, index)) for index, rows in enumerate(edits)]
    start = time.perf_counter()
    results = train_many(lm, jobs, work.slots)
    trained = time.perf_counter()
    adapters = [result.adapter for result in results if isinstance(result, Trained)]
    for at in range(0, len(adapters), work.slots):
        part = adapters[at : at + work.slots]
        seats = Slots(lm, settings.targets, settings.layers, settings.rank, len(part), training=False)
        for slot, adapter in enumerate(part):
            seats.put(slot, adapter)
        papers = [
            Paper(
                passage,
                tuple(exam_questions([replace(q, paraphrases=()) for q in passage.questions[:EXAM_QUESTIONS]])),
                "titled",
                i,
                margins=True,
            )
            for i, passage in enumerate(work.passages[at : at + len(part)])
        ]
        with seats.installed():
            sit_exams(lm, papers, seats.first)
    examined = time.perf_counter()
    exam = (examined - trained) / len(edits) if all(passage.questions for passage in work.passages) else None
    weights = [keep(index, flat(adapter.weights)) for index, adapter in enumerate(adapters)]
    return Turn((trained - start) / len(edits), weights, exam, one_slot_mb=alone)


def _peft(lm: Any, edits: list[list[Any]], settings: Settings, keep: Keep) -> Turn:
    """PEFT, one self-edit after the other, no padding, with our initial weights and order: ``examples/seal_minimal.py``."""
    import torch

    from selfedit.lm.train import learning_rate_factor, schedule_steps

    seconds, weights = 0.0, []
    for index, rows in enumerate(edits):
        seed = seeds.derive(SEED, index)
        model = with_lora(lm, settings, seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        start = time.perf_counter()
        optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
        steps = schedule_steps(rows, settings, seeds.derive(seed, "order"))
        for step, batches in enumerate(steps):
            optimiser.param_groups[0]["lr"] = settings.learning_rate * learning_rate_factor(step, len(steps), settings)
            for batch in batches:
                for row in batch:
                    ids = torch.tensor([row.ids])
                    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimiser.step()
            optimiser.zero_grad()
        seconds += time.perf_counter() - start
        weights.append(keep(index, flat_of_peft(model)))
        model.unload()
    return Turn(seconds / len(edits), weights)


def _trl(lm: Any, edits: list[list[Any]], settings: Settings, keep: Keep) -> Turn:
    """TRL's SFTTrainer, one self-edit after the other.

    Its padding-free batches need FlashAttention, which a CPU has not; at batch 1 there is nothing to pad anyway.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    seconds = 0.0
    for index, rows in enumerate(edits):
        model = with_lora(lm, settings, seeds.derive(SEED, index))
        with tempfile.TemporaryDirectory() as folder:
            config = SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=1,
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="linear",
                max_grad_norm=settings.clip,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=SEED,
            )
            data = Dataset.from_dict({"input_ids": [list(row.ids) for row in rows]})
            trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=lm.tokenizer)
            start = time.perf_counter()
            trainer.train()
            seconds += time.perf_counter() - start
        model.unload()
    return Turn(seconds / len(edits), [])


def _reference(lm: Any, edits: list[list[Any]], settings: Settings, timed: int) -> Turn:
    """The reference code's way: HF Trainer, every document padded to 2048 tokens, loss on the padding too.

    ``timed`` steps after a first one are timed; a self-edit's time is extrapolated by its number of steps.
    """
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    clock: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            clock.append(time.perf_counter())

    pad = lm.tokenizer.pad_token_id
    padded = [list(row.ids) + [pad] * (REFERENCE_LENGTH - len(row.ids)) for row in edits[0]]
    data = Dataset.from_dict({"input_ids": padded, "labels": padded})
    model = with_lora(lm, settings, SEED)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=1,
            max_steps=timed + 1,
            learning_rate=settings.learning_rate,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()]).train()
    model.unload()
    steps = settings.epochs * statistics.fmean(len(rows) for rows in edits)
    return Turn((clock[-1] - clock[0]) / timed * steps, [])


def with_lora(lm: Any, settings: Settings, seed: int) -> Any:
    """The model under PEFT with our initial weights."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj"] if settings.targets == "qv" else "all-linear"
    config = LoraConfig(r=settings.rank, lora_alpha=int(settings.alpha), target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(lm.model, config)
    generator = torch.Generator().manual_seed(seeds.derive(seed, "init"))
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            bound = weight.shape[1] ** -0.5
            weight.data = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
    return model


def flat(weights: dict[str, tuple[Any, Any]]) -> Any:
    """All of an adapter's weights in one array, by the modules' names."""
    import numpy as np

    return np.concatenate([part.detach().numpy().ravel() for name in sorted(weights) for part in weights[name]])


def flat_of_peft(model: Any) -> Any:
    """The same of a model under PEFT."""
    found: dict[str, dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            module, side = name.split(".lora_")
            found.setdefault(module.removeprefix("base_model.model."), {})[side[0]] = weight
    return flat({name: (pair["A"], pair["B"]) for name, pair in found.items()})
