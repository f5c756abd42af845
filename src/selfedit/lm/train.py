"""The inner loop's training, the plain way: one adapter, one document batch at a time. The oracle of faster ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from selfedit import progress, seeds
from selfedit.config import Settings
from selfedit.errors import DivergedError
from selfedit.lm.adapter import Adapter, Directions, first_layer, install, new_adapter
from selfedit.lm.batch import IGNORED, Row, pad, soft_targets
from selfedit.lm.load import LanguageModel

Item = TypeVar("Item")


@dataclass
class Trained:
    """An adapter and how its training went.

    Attributes:
        losses: mean loss a labelled token, one for each optimiser step.
        tokens: labelled tokens, all epochs together.
    """

    adapter: Adapter
    losses: list[float] = field(default_factory=list)
    tokens: int = 0


def train(lm: LanguageModel, rows: Sequence[Row], settings: Settings, seed: int, directions: Directions | None = None) -> Trained:
    """Trains a fresh adapter on rows and leaves it installed (paper section 3.1, the inner update SFT(theta, SE)).

    AdamW (betas .9 and .999, eps 1e-8), gradient clipped by norm, loss averaged over an optimiser step's labelled tokens; each
    epoch takes the rows in an order of its own, drawn from ``seed``.

    Args:
        lm: the model.
        rows: tokenised documents.
        settings: how.
        seed: of the initial weights, the order and dropout.
        directions: each module's A, which then stays as it is (``lm/null_space.py``).

    Departures: (1) the reference code pads each row to 2048 tokens and trains on the padding; here rows are padded to the
    longest of their batch, without loss. (2) Its seeds come from the clock.

    Raises:
        DivergedError: the loss stopped being finite.
    """
    check_directions(settings, directions)
    adapter = new_adapter(lm, settings, seeds.derive(seed, "init"), directions)
    first = first_layer(adapter)
    install(lm, None)
    prefixes = frozen_prefixes(lm, rows, first)
    install(lm, adapter)
    lm.model.train(settings.dropout > 0)
    trained = adapter.parameters if directions is None else [up for _, up in adapter.weights.values()]
    losses, tokens = descend(
        lm, trained, rows, settings, seed, lambda batch: loss_sum(lm, batch, prefixes, first), lambda row: row.labelled
    )
    lm.model.eval()
    return Trained(adapter, losses, tokens)


def check_directions(settings: Settings, directions: Directions | None) -> None:
    """Raises ValueError if settings and what is given of A don't go together."""
    if settings.null_space and directions is None:
        raise ValueError(f"null_space is {settings.null_space}, but no directions are given; make jobs by tasks/general/jobs.py")
    if directions is not None and settings.weight_decay:
        raise ValueError(f"weight_decay is {settings.weight_decay}, which would shrink an A that is to stay as it is; give 0")


@contextmanager
def fully_trained(lm: LanguageModel, rows: Sequence[Row], settings: Settings, seed: int) -> Iterator[tuple[list[float], int]]:
    """Trains all weights, as ``train`` trains an adapter's, and puts them back in the end (paper version 2, many passages at once).

    Yields the losses by optimiser step and the number of labelled tokens. Takes room for four more copies of the weights.

    Raises:
        DivergedError: the loss stopped being finite.
    """
    install(lm, None)
    parameters = list(lm.model.parameters())
    before = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.clone()
    try:
        yield descend(lm, parameters, rows, settings, seed, lambda batch: loss_sum(lm, batch, {}, 0), lambda row: row.labelled)
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data


@contextmanager
def in_training(lm: LanguageModel, adapter: Adapter) -> Iterator[None]:
    """An adapter installed for a while, with its dropout at work."""
    install(lm, adapter)
    lm.model.train(adapter.dropout > 0)
    try:
        yield
    finally:
        lm.model.eval()
        install(lm, None)


def descend(
    lm: LanguageModel,
    parameters: Sequence[torch.Tensor],
    items: Sequence[Item],
    settings: Settings,
    seed: int,
    loss_sum: Callable[[list[Item]], torch.Tensor],
    weight: Callable[[Item], int],
    after_step: Callable[[], None] = lambda: None,
) -> tuple[list[float], int]:
    """AdamW over batches of items, each step's loss divided by its items' weight; losses by step and the weight of all."""
    for tensor in parameters:
        tensor.requires_grad_(True)
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = schedule_steps(items, settings, seeds.derive(seed, "order"))
    losses, total = [], 0
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(seed, "dropout"))
            for index, batches in enumerate(steps):
                for group in optimiser.param_groups:
                    group["lr"] = settings.learning_rate * learning_rate_factor(index, len(steps), settings)
                weights = sum(weight(item) for batch in batches for item in batch)
                loss = 0.0
                for batch in batches:
                    part = loss_sum(batch) / weights
                    part.backward()  # type: ignore[no-untyped-call]
                    loss += part.item()
                if not math.isfinite(loss):
                    raise DivergedError(f"the loss became {loss} at step {index + 1} of {len(steps)}; lower the learning rate")
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
                optimiser.step()
                optimiser.zero_grad()
                after_step()
                progress.report(1)
                losses.append(loss)
                total += weights
    finally:
        for tensor in parameters:
            tensor.requires_grad_(False)
            tensor.grad = None
    return losses, total


def schedule_steps(rows: Sequence[Item], settings: Settings, seed: int) -> list[list[list[Item]]]:
    """Optimiser steps, each a list of batches, each a list of rows; every epoch is a new permutation of the rows that it has."""
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for epoch in range(settings.epochs):
        shown = [row for row in rows if getattr(row, "epoch", None) in (None, epoch)]
        order = torch.randperm(len(shown), generator=generator).tolist()
        batches = [[shown[i] for i in order[at : at + settings.batch_size]] for at in range(0, len(order), settings.batch_size)]
        steps += [batches[at : at + settings.accumulation] for at in range(0, len(batches), settings.accumulation)]
    return steps


def learning_rate_factor(step: int, steps: int, settings: Settings) -> float:
    """Share of the peak learning rate at a step (0-based), as Hugging Face's schedules have it."""
    warmup = math.ceil(settings.warmup * steps)
    if step < warmup:
        return step / warmup
    if settings.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def head_logits(lm: LanguageModel, states: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) in float32 of last hidden states (..., d), with the soft cap of those families that have one."""
    logits: torch.Tensor = lm.model.get_output_embeddings()(states).float()
    cap = getattr(lm.model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def loss_sum(lm: LanguageModel, batch: list[Row], prefixes: dict[Row, torch.Tensor], first: int) -> torch.Tensor:
    """Summed cross-entropy over labelled tokens, to their soft targets if rows have them; logits only where there is a label."""
    ids_BT, labels_BT = pad(batch, lm.tokenizer.pad_token_id, lm.device)
    if first:
        states_BTd = nn.utils.rnn.pad_sequence([prefixes[row] for row in batch], batch_first=True)
        with layer_range(lm, first, None):
            states_BTd = lm.model.base_model(inputs_embeds=states_BTd, use_cache=False).last_hidden_state
    else:
        states_BTd = lm.model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    targets = labels_BT[:, 1:]
    keep = targets != IGNORED
    logits_NV, targets_N = head_logits(lm, states_BTd[:, :-1][keep]), targets[keep]
    soft = soft_targets(batch, targets_N)
    if soft is not None:
        return -(logits_NV.log_softmax(-1).gather(1, soft.ids) * soft.shares).sum()
    return F.cross_entropy(logits_NV, targets_N, reduction="sum")


@torch.no_grad()
def frozen_prefixes(lm: LanguageModel, rows: Sequence[Row], first: int) -> dict[Row, torch.Tensor]:
    """Hidden states (T, d) below layer ``first`` of each distinct row: no adapter sits there, so they never change."""
    if not first:
        return {}
    prefixes = {}
    with layer_range(lm, 0, first):
        for row in dict.fromkeys(rows):
            ids_1T = torch.tensor([row.ids], device=lm.device)
            prefixes[row] = lm.model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
    return prefixes


@contextmanager
def layer_range(lm: LanguageModel, first: int, end: int | None) -> Iterator[None]:
    """Runs only the decoder layers [first, end) of the model; the final norm only if the last layer is among them."""
    decoder, config = lm.model.base_model, lm.model.base_model.config
    layers, norm, kinds = decoder.layers, decoder.norm, getattr(config, "layer_types", None)
    decoder.layers = layers[first:end]
    if end is not None and end < len(layers):
        decoder.norm = nn.Identity()
    if kinds is not None:
        config.layer_types = kinds[first:end]
    try:
        yield
    finally:
        decoder.layers, decoder.norm = layers, norm
        if kinds is not None:
            config.layer_types = kinds
