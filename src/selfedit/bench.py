"""``selfedit bench inner``: the ways to train one self-edit's adapter, side by side on the same documents.

Each way lives in a process of its own (so that its peak memory is its own), one thread each, and takes its turn; the turns are
interleaved and the median counts. Seconds are for training alone; loading and a few warming steps are left out.

Useful work, the same for all rows: tokens of documents, no padding. FLOPs of one token's pass through the adapted part of the
model: 4 for each base weight there (2 forward, 2 for the gradient of the input; the base has no gradient of its own; q, k and v
of the first adapted layer need none), 6 for each weight of the adapter, 4 for each weight of the head at a labelled token, 6 d
T for attention over a document of T tokens (causal; d heads times head size). Layers below the first adapted one: 2 for each
weight, once for each distinct document. A row's share of the peak is held against the product measured before and after its turn.

What speaks for a row and what against: freed memory is kept in the stacked rows only (``lm/buffers.py`` is a part of ours);
drawing the initial weights counts in the stacked rows only. The exam is the one of ``learn``: greedy answers and the golds'
margins.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from selfedit import seeds
from selfedit.config import Settings
from selfedit.contexts import Passage
from selfedit.errors import DataError, SelfeditError
from selfedit.executors.local import cores

ROWS = ("reference-qv", "peft-qv", "stacked-qv", "peft", "trl", "stacked", "stacked-last")
REFERENCE_LENGTH = 2048
EXAM_QUESTIONS = 5
# Keeps a self-edit's flat weights and says where.
Keep = Callable[[int, Any], str]
SEED = 0


@dataclass(frozen=True)
class Workload:
    """What every row trains.

    Attributes:
        texts: one list of plain documents a self-edit.
        passages: each self-edit's passage, whose first questions are the exam of the stacked rows.
        epochs: passes over each.
        reference_steps: optimiser steps of the padded way that are timed; the rest of its time is extrapolated.
        last: N of ``stacked-last``.
        slots: adapters side by side in the stacked rows.
        compiled: whether the stacked rows' layers go through ``torch.compile``.
        folder: where adapters are kept until they are compared.
    """

    model: str
    texts: tuple[tuple[str, ...], ...]
    passages: tuple[Passage, ...]
    epochs: int
    reference_steps: int
    last: int
    slots: int
    compiled: bool = False
    folder: str = ""

    def settings(self, name: str) -> Settings:
        """A row's settings: the paper's r 32, alpha 64, learning rate 1e-3, batch 1; targets and layers by the row's name."""
        return Settings(
            rank=32,
            alpha=64,
            learning_rate=1e-3,
            epochs=self.epochs,
            targets="qv" if name.endswith("-qv") else "all-linear",
            layers=f"last:{self.last}" if name == "stacked-last" else "all",
        )


@dataclass
class Turn:
    """What one turn of a row measured.

    Attributes:
        seconds: for one self-edit's training.
        weights: files of flat adapter weights by self-edit; none where the way's initial weights or order are its own.
        exam_seconds: for one adapter's exam of ``EXAM_QUESTIONS`` questions, all adapters in one batch; stacked rows only, and only
            where every passage has questions.
        peak_memory_mb: of the process so far.
        product_gflops: of a 2048-cubed product before and after the turn: shared machines change their speed from minute to minute.
        one_slot_mb: of the process when it had trained one self-edit alone; stacked rows only.
    """

    seconds: float
    weights: list[str]
    exam_seconds: float | None = None
    peak_memory_mb: float = 0.0
    product_gflops: float = 0.0
    one_slot_mb: float | None = None


def bench_inner(work: Workload, repeats: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Times every row ``repeats`` times, interleaved, and returns the table of ``--json``."""
    with tempfile.TemporaryDirectory() as folder:
        return _bench(replace(work, folder=folder), repeats, told)


def _bench(work: Workload, repeats: int, told: Callable[[str], None]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    crews: dict[str, tuple[Any, Connection]] = {}
    try:
        for name in ROWS:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(name, work, theirs), daemon=True)
            process.start()
            crews[name] = (process, ours)
        for name in ROWS:
            told(f"loading {name}")
            _receive(name, crews[name][1])
        peaks = [matmul_peak()]
        turns: dict[str, list[Turn]] = {name: [] for name in ROWS}
        for turn in range(repeats):
            for name in ROWS:
                told(f"{name}, turn {turn + 1} of {repeats}")
                crews[name][1].send(turn)
                own = _receive(name, crews[name][1])
                peaks.append(matmul_peak())
                turns[name].append(replace(own, product_gflops=(peaks[-2] + peaks[-1]) / 2))
    finally:
        for process, connection in crews.values():
            connection.close()
            process.join(5)
            process.terminate()
    return _table(work, turns, max(peaks), repeats)


def _receive(name: str, connection: Connection) -> Any:
    try:
        answer = connection.recv()
    except EOFError as error:
        raise SelfeditError(f"the process of {name} died, most likely for want of memory; give --edits a smaller number") from error
    if isinstance(answer, str) and answer != "ready":
        raise SelfeditError(f"{name}: {answer}")
    return answer


def _serve(name: str, work: Workload, connection: Connection) -> None:
    """A row's process: loads, says ready, then trains once for each turn that it is asked for."""
    os.environ["OMP_NUM_THREADS"] = "1"
    # Trainers print progress of their own; errors come back through the connection.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    import torch

    torch.set_num_threads(1)
    try:
        run = _prepare(name, work)
        connection.send("ready")
        while True:
            connection.recv()
            turn = run()
            turn.peak_memory_mb = peak_memory_mb()
            connection.send(turn)
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # shown by the parent
        connection.send(f"{type(error).__name__}: {error}")


def peak_memory_mb() -> float:
    """Most memory that this process ever held, in MiB."""
    import resource  # not there on Windows, where the other commands work

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _prepare(name: str, work: Workload) -> Callable[[], Turn]:
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


def encoded(lm: Any, work: Workload) -> list[list[Any]]:
    """Each self-edit's documents as rows of tokens."""
    from selfedit.edits import Document
    from selfedit.lm.batch import encode_document

    return [[encode_document(lm, Document(text)) for text in texts] for texts in work.texts]


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


def matmul_peak(size: int = 2048, times: int = 3) -> float:
    """GFLOP/s of the best of a few fp32 products of size x size on one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.randn(size, size), torch.randn(size, size)
        best = float("inf")
        for _ in range(times):
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
        return 2 * size**3 / best / 1e9
    finally:
        torch.set_num_threads(threads)


def useful_flops(lm: Any, edits: Sequence[Sequence[Any]], settings: Settings) -> float:
    """FLOPs of training all self-edits that do not fall on padding; the formula is in this module's docstring."""
    from selfedit.lm.adapter import adapted_layers, layer_index

    config = lm.config.get_text_config()
    adapted = adapted_layers(lm, settings.targets, settings.layers)
    first = min(layer_index(name) for name in adapted)
    below = above = 0
    for name, layer in adapted_layers(lm, "all-linear", "all").items():
        weights = layer.base.in_features * layer.base.out_features
        if layer_index(name) < first:
            below += 2 * weights
        else:
            above += (2 if layer_index(name) == first and name.endswith(("q_proj", "k_proj", "v_proj")) else 4) * weights
    lora = sum(settings.rank * (layer.base.in_features + layer.base.out_features) for layer in adapted.values())
    depth = config.num_hidden_layers - first
    heads = config.num_attention_heads * lm.head_size
    head = config.hidden_size * config.vocab_size
    total = 0.0
    for rows in edits:
        for row in rows:
            length = len(row.ids)
            attention = 6 * heads * length * depth
            total += settings.epochs * (length * (above + 6 * lora + attention) + row.labelled * 4 * head)
    return total + below * sum(len(ids) for ids in {row.ids for rows in edits for row in rows})


def _table(work: Workload, turns: dict[str, list[Turn]], peak: float, repeats: int) -> dict[str, Any]:
    import numpy as np

    from selfedit.lm.load import load_model

    lm = load_model(work.model, "cpu", "float32")
    edits = encoded(lm, work)
    tokens = work.epochs * sum(len(row.ids) for rows in edits for row in rows) / len(edits)
    median = {name: statistics.median(turn.seconds for turn in turns[name]) for name in ROWS}
    rows = []
    for name in ROWS:
        flops = useful_flops(lm, edits, work.settings(name)) / len(edits)
        control = {"stacked-qv": "peft-qv", "stacked": "peft"}.get(name)
        difference = None
        if control is not None:
            pairs = zip(turns[name][0].weights, turns[control][0].weights, strict=True)
            difference = max(float(np.abs(np.load(a, "r") - np.load(b, "r")).max()) for a, b in pairs)
        rows.append(
            {
                "name": name,
                "seconds_per_edit": median[name],
                "seconds_all": [turn.seconds for turn in turns[name]],
                "tokens_per_second": tokens / median[name],
                "ratio_reference": median["reference-qv"] / median[name],
                "ratio_peft": median["peft-qv" if name.endswith("-qv") else "peft"] / median[name],
                "peak_share": statistics.median(flops / turn.seconds / 1e9 / turn.product_gflops for turn in turns[name]),
                "peak_memory_mb": max(turn.peak_memory_mb for turn in turns[name]),
                "max_weight_diff": difference,
                **_beside(turns[name]),
            }
        )
    return {
        "machine": machine(),
        "peak_gflops": peak,
        "model": work.model,
        "edits": len(edits),
        "documents": sum(len(rows) for rows in edits),
        "tokens_per_edit": tokens,
        "epochs": work.epochs,
        "reference_steps_timed": work.reference_steps,
        "last": work.last,
        "slots": work.slots,
        "compiled": work.compiled,
        "repeats": repeats,
        "rows": rows,
    }


def _beside(turns: Sequence[Turn]) -> dict[str, float | None]:
    """What only the stacked rows measure: the exam, and what many slots add to one slot's peak of memory."""
    exams = [turn.exam_seconds for turn in turns if turn.exam_seconds is not None]
    alone = turns[0].one_slot_mb
    return {
        "exam_seconds_per_edit": statistics.median(exams) if exams else None,
        "exam_share": statistics.median(exams) / statistics.median(turn.seconds for turn in turns) if exams else None,
        "slots_add_mb": None if alone is None else max(turn.peak_memory_mb for turn in turns) - alone,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    model = platform.processor()
    try:
        with open("/proc/cpuinfo") as stream:
            model = next(line.split(":", 1)[1].strip() for line in stream if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": cores(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
    }


def workload(
    model: str,
    notes: str | None,
    edits: int,
    documents: int,
    epochs: int,
    reference_steps: int,
    last: int,
    slots: int,
    compiled: bool,
) -> Workload:
    """Documents of real passages with published notes, or of almanac's own passages where there is no such file.

    Args:
        notes: a data set with self-edits in the reference code's form; None: each almanac passage's sentences stand for notes.
        edits: how many self-edits.
        documents: most documents of one, the passage on top of them.

    Raises:
        DataError: the file has fewer self-edits.
    """
    from pathlib import Path

    from selfedit.tasks.knowledge.data import load_dataset, load_edits
    from selfedit.tasks.knowledge.documents import passage_pieces, plain_documents

    if notes is not None:
        written = [(passage, text) for passage, texts in load_edits(Path(notes), questions=True)[0] for text in texts]
    else:
        written = [(passage, "\n".join(passage_pieces(passage.text))) for passage in load_dataset("almanac", "dev")]
    if len(written) < edits:
        raise DataError(f"{notes or 'almanac'}: has {len(written)} self-edits; give --edits at most that")
    chosen = written[:edits]
    texts = tuple(
        tuple(document.text for document in plain_documents(passage, text, "lines", documents)) for passage, text in chosen
    )
    return Workload(model, texts, tuple(passage for passage, _ in chosen), epochs, reference_steps, last, slots, compiled)
