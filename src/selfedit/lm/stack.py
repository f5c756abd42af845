"""K adapters on one frozen base in one pass: a flat stream of tokens, slot-wise products, no padding anywhere.

The base's linear layers see one matrix with the tokens of all slots; each slot's own A and B work on its own rows of it; attention
stays inside each document. So a slot's result does not depend on who shares the pass (tests: equal to training alone).

Departures from ``design.md``'s sketch and from others' ways: (1) the slots' parameters lie in one row each, so that norm, clip and
AdamW are one call a slot; the stacked A (K, r, in) and B (K, out, r) are views of it. (2) Gradients of A and B are written by the
layer's own backward, so that autograd sees one function a layer, whatever K is.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from selfedit.config import Settings
from selfedit.errors import ModelError
from selfedit.lm.adapter import AdaptedLinear, Adapter, adapted_layers, install, layer_index, shrunk, shrunk_gradient, target_names
from selfedit.lm.load import Identity, LanguageModel, resolve_device

ATTENTION = "selfedit_documents"
# More slots than this bring next to nothing: the base's products are at their best speed from a few hundred tokens on.
MOST_SLOTS = 8


@dataclass(frozen=True)
class Span:
    """One document's rows of the flat stream.

    Attributes:
        length: its own rows; they come after those of the documents before it.
        before: what it begins with, where that stands in earlier documents: (index of the document, its first so many own rows).
    """

    length: int
    before: tuple[tuple[int, int], ...] = ()

    @property
    def total(self) -> int:
        """Tokens of the whole document."""
        return self.length + sum(count for _, count in self.before)


@dataclass(frozen=True)
class Stream:
    """Which rows of the flat stream belong together.

    Attributes:
        documents: all rows, document after document.
        segments: (slot, begin, end) of each slot's tokens.
        bounds: where each document's own rows end, from 0 on (N + 1,), in int32 on the model's device, for kernels that take many
            documents at once.
        whole_bounds: the same where each document counts with what it begins with.
        paths: the row of each token of each whole document, on the model's device; None if no document begins in another.
        ends: the segments' ends (K,) in int32 on the model's device, for grouped products.
        masks: what the attention keeps from layer to layer.
        adding: gradients of A and B are added to what is there, since the step has several parts; else they replace it.
    """

    documents: tuple[Span, ...] = ()
    segments: tuple[tuple[int, int, int], ...] = ()
    adding: bool = False
    bounds: torch.Tensor | None = None
    whole_bounds: torch.Tensor | None = None
    paths: torch.Tensor | None = None
    ends: torch.Tensor | None = None
    masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict, compare=False)

    def by_slot(self, *tensors: torch.Tensor) -> Iterator[tuple[Any, ...]]:
        """(slot, its rows of each tensor), slot after slot; the segments cover all rows."""
        lengths = [end - begin for _, begin, end in self.segments]
        parts = [torch.split(tensor, lengths) for tensor in tensors]
        return zip((slot for slot, _, _ in self.segments), *parts, strict=True)


_stream = Stream()


@contextmanager
def streaming(stream: Stream) -> Iterator[None]:
    """Tells the adapted layers and the attention what the rows of the pass under way are."""
    global _stream
    before, _stream = _stream, stream
    try:
        yield
    finally:
        _stream = before


def segments_of(slots: Sequence[int], lengths: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """(slot, begin, end) of each run of rows of one slot."""
    segments: list[tuple[int, int, int]] = []
    at = 0
    for slot, length in zip(slots, lengths, strict=True):
        if segments and segments[-1][0] == slot:
            segments[-1] = (slot, segments[-1][1], at + length)
        else:
            segments.append((slot, at, at + length))
        at += length
    return tuple(segments)


@contextmanager
def attention(lm: LanguageModel, name: str) -> Iterator[None]:
    """Another attention function while it lasts."""
    before = lm.model.config._attn_implementation
    lm.model.set_attn_implementation(name)
    try:
        yield
    finally:
        lm.model.set_attn_implementation(before)


def document_attention(lm: LanguageModel) -> AbstractContextManager[None]:
    """Attention within the documents of a flat stream, without a mask."""
    return attention(lm, ATTENTION)


def compile_layers(lm: LanguageModel) -> None:
    """Puts the decoder layers through ``torch.compile``; the slots' products and the attention stay as they are.

    On a CPU it brought nothing (docs/lab-book.md), so it is off unless asked for; on a GPU nobody has measured it.
    """
    for layer in lm.model.base_model.layers:
        layer.compile(dynamic=True)


class Slots:
    """Room for K adapters of one shape, installed on a model while in use.

    Attributes:
        first: the lowest decoder layer that is adapted.
        values_KP: all parameters, one row a slot: for each layer A (r, in), then B (out, r), zero-padded to the largest rank.
        grads_KP: their gradients; None where nothing is trained.
    """

    def __init__(self, lm: LanguageModel, targets: str, layers: str, rank: int, count: int, training: bool) -> None:
        self.lm, self.rank, self.count = lm, rank, count
        self.layers = adapted_layers(lm, targets, layers)
        self.first = min(layer_index(name) for name in self.layers)
        self.sizes = {name: (layer.base.in_features, layer.base.out_features) for name, layer in self.layers.items()}
        self.width = sum(rank * (into + out) for into, out in self.sizes.values())
        # Whoever takes a slot fills it; each step writes every gradient of the slots at work, since each has a label in it.
        self.values_KP = torch.empty(count, self.width, device=lm.device)
        self.grads_KP = torch.empty(count, self.width, device=lm.device) if training else None
        self.scales = [0.0] * count
        self.dropouts = [0.0] * count
        self.generators: list[torch.Generator | None] = [None] * count
        # Whether a slot's A stays as it is: its gradients stay 0.
        self.fixed_downs = [False] * count
        self.floors: list[dict[str, float]] = [{} for _ in range(count)]

    def put(self, slot: int, adapter: Adapter, fixed_downs: bool = False) -> None:
        """Copies an adapter into a slot."""
        self.fixed_downs[slot], self.floors[slot] = fixed_downs, adapter.floors
        if self.grads_KP is not None:
            self.grads_KP[slot].zero_()
        self.scales[slot], self.dropouts[slot] = adapter.scale, adapter.dropout if self.grads_KP is not None else 0.0
        self.values_KP[slot].zero_()
        for name, (down_Kri, up_Kor) in self._views(self.values_KP).items():
            down, up = adapter.weights[name]
            down_Kri[slot, : adapter.rank] = down
            up_Kor[slot, :, : adapter.rank] = up

    def take(self, slot: int, settings: Settings) -> Adapter:
        """A copy of what a slot holds, of the rank, alpha and dropout of the settings that it was trained by."""
        weights = {
            name: (down_Kri[slot, : settings.rank].clone(), up_Kor[slot, :, : settings.rank].clone())
            for name, (down_Kri, up_Kor) in self._views(self.values_KP).items()
        }
        return Adapter(weights, settings.alpha, settings.dropout, self.floors[slot])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The slots answer for the layers that they adapt."""
        install(self.lm, None)
        values = self._views(self.values_KP)
        grads = self._views(self.grads_KP) if self.grads_KP is not None else {}
        for name, layer in self.layers.items():
            layer.slots = SlotLinear(self, name, *values[name], *grads.get(name, (None, None)))
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.slots = None

    def _views(self, flat_KP: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        views, at = {}, 0
        for name, (into, out) in self.sizes.items():
            down = flat_KP[:, at : at + self.rank * into].view(self.count, self.rank, into)
            at += self.rank * into
            views[name] = (down, flat_KP[:, at : at + self.rank * out].view(self.count, out, self.rank))
            at += self.rank * out
        return views


def slots_that_fit(known: Identity, settings: Settings, device: str, workers: int) -> int:
    """How many slots half of the memory that the models leave has room for, at most ``MOST_SLOTS``, at least 1.

    A slot takes its parameters, their gradients and AdamW's two moments in float32, and as much again for activations.

    Args:
        known: the model.
        settings: rank, targets and layers of the adapters.
        device: whose memory counts: the GPU's, or this machine's (a container's limit, where there is one).
        workers: processes that share it, each with the model.
    """
    config = known.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    inner, keys = heads * known.head_size, getattr(config, "num_key_value_heads", heads) * known.head_size
    sides = {
        "q_proj": (hidden, inner),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (inner, hidden),
        "gate_proj": (hidden, config.intermediate_size),
        "up_proj": (hidden, config.intermediate_size),
        "down_proj": (config.intermediate_size, hidden),
    }
    wanted = target_names(settings.targets) or set(sides)
    depth = config.num_hidden_layers
    adapted = depth if settings.layers == "all" else min(depth, int(settings.layers.removeprefix("last:")))
    # A target that isn't among these is taken for a large one.
    large = max(sum(pair) for pair in sides.values())
    each = 2 * 16 * settings.rank * adapted * sum(sum(sides[name]) if name in sides else large for name in wanted)
    target = resolve_device(device)
    weights = depth * sum(into * out for into, out in sides.values()) + 2 * config.vocab_size * hidden
    if target.type == "cuda":
        memory, held = torch.cuda.get_device_properties(target).total_memory, 2 * weights
    else:
        memory, held = memory_here(), 4 * weights
    left = memory / max(1, workers) - held
    return max(1, min(MOST_SLOTS, int(left / 2 // each)))


def memory_here() -> int:
    """Bytes that this process may use: the machine's, or its container's if that has fewer."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if file.is_file() and (limit := file.read_text().strip()).isdigit():
            return min(machine, int(limit))
    return machine


class SlotLinear:
    """One linear layer's stacked A and B; called by ``AdaptedLinear`` in place of its single adapter."""

    def __init__(
        self,
        slots: Slots,
        name: str,
        down_Kri: torch.Tensor,
        up_Kor: torch.Tensor,
        down_grad_Kri: torch.Tensor | None,
        up_grad_Kor: torch.Tensor | None,
    ) -> None:
        self.slots, self.name = slots, name
        # One view a slot, made once: making them anew at each pass costs as much as the small products.
        self.down, self.up = down_Kri.unbind(), up_Kor.unbind()
        self.down_grad = () if down_grad_Kri is None else down_grad_Kri.unbind()
        self.up_grad = () if up_grad_Kor is None else up_grad_Kor.unbind()
        # What makes autograd call the backward although no input of the first adapted layer needs a gradient.
        self.anchor = torch.empty(0, requires_grad=True)

    def downs(self, stream: Stream, dtype: torch.dtype) -> torch.Tensor:
        """A of the slots in the stream, (K, r, in)."""
        return torch.stack([self.down[slot] for slot, _, _ in stream.segments]).to(dtype)

    def scaled_ups(self, stream: Stream, dtype: torch.dtype) -> torch.Tensor:
        """B of the slots in the stream times each slot's scale, (K, out, r)."""
        return torch.stack([self.up[slot] * self.slots.scales[slot] for slot, _, _ in stream.segments]).to(dtype)

    def floors(self, stream: Stream, device: torch.device) -> torch.Tensor | None:
        """The floor of each row of the stream (T, 1), in float32; None: none has any."""
        floors = [self.slots.floors[slot].get(self.name, 0.0) for slot, _, _ in stream.segments]
        if not any(floors):
            return None
        lengths = torch.tensor([end - begin for _, begin, end in stream.segments], device=device)
        return torch.tensor(floors, device=device).repeat_interleave(lengths)[:, None]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out); rows belong to slots as the stream says."""
        flat = x.reshape(-1, x.shape[-1])
        y_To: torch.Tensor = _SlotProduct.apply(flat, self.anchor, layer, self, _stream)  # type: ignore[no-untyped-call]
        return y_To.reshape(*x.shape[:-1], y_To.shape[-1])


def grouped(x_Ti: torch.Tensor, own: SlotLinear, stream: Stream) -> bool:
    """Whether the slots' products go through grouped kernels: on CUDA, where a loop over slots would be all launches.

    They take bfloat16 and rows of whole 16 bytes only. Not with dropout, whose masks are drawn slot by slot.
    """
    sides = (own.slots.rank, x_Ti.shape[1], own.up[0].shape[0])
    fit = x_Ti.is_cuda and x_Ti.dtype == torch.bfloat16 and all(side % 8 == 0 for side in sides) and ampere(x_Ti.device)
    return fit and hasattr(F, "grouped_mm") and stream.ends is not None and not any(own.slots.dropouts)


class _SlotProduct(torch.autograd.Function):
    """y = x W' + b + sums of frozen adapters + scale_k shrunk(x_k A_k') B_k' for the rows of each slot k."""

    @staticmethod
    def forward(
        ctx: Any, x_Ti: torch.Tensor, anchor: torch.Tensor, layer: AdaptedLinear, own: SlotLinear, stream: Stream
    ) -> torch.Tensor:
        masks: dict[int, torch.Tensor] = {}
        y_To: torch.Tensor = layer.base(x_Ti)
        beneath = [x_Ti @ one.down.T for one in layer.frozen]
        for one, z in zip(layer.frozen, beneath, strict=True):
            y_To.addmm_(z if one.floors is None else shrunk(one.apart(z), one.floors).flatten(-2), one.up.T)
        # Where there are floors their gradient takes what was read.
        ctx.beneath = [None if one.floors is None else z for one, z in zip(layer.frozen, beneath, strict=True)]
        ctx.floors = floors_T1 = own.floors(stream, x_Ti.device)
        ctx.layer, ctx.own, ctx.stream, ctx.masks, ctx.grouped = layer, own, stream, masks, grouped(x_Ti, own, stream)
        if ctx.grouped:
            z_Tr = F.grouped_mm(x_Ti, own.downs(stream, x_Ti.dtype).transpose(1, 2), offs=stream.ends)
            ctx.save_for_backward(x_Ti, z_Tr)
            if floors_T1 is not None:
                z_Tr = shrunk(z_Tr, floors_T1)
            return y_To.add_(F.grouped_mm(z_Tr, own.scaled_ups(stream, x_Ti.dtype).transpose(1, 2), offs=stream.ends))
        z_Tr = x_Ti.new_empty(len(x_Ti), own.slots.rank)
        for slot, x, z in stream.by_slot(x_Ti, z_Tr):
            share, generator = own.slots.dropouts[slot], own.slots.generators[slot]
            if share and generator is not None:
                masks[slot] = keep_mask(x, share, generator)
                x = x * masks[slot]
            torch.mm(x, own.down[slot].to(x.dtype).T, out=z)
        ctx.save_for_backward(x_Ti, z_Tr)
        for slot, y, z in stream.by_slot(y_To, z_Tr if floors_T1 is None else shrunk(z_Tr, floors_T1)):
            y.addmm_(z, own.up[slot].to(z.dtype).T, alpha=own.slots.scales[slot])
        return y_To

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        (g_To,) = gradients
        x_Ti, z_Tr = ctx.saved_tensors
        layer, own, stream, masks, floors_T1 = ctx.layer, ctx.own, ctx.stream, ctx.masks, ctx.floors
        read_Tr = z_Tr if floors_T1 is None else shrunk(z_Tr, floors_T1)
        dx_Ti = None
        if ctx.needs_input_grad[0]:
            dx_Ti = g_To @ layer.base.weight
            for one, z in zip(layer.frozen, ctx.beneath, strict=True):
                dz = g_To @ one.up
                if z is not None:
                    dz = shrunk_gradient(one.apart(dz), one.apart(z), one.floors).flatten(-2)
                dx_Ti.addmm_(dz, one.down)
        beta = 1.0 if stream.adding else 0.0
        if ctx.grouped:
            g_To = g_To.contiguous()
            dz_Tr = F.grouped_mm(g_To, own.scaled_ups(stream, g_To.dtype), offs=stream.ends)
            if floors_T1 is not None:
                dz_Tr = shrunk_gradient(dz_Tr, z_Tr, floors_T1)
            down_grads_Kri = F.grouped_mm(dz_Tr.T, x_Ti, offs=stream.ends)
            up_grads_Kor = F.grouped_mm(g_To.T, read_Tr, offs=stream.ends)
            for at, (slot, _, _) in enumerate(stream.segments):
                if not own.slots.fixed_downs[slot]:
                    _add(own.down_grad[slot], down_grads_Kri[at], beta)
                _add(own.up_grad[slot], up_grads_Kor[at], beta, own.slots.scales[slot])
            if dx_Ti is not None:
                dx_Ti += F.grouped_mm(dz_Tr, own.downs(stream, g_To.dtype), offs=stream.ends)
            return dx_Ti, None, None, None, None
        dz_Tr = torch.empty_like(z_Tr)
        for slot, g, dz in stream.by_slot(g_To, dz_Tr):
            torch.mm(g, own.up[slot].to(g.dtype), out=dz)
        if floors_T1 is not None:
            dz_Tr = shrunk_gradient(dz_Tr, z_Tr, floors_T1)
        for slot, g, x, read, dz, dx in stream.by_slot(g_To, x_Ti, read_Tr, dz_Tr, g_To if dx_Ti is None else dx_Ti):
            scale, down = own.slots.scales[slot], own.down[slot].to(g.dtype)
            if slot in masks:
                x = x * masks[slot]
            _add_product(own.up_grad[slot], g.T, read, beta, scale)
            if not own.slots.fixed_downs[slot]:
                _add_product(own.down_grad[slot], dz.T, x, beta, scale)
            if dx_Ti is None:
                continue
            if slot in masks:
                dx.add_((dz @ down) * masks[slot], alpha=scale)
            else:
                dx.addmm_(dz, down, alpha=scale)
        return dx_Ti, None, None, None, None


def _add_product(into: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: float, alpha: float) -> None:
    """``into`` becomes beta * into + alpha * a b; it is float32 whatever a and b are."""
    if into.dtype == a.dtype:
        torch.addmm(into, a, b, beta=beta, alpha=alpha, out=into)
    else:
        _add(into, (a @ b).float(), beta, alpha)


def _add(into: torch.Tensor, product: torch.Tensor, beta: float, alpha: float = 1.0) -> None:
    """``into`` becomes beta * into + alpha * product; at beta 0 what it held, NaN too, is gone."""
    if beta:
        into.mul_(beta).add_(product, alpha=alpha)
    else:
        into.copy_(product).mul_(alpha)


def keep_mask(x: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Dropout's mask of 0 and 1 / (1 - share), from a generator of its own."""
    drawn = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device)
    return (drawn >= share).to(x.dtype) / (1.0 - share)


def refuse_other_attention(given: Mapping[str, Any]) -> None:
    """Raises ModelError for what a family asks of its attention and ours doesn't do; ``given``: what was not taken by name."""
    named = {"softcap": "a cap", "s_aux": "sinks", "position_bias": "a position bias"}
    found = [name for key, name in named.items() if given.get(key) is not None]
    if found:
        raise ModelError(f"this model's attention has {' and '.join(found)}, which can't be computed here; give another model")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document of the stream; (1, H, T, D) -> (1, T, H, D)."""
    refuse_other_attention(others)
    if _stream.bounds is not None and one_kernel(query):
        return _attend_in_one_kernel(query, key, value, _stream, scaling, sliding_window), None
    lengths = [span.length for span in _stream.documents]
    # Split once: the gradient of a split is one concatenation, that of a slice as large as the whole.
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    outs = []
    for at, span in enumerate(_stream.documents):
        q, k, v = queries[at], keys[at], values[at]
        if span.before:
            k = torch.cat([*(keys[other][:, :, :count] for other, count in span.before), k], dim=2)
            v = torch.cat([*(values[other][:, :, :count] for other, count in span.before), v], dim=2)
        mask = None
        if span.before or (sliding_window is not None and span.total > sliding_window):
            mask = _mask(_stream.masks, span, sliding_window or span.total, q.device)
        outs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            )
        )
    return torch.cat(outs, dim=2).transpose(1, 2), None


def _mask(known: dict[tuple[int, int, int], torch.Tensor], span: Span, window: int, device: torch.device) -> torch.Tensor:
    """Which tokens (total,) a document's own rows (length,) see; made once a pass, not in each layer."""
    key = (span.length, span.total, window)
    if key not in known:
        there = torch.arange(span.total, device=device)
        distance = there[span.total - span.length :, None] - there[None]
        known[key] = (distance >= 0) & (distance < window)
    return known[key]


def one_kernel(query: torch.Tensor) -> bool:
    """Whether one call can attend in many documents: on a GPU that has FlashAttention, with a torch whose call takes windows."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16) or not ampere(query.device):
        return False
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


@functools.cache
def ampere(device: torch.device) -> bool:
    """Whether a GPU is of NVIDIA's generation 8 or newer, which grouped products and FlashAttention need."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _attend_in_one_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, stream: Stream, scaling: float | None, window: int | None
) -> torch.Tensor:
    """The same by one FlashAttention call over all documents; needs CUDA and half precision."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if stream.paths is not None:
        k, v = k[stream.paths], v[stream.paths]
    assert stream.bounds is not None and stream.whole_bounds is not None
    # Where there are fewer queries than keys the kernel lets the last of both meet.
    out = varlen_attn(
        q,
        k,
        v,
        stream.bounds,
        stream.whole_bounds,
        max(span.length for span in stream.documents),
        max(span.total for span in stream.documents),
        scale=scaling,
        window_size=((window or 0) - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


AttentionInterface.register(ATTENTION, _attend)
