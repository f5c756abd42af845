"""What a run will take, before it starts: trials, time, disk, memory; within a factor of two on a machine that does nothing else.

Training FLOPs by the formula of ``selfedit bench inner``, at the share of the machine's matrix product that the engine reaches;
reading and writing text at the share that small batches reach.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from selfedit.config import (
    REWARD_EXAMS,
    ArcEvalConfig,
    ArcTrainConfig,
    ContinualConfig,
    EditConfig,
    EvalConfig,
    RewardBenchConfig,
    Settings,
    TrainConfig,
)
from selfedit.evaluate import UNTRAINED, WRITERS, method_name
from selfedit.executors.local import default_workers
from selfedit.lm.generate import CACHE_BYTES
from selfedit.lm.load import Identity, resolve_device
from selfedit.lm.stack import slots_that_fit

# Seen on almanac and SQuAD with the embedded model: documents of a self-edit, tokens of one and of the passage, labelled share.
DOCUMENTS, TOKENS, PASSAGE_TOKENS, LABELLED = 45, 48, 220, 0.3
# Requests for a self-edit, tokens written and read for each; exam questions of a passage with their other wordings.
REQUESTS, WRITTEN, READ, QUESTIONS, ASKED_TOKENS, ANSWER_TOKENS = 24, 35, 90, 10, 60, 8
# Exams of a trial in the bench of rewards, as many times the labelled one; a quiz's making, as many times a self-edit's writing.
EXAMS_A_TRIAL, QUIZ_EDITS = 3, 10
# A small puzzle with its examples, the views that a test is answered in, a recipe.
PUZZLE_TOKENS, VIEWS, RECIPE_TOKENS = 400, 7, 90
TRAINING_SHARE, WRITING_SHARE = 0.6, 0.25


@dataclass(frozen=True)
class Estimate:
    """Of a whole run.

    Attributes:
        trials: trainings.
        seconds: on ``workers`` processes.
        disk, memory: bytes, in the run's folder and in all processes together.
    """

    trials: int
    seconds: float
    disk: float
    memory: float
    workers: int

    def lines(self) -> list[str]:
        """As comments below the settings."""
        return [
            f"# estimate: {self.trials} trials, {_duration(self.seconds)} with {self.workers} worker(s) here if nothing else runs",
            f"# disk {self.disk / 2**20:.0f} MiB, memory {self.memory / 2**30:.1f} GiB",
        ]


def estimate_training(config: TrainConfig, known: Identity) -> Estimate:
    """Of ``selfedit train``."""
    shape = _Shape.of(known)
    edits = config.rounds * config.contexts * config.edits
    first = min(config.noise_contexts, config.contexts)
    tried = min(config.screened, config.edits) if config.screen else config.edits
    runs = first * config.edits * max(2, config.repeats) + (config.contexts - first) * tried * config.repeats
    trials = 0 if config.rule == "random" else config.rounds * runs
    # A look of a screen is about an epoch.
    looks = edits / config.settings.epochs if config.screen else 0
    quizzes = QUIZ_EDITS * config.rounds * config.contexts if REWARD_EXAMS.get(config.reward) == "self-quiz" else 0
    flops = (trials + looks) * _trial(shape, config.settings, config.edit) / TRAINING_SHARE
    flops += (trials * _exam(shape) + (edits + quizzes) * _writing(shape, config.edit)) / WRITING_SHARE
    rows = config.rounds * config.contexts * REQUESTS
    per_row = shape.step(config.outer, READ + WRITTEN, WRITTEN)
    workers = default_workers(config.device)
    # The policy is trained by one process.
    alone = config.outer.epochs * rows * per_row / TRAINING_SHARE
    speed = _speed(config.device)
    adapters = config.rounds * (config.rounds + 1) / 2 * shape.adapter_bytes(config.outer)
    memory = _memory(known, shape, config, workers)
    return Estimate(trials, flops / speed / workers + alone / speed, adapters + 6000.0 * (trials + edits), memory, workers)


def estimate_evaluation(config: EvalConfig, known: Identity, passages: int) -> Estimate:
    """Of ``selfedit eval`` on so many passages."""
    shape = _Shape.of(known)
    names = [method_name(method) for method in config.methods]
    trained = [name for name in names if name not in UNTRAINED]
    each = {name: config.edits if name in WRITERS else 1 for name in set(trained)}
    full = config.corpus.full
    trial = _trial(shape, config.settings, config.edit, full)
    short = shape.step(config.settings, PASSAGE_TOKENS, PASSAGE_TOKENS, full) * config.settings.epochs
    per_passage = sum(each[name] * (short if name.endswith("passage") else trial) for name in trained) / TRAINING_SHARE
    trials = passages * sum(each[name] for name in trained)
    if config.setting == "corpus":
        trials = len(trained) * max(1, len(config.corpus.variants))
        per_passage *= max(1, len(config.corpus.variants))
    exams = sum(each.get(name, 1) for name in names) * 2 * _exam(shape)
    writers = {WRITERS[name] for name in names if name in WRITERS} - {"external"}
    per_passage += (exams + len(writers) * config.edits * _writing(shape, config.edit)) / WRITING_SHARE
    workers = default_workers(config.device)
    seconds = passages * per_passage / _speed(config.device) / workers
    # Keys and values of what is written about several passages at once.
    memory = _memory(known, shape, config, workers) + workers * CACHE_BYTES
    if full:
        # Weights as they were, weights in training, gradients, two moments: of one training at a time in each process.
        memory = float(workers * (5 * shape.weights + 600 * 2**20))
    return Estimate(trials, seconds, 8000.0 * trials + 2000.0 * passages, memory, workers)


def estimate_continual(config: ContinualConfig, known: Identity) -> Estimate:
    """Of ``selfedit continual``; what replay adds to a lesson and what a gate asks is not foreseen."""
    shape = _Shape.of(known)
    parts = [method.split("+") for method in config.methods]
    lessons = config.sequences * config.passages
    trained = [names for names in parts if not set(names) & {"retrieve", "context"}]
    # A consolidation trains on everything so far, half of the sequence on average, by epochs of its own.
    epochs = (config.keep.sleep_epochs or config.settings.epochs) / config.settings.epochs
    sleeps = (config.passages // config.keep.every) * config.passages / 2 * epochs
    each = [
        lessons * (config.edits + 1 if "retention" in names and config.edits > 1 else 1)
        + config.sequences * sleeps * ("consolidate" in names)
        for names in trained
    ]
    held = config.settings.model_copy(update={"rehearsal": config.keep.distil_share})
    ways = [held if "distil" in names else config.settings for names in trained]
    trials = round(sum(each))
    exams = lessons * (config.passages + 1) / 2 / config.exam_every * len(parts)
    flops = sum(count * _trial(shape, way, config.edit) for count, way in zip(each, ways, strict=True)) / TRAINING_SHARE
    flops += (exams * _exam(shape) + lessons * config.edits * _writing(shape, config.edit)) / WRITING_SHARE
    workers = default_workers(config.device)
    seconds = flops / _speed(config.device) / workers
    disk = config.sequences * len(trained) * config.passages * shape.adapter_bytes(config.settings) + 20_000.0 * lessons
    memory = workers * (1.2 * shape.weights + (4 + config.passages) * shape.adapter_bytes(config.settings) + 600 * 2**20)
    return Estimate(trials, seconds, disk, memory, workers)


def estimate_rewards(config: RewardBenchConfig, known: Identity) -> Estimate:
    """Of ``selfedit bench rewards``; how much is asked again until a quiz is there depends on the passages."""
    shape = _Shape.of(known)
    edits = config.passages * config.edits
    trials = edits * config.repeats
    trial, exam, writing = _trial(shape, config.settings, config.edit), _exam(shape), _writing(shape, config.edit)
    # A look is about an epoch, by each half of the questions and by the self-made ones.
    flops = (trials + 3 * edits / config.settings.epochs) * trial / TRAINING_SHARE
    flops += (EXAMS_A_TRIAL * (trials + config.passages) * exam + (edits + QUIZ_EDITS * config.passages) * writing) / WRITING_SHARE
    workers = default_workers(config.device)
    seconds = flops / _speed(config.device) / workers
    return Estimate(trials, seconds, 20_000.0 * trials, _memory(known, shape, config, workers), workers)


def estimate_puzzles(config: ArcTrainConfig | ArcEvalConfig, known: Identity, puzzles: int) -> Estimate:
    """Of ``selfedit train arc``, or of ``selfedit eval arc`` on so many puzzles; equal recipes, tried once, are not foreseen."""
    shape, writing, rows = _Shape.of(known), 0, 0
    if isinstance(config, ArcTrainConfig):
        noise = config.rounds * min(config.noise_contexts, config.contexts) * config.edits * max(0, 2 - config.repeats)
        writing = rows = puzzles * config.edits
        trials = 0 if config.rule == "random" else writing * config.repeats + noise
    else:
        each = {"icl": 0, "best-fixed": config.trainings, "oracle": config.trainings}
        trials = puzzles * sum(each.get(method, config.edits) for method in config.methods)
        # The policy writes once for both of its methods.
        writers = ("ttt" in config.methods) + bool({"seal", "seal-writer"} & set(config.methods))
        writing = puzzles * config.edits * writers
    tokens = float(min(config.edit.most_tokens, config.edit.most_steps * config.settings.batch_size * PUZZLE_TOKENS))
    training = shape.step(config.settings, tokens, LABELLED * tokens) + tokens / 2 * shape.below(config.settings)
    exam = VIEWS * config.edit.orders * PUZZLE_TOKENS * shape.reading()
    flops = (
        trials * training / TRAINING_SHARE + ((trials + puzzles) * exam + writing * PUZZLE_TOKENS * shape.reading()) / WRITING_SHARE
    )
    workers, alone, adapters = default_workers(config.device), 0.0, 0.0
    if isinstance(config, ArcTrainConfig):
        alone = config.outer.epochs * rows * shape.step(config.outer, PUZZLE_TOKENS, RECIPE_TOKENS) / TRAINING_SHARE
        adapters = config.rounds * (config.rounds + 1) / 2 * shape.adapter_bytes(config.outer)
    speed = _speed(config.device)
    seconds = flops / speed / workers + alone / speed
    return Estimate(trials, seconds, adapters + 3000.0 * trials, _memory(known, shape, config, workers), workers)


@dataclass(frozen=True)
class _Shape:
    """Weights of a model: of one decoder layer's linear maps, of the head, and how many layers."""

    layer: float
    head: float
    layers: int
    widths: float

    @classmethod
    def of(cls, known: Identity) -> _Shape:
        config = known.config.get_text_config()
        width, head = int(config.hidden_size), known.head_size
        queries = int(config.num_attention_heads) * head
        keys = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head
        inner = int(config.intermediate_size)
        layer = 2 * width * queries + 2 * width * keys + 3 * width * inner
        widths = 2 * (width + queries) + 2 * (width + keys) + 3 * (width + inner)
        return cls(layer, width * int(config.vocab_size), int(config.num_hidden_layers), widths)

    def adapted(self, settings: Settings) -> int:
        """Layers with an adapter."""
        return self.layers if settings.layers == "all" else min(self.layers, int(settings.layers.removeprefix("last:")))

    @property
    def weights(self) -> float:
        """Bytes of the base in float32."""
        return 4 * (self.layer * self.layers + self.head)

    def step(self, settings: Settings, tokens: float, labelled: float, full: bool = False) -> float:
        """FLOPs of one pass over so many tokens, forwards and backwards; ``full``: all weights have a gradient."""
        if full:
            return 6 * (tokens * self.layer * self.layers + labelled * self.head)
        adapters = 6 * settings.rank * self.widths * self.adapted(settings)
        return tokens * (4 * self.layer * self.adapted(settings) + adapters) + labelled * 4 * self.head

    def below(self, settings: Settings) -> float:
        """FLOPs of a token below the first adapted layer."""
        return 2 * self.layer * (self.layers - self.adapted(settings))

    def reading(self) -> float:
        """FLOPs of a token read or written."""
        return 2 * (self.layer * self.layers + self.head / 4)

    def adapter_bytes(self, settings: Settings) -> float:
        """Of one adapter in float32."""
        return 4 * settings.rank * self.widths * self.adapted(settings)


def _trial(shape: _Shape, settings: Settings, edit: EditConfig, full: bool = False) -> float:
    # What is rehearsed is about as long as a lesson.
    documents = min(DOCUMENTS, edit.limit_documents or DOCUMENTS) / (1 - settings.rehearsal)
    tokens = documents * TOKENS + PASSAGE_TOKENS
    below = 0.0 if full else tokens * shape.below(settings)
    return settings.epochs * shape.step(settings, tokens, LABELLED * tokens, full) + below


def _exam(shape: _Shape) -> float:
    return QUESTIONS * (ASKED_TOKENS + ANSWER_TOKENS) * shape.reading()


def _writing(shape: _Shape, edit: EditConfig) -> float:
    return REQUESTS * edit.passes / 2 * (READ + WRITTEN) * shape.reading()


def _memory(known: Identity, shape: _Shape, config: Any, workers: int) -> float:
    slots = config.slots or slots_that_fit(known, config.settings, config.device, workers)
    # Weights, gradients and two moments of each slot, and the activations of a step.
    return float(workers * (1.2 * shape.weights + slots * 4 * shape.adapter_bytes(config.settings) + 600 * 2**20))


def _speed(device: str) -> float:
    """FLOPs a second of a 1024-cubed product on one thread, or on the GPU: the best of a few."""
    chosen = resolve_device(device)
    before = torch.get_num_threads()
    if chosen.type == "cpu":
        torch.set_num_threads(1)
    square = torch.ones(1024, 1024, device=chosen)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (square @ square)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(before)
    return 2 * 1024**3 / best


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min" if minutes < 90 else f"about {minutes / 60:.1f} h"
