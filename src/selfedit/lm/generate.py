"""Text out: one batched decode loop with a KV cache, greedy or sampled; each row with its own random numbers and adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache

from selfedit.errors import ModelError
from selfedit.lm.load import LanguageModel
from selfedit.lm.stack import Stream, segments_of, streaming

# The nucleus is looked for among so many likeliest tokens first; sorting a whole vocabulary costs as much as the model's step.
NUCLEUS = 256
# Bytes of keys and values in one batch; more rows wait for the next.
CACHE_BYTES = 2 * 2**30


@torch.inference_mode()
def generate(
    lm: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    stop: Callable[[str], bool] | None = None,
    slots: Sequence[int] | None = None,
) -> list[str]:
    """Continues each prompt and returns the new text alone.

    Equal prompts, and what all prompts begin with, are read once; rows leave the batch when they end, so the last long row
    doesn't pay for the others.

    Args:
        prompts: token ids, one prompt a row.
        max_new_tokens: longest continuation in tokens.
        temperature: 0 is greedy.
        top_p: nucleus mass, for sampling.
        seeds: one for each row, for sampling; a row's draws don't depend on its neighbours.
        stop: called with a row's text so far; True ends the row.
        slots: for each prompt the slot (``lm/stack.py``) that answers it, in rising order; None: what is installed answers all.

    Raises:
        ModelError: a prompt fills the model's window.
    """
    rows = list(zip(slots or [0] * len(prompts), prompts, strict=True))
    limits = [min(max_new_tokens, lm.window - len(ids)) for ids in prompts]
    if min(limits, default=1) < 1:
        longest = max(len(ids) for ids in prompts)
        raise ModelError(
            f"{lm.name}: a prompt of {longest} tokens leaves no room in its window of {lm.window}; give a shorter text"
        )
    each = bytes_a_token(lm) * max(len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)) if prompts else 1
    at_once = max(1, CACHE_BYTES // each)
    texts: list[str] = []
    for at in range(0, len(rows), at_once):
        part = slice(at, at + at_once)
        texts += _continue(lm, rows[part], limits[part], temperature, top_p, seeds[part] if seeds is not None else None, stop)
    return texts


def bytes_a_token(lm: LanguageModel) -> int:
    """Bytes of keys and values that one token takes in the cache."""
    config = lm.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head * lm.dtype.itemsize)


def _continue(
    lm: LanguageModel,
    rows: Sequence[tuple[int, tuple[int, ...]]],
    limits: Sequence[int],
    temperature: float,
    top_p: float,
    seeds: Sequence[int] | None,
    stop: Callable[[str], bool] | None,
) -> list[str]:
    """One batch of (slot, prompt) rows, each with its own limit of new tokens."""
    unique = list(dict.fromkeys(rows))
    shared = _shared_prefix([ids for _, ids in unique])
    rests = [ids[shared:] for _, ids in unique]
    longest = max(len(ids) for ids in rests)
    if _shortest_window(lm) < shared + longest + max(limits):
        # Padding between the shared prefix and the rest would push real tokens out of a sliding window.
        shared, rests = 0, [ids for _, ids in unique]
        longest = max(len(ids) for ids in rests)
    cache = DynamicCache(config=lm.model.config)
    if shared:
        heads = list(dict.fromkeys(slot for slot, _ in unique))
        head_ST = torch.tensor([unique[0][1][:shared]]).expand(len(heads), -1)
        _forward(lm, head_ST, torch.ones_like(head_ST), torch.arange(shared).expand(len(heads), -1), cache, heads)
        cache.batch_select_indices(torch.tensor([heads.index(slot) for slot, _ in unique], device=lm.device))
    ids_UT = torch.full((len(unique), longest), lm.tokenizer.pad_token_id, dtype=torch.long)
    mask_UT = torch.ones((len(unique), shared + longest), dtype=torch.long)
    for row, ids in enumerate(rests):
        ids_UT[row, longest - len(ids) :] = torch.tensor(ids)
        mask_UT[row, shared : shared + longest - len(ids)] = 0
    positions_UT = (mask_UT.cumsum(1) - 1)[:, shared:].clamp(min=0)
    logits_UV = _forward(lm, ids_UT, mask_UT, positions_UT, cache, [slot for slot, _ in unique])

    index_of = {row: index for index, row in enumerate(unique)}
    source = torch.tensor([index_of[row] for row in rows])
    logits_BV = logits_UV[source.to(lm.device)]
    mask_BT = mask_UT[source]
    if len(unique) < len(rows):
        cache.batch_select_indices(source.to(lm.device))

    generators = [torch.Generator().manual_seed(seed) for seed in seeds] if seeds is not None else None
    made: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))
    ends = _end_ids(lm)
    while live:
        nexts = _pick(logits_BV, temperature, top_p, [generators[row] for row in live] if generators else None)
        keep = []
        for at, (row, token) in enumerate(zip(live, nexts, strict=True)):
            if token in ends:
                continue
            made[row].append(token)
            if len(made[row]) == limits[row]:
                continue
            if stop is None or not stop(lm.tokenizer.decode(made[row], skip_special_tokens=True)):
                keep.append(at)
        if not keep:
            break
        if len(keep) < len(live):
            live = [live[at] for at in keep]
            nexts = [nexts[at] for at in keep]
            mask_BT = mask_BT[keep]
            cache.batch_select_indices(torch.tensor(keep, device=lm.device))
        mask_BT = torch.cat([mask_BT, torch.ones(len(live), 1, dtype=torch.long)], dim=1)
        positions_B1 = mask_BT.sum(1, keepdim=True) - 1
        logits_BV = _forward(lm, torch.tensor(nexts)[:, None], mask_BT, positions_B1, cache, [rows[row][0] for row in live])
    return [lm.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in made]


def _shortest_window(lm: LanguageModel) -> float:
    """The window of sliding attention layers, infinite without such layers."""
    config = lm.model.config.get_text_config()
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return float(config.sliding_window) if sliding else float("inf")


def _shared_prefix(prompts: Sequence[tuple[int, ...]], least: int = 32) -> int:
    """How many leading tokens all prompts share (one is always left over); 0 if too few to be worth a pass of their own."""
    if len(prompts) < 2:
        return 0
    shortest = min(len(ids) for ids in prompts) - 1
    shared = next((at for at in range(shortest) if len({ids[at] for ids in prompts}) > 1), shortest)
    return shared if shared >= least else 0


def _forward(
    lm: LanguageModel,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    positions_BT: torch.Tensor,
    cache: DynamicCache,
    slots: Sequence[int],
) -> torch.Tensor:
    """Logits (B, V) after the last column."""
    segments = segments_of(slots, [ids_BT.shape[1]] * len(slots))
    ends = torch.tensor([end for _, _, end in segments], dtype=torch.int32, device=lm.device)
    with streaming(Stream(segments=segments, ends=ends)):
        out = lm.model(
            input_ids=ids_BT.to(lm.device),
            attention_mask=mask_BT.to(lm.device),
            position_ids=positions_BT.to(lm.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    logits: torch.Tensor = out.logits[:, -1].float()
    return logits


def _pick(logits_BV: torch.Tensor, temperature: float, top_p: float, generators: list[torch.Generator] | None) -> list[int]:
    if temperature == 0 or generators is None:
        return [int(token) for token in logits_BV.argmax(-1)]
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


def _end_ids(lm: LanguageModel) -> set[int]:
    listed = lm.model.generation_config.eos_token_id
    ids = set(listed) if isinstance(listed, list) else {listed}
    return {int(i) for i in ids | {lm.tokenizer.eos_token_id} if i is not None}
