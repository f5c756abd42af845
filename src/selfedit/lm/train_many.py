"""The inner loop's training, the fast way: many adapters in one pass of the frozen base (paper section 3.1, the inner update).

Equal to ``train.py``, the plain way, job by job (a test; with dropout each draws its own masks): same initial weights, same
order of documents, same schedule, gradient clipped for each slot, one AdamW a slot. What is saved: padding (there is none),
what a step's documents begin with (read once), the layers below the first adapted one (computed once for each distinct
document), logits without a label, the last layer's MLP at tokens without a label, gradients of the base.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from selfedit import seeds
from selfedit.config import Settings
from selfedit.errors import DivergedError
from selfedit.lm.adapter import Directions, new_adapter
from selfedit.lm.batch import Row, SoftTargets, soft_targets
from selfedit.lm.flat import Prefixes, parts_of, reading
from selfedit.lm.load import LanguageModel
from selfedit.lm.stack import Slots, document_attention
from selfedit.lm.train import Trained, check_directions, learning_rate_factor, schedule_steps

# Logits are made for so many positions at a time: with a vocabulary of 50,000, 50 MB.
HEAD_CHUNK = 256
# Tokens of one pass of several slots on a CPU: bounds the activations that the backward pass keeps (docs/lab-book.md). One slot
# alone keeps a step whole, so that long common beginnings are read once.
CPU_TOKENS = 384


@dataclass(frozen=True)
class Job:
    """One adapter to be trained.

    Attributes:
        rows: tokenised documents.
        settings: how.
        seed: of the initial weights, the order of documents, dropout.
        directions: each module's A, which then stays as it is (``lm/null_space.py``); None: drawn by the seed, and trained.
    """

    rows: tuple[Row, ...]
    settings: Settings
    seed: int
    directions: Directions | None = field(default=None, compare=False)


@dataclass
class _Working:
    """A job that sits in a slot."""

    index: int
    job: Job
    steps: list[list[list[Row]]]
    optimiser: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def rows(self) -> list[Row]:
        """The documents of the step that comes next, those that begin alike side by side."""
        return sorted((row for batch in self.steps[len(self.losses)] for row in batch), key=lambda row: row.ids)


def train_many(
    lm: LanguageModel, jobs: Sequence[Job], count: int, told: Callable[[int], None] | None = None
) -> list[Trained | DivergedError]:
    """Trains every job, ``count`` at a time; a slot that is done takes the next job in the queue.

    All jobs adapt the same layers and targets; ranks, alphas, rates, schedules, epochs, batches and seeds are each job's own.
    A job that diverges is an error in the list and disturbs nobody.

    Args:
        lm: the frozen base, possibly with a frozen sum of earlier adapters.
        jobs: what to train; at least one document each.
        count: slots.
        told: called after each step with the number of slots that were at work in it.

    Returns:
        What came of each job, in the order of ``jobs``.
    """
    shapes = {(job.settings.targets, job.settings.layers) for job in jobs}
    if len(shapes) > 1:
        raise ValueError(f"jobs that train together adapt the same layers; got {sorted(shapes)}")
    if not jobs:
        return []
    if any(row.labelled < 1 for job in jobs for row in job.rows):
        raise ValueError("a document without a token that carries loss teaches nothing; leave it out")
    for job in jobs:
        check_directions(job.settings, job.directions)
    targets, layers = shapes.pop()
    slots = Slots(lm, targets, layers, max(job.settings.rank for job in jobs), min(count, len(jobs)), training=True)
    prefixes = Prefixes(lm, slots.first)
    queue = deque(enumerate(jobs))
    working: list[_Working | None] = [None] * slots.count
    results: list[Trained | DivergedError | None] = [None] * len(jobs)
    with document_attention(lm), slots.installed():
        while queue or any(working):
            for slot in range(slots.count):
                if working[slot] is None and queue:
                    working[slot] = _seat(lm, slots, slot, *queue.popleft())
            at_work = [(slot, one) for slot, one in enumerate(working) if one is not None]
            for (slot, one), result in zip(at_work, _step(lm, slots, prefixes, at_work), strict=True):
                if result is not None:
                    results[one.index], working[slot] = result, None
                    slots.dropouts[slot] = 0.0
            if told is not None:
                told(len(at_work))
    return [result for result in results if result is not None]


def _seat(lm: LanguageModel, slots: Slots, slot: int, index: int, job: Job) -> _Working:
    settings = job.settings
    adapter = new_adapter(lm, settings, seeds.derive(job.seed, "init"), job.directions)
    slots.put(slot, adapter, fixed_downs=job.directions is not None)
    slots.generators[slot] = torch.Generator().manual_seed(seeds.derive(job.seed, "dropout"))
    weights = nn.Parameter(slots.values_KP[slot])
    weights.grad = slots.grads_KP[slot] if slots.grads_KP is not None else None
    optimiser = torch.optim.AdamW([weights], lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    return _Working(index, job, schedule_steps(job.rows, settings, seeds.derive(job.seed, "order")), optimiser)


def _step(
    lm: LanguageModel, slots: Slots, prefixes: Prefixes, at_work: Sequence[tuple[int, _Working]]
) -> list[Trained | DivergedError | None]:
    """One optimiser step of every slot at work; for each what came of its job, or None if it goes on."""
    rows = [(slot, row) for slot, one in at_work for row in one.rows]
    labelled = {slot: sum(row.labelled for row in one.rows) for slot, one in at_work}
    small = lm.device.type == "cpu" and slots.count > 1
    parts = list(parts_of(rows, most=CPU_TOKENS if small else None))
    losses = accumulate(lm, slots, prefixes, parts, labelled)
    assert slots.grads_KP is not None
    norms = dict(zip(labelled, torch.stack([slots.grads_KP[slot].norm() for slot in labelled]).tolist(), strict=True))
    results: list[Trained | DivergedError | None] = []
    for slot, one in at_work:
        settings, index = one.job.settings, len(one.losses)
        if not math.isfinite(losses[slot]) or not math.isfinite(norms[slot]):
            results.append(
                DivergedError(
                    f"loss {losses[slot]} and gradient norm {norms[slot]} at step {index + 1} of {len(one.steps)}; "
                    "lower the learning rate"
                )
            )
            continue
        if norms[slot] > settings.clip:
            slots.grads_KP[slot].mul_(settings.clip / (norms[slot] + 1e-6))
        for group in one.optimiser.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(index, len(one.steps), settings)
        one.optimiser.step()
        one.losses.append(losses[slot])
        one.tokens += labelled[slot]
        finished = len(one.losses) == len(one.steps)
        results.append(Trained(slots.take(slot, one.job.settings), one.losses, one.tokens) if finished else None)
    return results


def accumulate(
    lm: LanguageModel, slots: Slots, prefixes: Prefixes, parts: Sequence[Sequence[tuple[int, Row]]], labelled: dict[int, int]
) -> dict[int, float]:
    """The gradients of each slot's mean loss a labelled token, into ``slots.grads_KP``, and those losses.

    Args:
        parts: (slot, row) pairs, cut into passes.
        labelled: each slot's labelled tokens in all of them.
    """
    losses = dict.fromkeys(labelled, 0.0)
    assert slots.grads_KP is not None
    if len(parts) > 1:
        for slot in labelled:
            slots.grads_KP[slot].zero_()
    for part in parts:
        for slot, loss in _pass(lm, prefixes, part, labelled, len(parts) > 1, not any(slots.dropouts)):
            losses[slot] += loss
    return losses


def _pass(
    lm: LanguageModel, prefixes: Prefixes, rows: Sequence[tuple[int, Row]], labelled: dict[int, int], adding: bool, sharing: bool
) -> list[tuple[int, float]]:
    """Forward and backward of one flat stream; (slot, its share of its step's mean loss) for each document."""
    with reading(lm, prefixes, rows, adding, sharing) as (states_Nd, targets_N):
        counts = [row.labelled for _, row in rows]
        weights = [1.0 / labelled[slot] for (slot, _), count in zip(rows, counts, strict=True) for _ in range(count)]
        weights_N = torch.tensor(weights, device=lm.device)
        loss, nll_N = head_loss(lm, states_Nd, targets_N, weights_N, soft_targets([row for _, row in rows], targets_N))
        loss.backward()  # type: ignore[no-untyped-call]
    shares = torch.stack([share.sum() for share in torch.split(nll_N * weights_N, counts)])
    return [(slot, share) for (slot, _), share in zip(rows, shares.tolist(), strict=True)]


def head_loss(
    lm: LanguageModel, states_Nd: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor, soft: SoftTargets | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of cross-entropies and each one by itself (detached), with few logits in memory at a time.

    With soft targets (N, K) they are to those, not to the targets (N,).
    """
    loss, nll_N = _HeadLoss.apply(states_Nd, lm, targets_N, weights_N, soft)  # type: ignore[no-untyped-call]
    return loss, nll_N


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy over the vocabulary in chunks; its gradient is made in the forward pass, since the head is frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        states_Nd: torch.Tensor,
        lm: LanguageModel,
        targets_N: torch.Tensor,
        weights_N: torch.Tensor,
        soft: SoftTargets | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = lm.model.get_output_embeddings()
        cap = getattr(lm.model.config.get_text_config(), "final_logit_softcapping", None)
        gradient_Nd = torch.empty_like(states_Nd)
        nll_N = torch.empty(len(states_Nd), device=states_Nd.device)
        for at in range(0, len(states_Nd), HEAD_CHUNK):
            chunk = slice(at, at + HEAD_CHUNK)
            logits_CV = head(states_Nd[chunk]).float()
            slopes_CV = None
            if cap is not None:
                logits_CV.div_(cap).tanh_()
                slopes_CV = 1.0 - logits_CV.square()
                logits_CV.mul_(cap)
            # One target a token, K = 1, unless they are soft.
            targets_CK = targets_N[chunk, None] if soft is None else soft.ids[chunk]
            # One exponential for the loss and its gradient; logits are shifted by each row's largest.
            largest_C1 = logits_CV.amax(-1, keepdim=True)
            at_targets_CK = logits_CV.gather(1, targets_CK) - largest_C1
            at_target_C1 = at_targets_CK if soft is None else (at_targets_CK * soft.shares[chunk]).sum(-1, keepdim=True)
            sums_C1 = logits_CV.sub_(largest_C1).exp_().sum(-1, keepdim=True)
            nll_N[chunk] = (sums_C1.log() - at_target_C1)[:, 0]
            # From here on the buffer holds the gradient: softmax minus targets, weighted.
            weights_C1 = weights_N[chunk, None]
            logits_CV.mul_(weights_C1 / sums_C1)
            logits_CV.scatter_add_(1, targets_CK, -weights_C1 if soft is None else -weights_C1 * soft.shares[chunk])
            if slopes_CV is not None:
                logits_CV.mul_(slopes_CV)
            gradient_Nd[chunk] = logits_CV.to(states_Nd.dtype) @ head.weight
        ctx.save_for_backward(gradient_Nd)
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * weights_N).sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        (gradient_Nd,) = ctx.saved_tensors
        return gradient_Nd * gradients[0], None, None, None, None
