"""Text out: one batched decode loop with a KV cache, greedy or sampled; each row with its own random numbers and adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import DynamicCache

from selfedit.errors import ModelError
from selfedit.lm.branches import ATTENTION, Branches
from selfedit.lm.grammar import Grammars
from selfedit.lm.load import LanguageModel, end_ids
from selfedit.lm.stack import Stream, attention, segments_of, streaming
from selfedit.lm.train import head_logits, layer_range

# The nucleus is looked for among so many likeliest tokens first; sorting a whole vocabulary costs as much as the model's step.
NUCLEUS = 256
# Bytes of keys and values in one batch; more rows wait for the next.
CACHE_BYTES = 2 * 2**30


@torch.inference_mode()
def generate(
    lm: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int | Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    stop: Callable[[str], bool] | None = None,
    slots: Sequence[int] | None = None,
    first: int = 0,
    schemas: Sequence[str | None] | None = None,
) -> list[str]:
    """Continues each prompt and returns the new text alone.

    Equal prompts, and what all prompts begin with, are read once, below layer ``first`` once for all slots together; rows leave
    the batch when they end, so the last long row doesn't pay for the others.

    Args:
        prompts: token ids, one prompt a row.
        max_new_tokens: longest continuation in tokens, of all prompts or of each.
        temperature: 0 is greedy.
        top_p: nucleus mass, for sampling.
        seeds: one for each row, for sampling; a row's draws don't depend on its neighbours.
        stop: called with a row's text so far; True ends the row.
        slots: for each prompt the slot (``lm/stack.py``) that answers it, in rising order; None: what is installed answers all.
        first: the lowest layer at which slots differ.
        schemas: for each prompt the JSON schema that its continuation is held to, as JSON; None: free text. A row that reaches its
            limit of tokens is cut off, so the schema must bound its length.

    Raises:
        ModelError: a prompt fills the model's window; a schema can't be compiled.
    """
    rows = list(zip(slots or [0] * len(prompts), prompts, strict=True))
    longest = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    limits = [min(most, lm.window - len(ids)) for most, ids in zip(longest, prompts, strict=True)]
    if min(limits, default=1) < 1:
        tokens = max(len(ids) for ids in prompts)
        raise ModelError(f"{lm.name}: a prompt of {tokens} tokens leaves no room in its window of {lm.window}; give a shorter text")
    each = bytes_a_token(lm) * max(len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)) if prompts else 1
    at_once = max(1, CACHE_BYTES // each)
    texts: list[str] = []
    for at in range(0, len(rows), at_once):
        part = slice(at, at + at_once)
        own_seeds = seeds[part] if seeds is not None else None
        grammars = Grammars(lm, schemas[part]) if schemas is not None and any(schemas[part]) else None
        texts += _continue(lm, rows[part], limits[part], temperature, top_p, own_seeds, stop, first, grammars)
    return texts


def bytes_a_token(lm: LanguageModel) -> int:
    """Bytes of keys and values that one token takes in the cache."""
    config = lm.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * lm.head_size * lm.dtype.itemsize)


def _continue(
    lm: LanguageModel,
    rows: Sequence[tuple[int, tuple[int, ...]]],
    limits: Sequence[int],
    temperature: float,
    top_p: float,
    seeds: Sequence[int] | None,
    stop: Callable[[str], bool] | None,
    first: int,
    grammars: Grammars | None,
) -> list[str]:
    """One batch of (slot, prompt) rows, each with its own limit of new tokens."""
    unique = list(dict.fromkeys(rows))
    logits_UV, cache, mask_UT = _prefill(lm, unique, max(limits), first)
    index_of = {row: index for index, row in enumerate(unique)}
    sources = [index_of[row] for row in rows]
    branches = Branches(cache, mask_UT, sources, max(limits))
    del cache
    logits_BV = logits_UV[torch.tensor(sources, device=lm.device)]

    generators = [torch.Generator().manual_seed(seed) for seed in seeds] if seeds is not None else None
    made: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))
    ends = end_ids(lm.model.generation_config, lm.tokenizer)
    with attention(lm, ATTENTION):
        while live:
            if grammars is not None:
                logits_BV = grammars.masked(logits_BV, live)
            nexts = _pick(logits_BV, temperature, top_p, [generators[row] for row in live] if generators else None)
            keep = []
            for at, (row, token) in enumerate(zip(live, nexts, strict=True)):
                if token in ends:
                    continue
                made[row].append(token)
                if len(made[row]) == limits[row] or (grammars is not None and grammars.took(row, token)):
                    continue
                if stop is None or not stop(lm.tokenizer.decode(made[row], skip_special_tokens=True)):
                    keep.append(at)
            if not keep:
                break
            if len(keep) < len(live):
                live = [live[at] for at in keep]
                nexts = [nexts[at] for at in keep]
                branches.keep(keep)
            logits_BV = head_logits(lm, _next_states(lm, nexts, branches, [rows[row][0] for row in live]))
    lm.written += sum(map(len, made))
    return [lm.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]


def _next_states(lm: LanguageModel, tokens: Sequence[int], branches: Branches, slots: Sequence[int]) -> torch.Tensor:
    """Last hidden states (B, d) after one more token a row."""
    with _rows_of(lm, slots, 1):
        out: Any = lm.model.base_model(
            input_ids=torch.tensor(tokens, device=lm.device)[:, None],
            position_ids=branches.positions_B1,
            past_key_values=branches,
            use_cache=True,
            branches=branches,
        )
    branches.advance()
    states: torch.Tensor = out.last_hidden_state[:, -1]
    return states


def _prefill(
    lm: LanguageModel, rows: Sequence[tuple[int, tuple[int, ...]]], room: int, first: int
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
    """Reads distinct (slot, prompt) rows: the logits (U, V) after each, the cache, and which columns are text (U, T)."""
    prompts = list(dict.fromkeys(ids for _, ids in rows))
    shared = _shared_prefix(prompts)
    longest = max(len(ids) for ids in prompts)
    if _shortest_window(lm) < longest + room:
        # Padding between the shared prefix and the rest would push real tokens out of a sliding window.
        shared = 0
    width = longest - shared
    ids_DT = torch.full((len(prompts), width), lm.tokenizer.pad_token_id, dtype=torch.long)
    mask_DT = torch.ones((len(prompts), longest), dtype=torch.long)
    for at, ids in enumerate(prompts):
        ids_DT[at, longest - len(ids) :] = torch.tensor(ids[shared:])
        mask_DT[at, shared : longest - len(ids) + shared] = 0
    positions_DT = (mask_DT.cumsum(1) - 1)[:, shared:].clamp(min=0)

    slots = [slot for slot, _ in rows]
    prompt_of = {ids: at for at, ids in enumerate(prompts)}
    source_U = torch.tensor([prompt_of[ids] for _, ids in rows])
    lower, upper = DynamicCache(config=lm.model.config), _UpperCache(lm, first)

    def read(
        ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, source: torch.Tensor, owners: list[int]
    ) -> torch.Tensor:
        ids = ids.to(lm.device)
        if first:
            states = _layers(lm, {"input_ids": ids}, mask, positions, lower, [0] * len(ids), (0, first))
        else:
            states = lm.model.get_input_embeddings()(ids)
        above = {"inputs_embeds": states[source.to(lm.device)]}
        return _layers(lm, above, mask[source], positions[source], upper, owners, (first, None))

    if shared:
        heads = list(dict.fromkeys(slots))
        head_1S = torch.tensor([prompts[0][:shared]])
        read(head_1S, torch.ones_like(head_1S), torch.arange(shared)[None], torch.zeros(len(heads), dtype=torch.long), heads)
        lower.batch_select_indices(torch.zeros(len(prompts), dtype=torch.long, device=lm.device))
        upper.batch_select_indices(torch.tensor([heads.index(slot) for slot in slots], device=lm.device))
    lm.read += len(set(slots)) * shared + sum(len(ids) - shared for _, ids in rows)
    states_UTd = read(ids_DT, mask_DT, positions_DT, source_U, slots)
    lower.batch_select_indices(source_U.to(lm.device))
    whole = DynamicCache(config=lm.model.config)
    whole.layers = [*lower.layers[:first], *upper.layers[first:]]
    return head_logits(lm, states_UTd[:, -1]), whole, mask_DT[source_U]


class _UpperCache(DynamicCache):  # type: ignore[misc]
    """Keys and values of the layers from ``first`` on; asked for its length below, it answers for a like layer above."""

    def __init__(self, lm: LanguageModel, first: int) -> None:
        super().__init__(config=lm.model.config)
        self.first = first

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of a layer."""
        return int(super().get_seq_length(self._above(layer_idx)))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns after a pass over ``query_length`` more, and how many have left the window."""
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, self._above(layer_idx))
        return sizes

    def _above(self, layer: int) -> int:
        if layer >= self.first:
            return layer
        kind = self.layers[layer].is_sliding
        return next((at for at in range(self.first, len(self.layers)) if self.layers[at].is_sliding == kind), self.first)


def _shortest_window(lm: LanguageModel) -> float:
    """The window of sliding attention layers, infinite without such layers."""
    config = lm.model.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return float("inf")
    return float(window)


def _shared_prefix(prompts: Sequence[tuple[int, ...]], least: int = 32) -> int:
    """How many leading tokens all prompts share (one is always left over); 0 if too few to be worth a pass of their own."""
    if len(prompts) < 2:
        return 0
    shortest = min(len(ids) for ids in prompts) - 1
    shared = next((at for at in range(shortest) if len({ids[at] for ids in prompts}) > 1), shortest)
    return shared if shared >= least else 0


def _layers(
    lm: LanguageModel,
    inputs: dict[str, torch.Tensor],
    mask_BT: torch.Tensor,
    positions_BT: torch.Tensor,
    cache: DynamicCache,
    slots: Sequence[int],
    layers: tuple[int, int | None],
) -> torch.Tensor:
    """Hidden states (B, T, d) after a range of layers."""
    with _rows_of(lm, slots, positions_BT.shape[1]), layer_range(lm, *layers):
        out: Any = lm.model.base_model(
            **inputs,
            attention_mask=mask_BT.to(lm.device),
            position_ids=positions_BT.to(lm.device),
            past_key_values=cache,
            use_cache=True,
        )
    states: torch.Tensor = out.last_hidden_state
    return states


def _rows_of(lm: LanguageModel, slots: Sequence[int], columns: int) -> AbstractContextManager[None]:
    """Tells the adapted layers whose rows a batch has, each of so many columns."""
    segments = segments_of(slots, [columns] * len(slots))
    ends = torch.tensor([end for _, _, end in segments], dtype=torch.int32, device=lm.device)
    return streaming(Stream(segments=segments, ends=ends))


def _pick(logits_BV: torch.Tensor, temperature: float, top_p: float, generators: list[torch.Generator] | None) -> list[int]:
    if temperature == 0 or generators is None:
        picked: list[int] = logits_BV.argmax(-1).tolist()
        return picked
    scaled_BV = logits_BV.cpu() / temperature
    top_BN, token_BN = scaled_BV.topk(min(NUCLEUS, scaled_BV.shape[1]), dim=-1)
    mass_BN = (top_BN - scaled_BV.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
    picks = []
    for row, generator in enumerate(generators):
        tokens, mass = token_BN[row], mass_BN[row]
        if mass[-1] < top_p and len(mass) < scaled_BV.shape[1]:
            ordered, tokens = torch.softmax(scaled_BV[row], -1).sort(descending=True, stable=True)
            mass = ordered.cumsum(-1)
        # The nucleus ends with the token that reaches the mass; one draw a token, whatever its size.
        last = min(int((mass < top_p).sum()), len(mass) - 1)
        drawn = torch.rand((), generator=generator) * mass[last]
        picks.append(int(tokens[min(int(torch.searchsorted(mass, drawn, right=True)), last)]))
    return picks
