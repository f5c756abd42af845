"""Rows of tokens through the base as one flat stream: no padding, layers below the first adapted one computed once."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from selfedit.lm.batch import Row
from selfedit.lm.load import LanguageModel
from selfedit.lm.stack import Stream, segments_of, streaming
from selfedit.lm.train import layer_range

# Tokens in one pass; a step of more is passed in parts whose gradients are added. Bounds the memory of activations.
MOST_TOKENS = 2048
# Bytes of hidden states that are kept between steps; what doesn't fit is computed again.
PREFIX_BYTES = 512 * 2**20


@contextmanager
def reading(
    lm: LanguageModel, prefixes: Prefixes, rows: Sequence[tuple[int, Row]], adding: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Runs (slot, row) pairs through the layers above the prefix; call inside ``document_attention``.

    Yields the last hidden states (N, d) at the positions that predict a labelled token, and those tokens (N,), row after row. The
    backward pass belongs inside the block.
    """
    slots, lengths = [slot for slot, _ in rows], [len(row.ids) for _, row in rows]
    spans = _spans(lengths)
    unlabelled = [max(1, row.unlabelled) for _, row in rows]
    counts = [row.labelled for _, row in rows]
    keep = [at - 1 for (begin, end), u in zip(spans, unlabelled, strict=True) for at in range(begin + u, end)]
    segments, kept_segments = segments_of(slots, lengths), segments_of(slots, counts)
    # One transfer for all indices of the pass.
    parts = (
        [at for length in lengths for at in range(length)],
        keep,
        [token for (_, row), u in zip(rows, unlabelled, strict=True) for token in row.ids[u:]],
        [0, *(end for _, end in spans)],
        [end for _, _, end in segments],
        [end for _, _, end in kept_segments],
    )
    packed = torch.tensor([number for part in parts for number in part]).to(lm.device)
    positions_T, keep_N, targets_N, bounds, ends, kept_ends = torch.split(packed, [len(part) for part in parts])
    whole = Stream(spans, segments, adding, bounds.int(), ends.int())
    kept = Stream((), kept_segments, adding, None, kept_ends.int())
    states_1Td = prefixes.states([row for _, row in rows])[None]
    with streaming(whole), layer_range(lm, prefixes.first, None), _last_mlp_at(lm, keep_N, kept):
        out = lm.model.base_model(inputs_embeds=states_1Td, position_ids=positions_T[None], use_cache=False)
        yield out.last_hidden_state[0, keep_N], targets_N


def parts_of(rows: Sequence[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    """Cuts (slot, row) pairs into passes of at most ``MOST_TOKENS`` tokens, in order.

    A slot's rows share a pass if they fit into one at all, so that where they are cut doesn't depend on other slots.
    """
    part: list[tuple[int, Row]] = []
    used = 0
    for slot, owned in itertools.groupby(rows, key=lambda pair: pair[0]):
        own = [row for _, row in owned]
        size = sum(len(row.ids) for row in own)
        if part and used + size > MOST_TOKENS:
            yield part
            part, used = [], 0
        for row in own:
            if used + len(row.ids) > MOST_TOKENS and part:
                yield part
                part, used = [], 0
            part.append((slot, row))
            used += len(row.ids)
    if part:
        yield part


def _spans(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    spans, at = [], 0
    for length in lengths:
        spans.append((at, at + length))
        at += length
    return tuple(spans)


class Prefixes:
    """Hidden states below the first adapted layer, computed once for each distinct document while there is room for them.

    No adapter in training sits there, so they are the same in every epoch, repeat and candidate.
    """

    def __init__(self, lm: LanguageModel, first: int, limit: int = PREFIX_BYTES) -> None:
        self.lm, self.first, self.limit = lm, first, limit
        self.known: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self.used = 0

    def states(self, rows: Sequence[Row]) -> torch.Tensor:
        """The rows' states one after the other, (T, d)."""
        if not self.first:
            ids_T = torch.tensor([token for row in rows for token in row.ids], device=self.lm.device)
            embedded: torch.Tensor = self.lm.model.get_input_embeddings()(ids_T)
            return embedded
        missing = list(dict.fromkeys(row.ids for row in rows if row.ids not in self.known))
        fresh: dict[tuple[int, ...], torch.Tensor] = {}
        for part in parts_of([(0, Row(ids, 0)) for ids in missing]):
            wanted = [row.ids for _, row in part]
            fresh |= dict(zip(wanted, self._compute(wanted), strict=True))
        found = []
        for row in rows:
            if row.ids in self.known:
                self.known.move_to_end(row.ids)
                found.append(self.known[row.ids])
            else:
                found.append(fresh[row.ids])
        for ids, states_Td in fresh.items():
            self.known[ids] = states_Td
            self.used += states_Td.nbytes
        while self.used > self.limit and self.known:
            self.used -= self.known.popitem(last=False)[1].nbytes
        return torch.cat(found)

    @torch.no_grad()
    def _compute(self, rows: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        lengths = [len(ids) for ids in rows]
        ids_T = torch.tensor([token for ids in rows for token in ids], device=self.lm.device)
        positions_T = torch.cat([torch.arange(n, device=self.lm.device) for n in lengths])
        with streaming(Stream(_spans(lengths))), layer_range(self.lm, 0, self.first):
            out = self.lm.model.base_model(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False)
        return [part.clone() for part in out.last_hidden_state[0].split(lengths)]


@contextmanager
def _last_mlp_at(lm: LanguageModel, keep_N: torch.Tensor, stream: Stream) -> Iterator[None]:
    """The last layer's MLP works only at the positions that are read; nothing looks at the others above it."""
    last = lm.model.base_model.layers[-1]
    mlp = getattr(last, "mlp", None)
    if mlp is None:
        yield
        return
    last.mlp = _AtPositions(mlp, keep_N, stream)
    try:
        yield
    finally:
        last.mlp = mlp


class _AtPositions(nn.Module):
    def __init__(self, mlp: nn.Module, keep_N: torch.Tensor, stream: Stream) -> None:
        super().__init__()
        self.mlp, self.keep_N, self.stream = mlp, keep_N, stream

    def forward(self, x_1Td: torch.Tensor) -> torch.Tensor:
        with streaming(self.stream):
            y_1Nd = self.mlp(x_1Td[:, self.keep_N])
        return torch.zeros_like(x_1Td).index_copy(1, self.keep_N, y_1Nd)
