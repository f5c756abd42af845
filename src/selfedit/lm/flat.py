"""Rows of tokens through the base as one flat stream: no padding, layers below the first adapted one computed once."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from selfedit.lm.batch import Row
from selfedit.lm.load import LanguageModel
from selfedit.lm.stack import Span, Stream, segments_of, streaming
from selfedit.lm.train import layer_range

# Tokens in one pass; a step of more is passed in parts whose gradients are added. Bounds the memory of activations.
MOST_TOKENS = 2048
# Bytes of hidden states that are kept between steps; what doesn't fit is computed again.
PREFIX_BYTES = 512 * 2**20
# A shorter common beginning of two documents is not worth a mask of its own.
LEAST_SHARED = 8


@dataclass(frozen=True)
class Packed:
    """Where the tokens of rows stand in a flat stream.

    Attributes:
        spans: for the attention.
        skips: how many leading tokens of each row are read in an earlier row of the same slot.
        paths: for each row the place in the stream of each of its tokens.
    """

    spans: tuple[Span, ...]
    skips: list[int]
    paths: list[list[int]]

    @property
    def positions(self) -> list[int]:
        """Each laid out token's place in its own row."""
        return [at for span, skip in zip(self.spans, self.skips, strict=True) for at in range(skip, skip + span.length)]

    @property
    def index(self) -> tuple[list[int], list[int], list[int]]:
        """``Stream``'s bounds, whole bounds and paths."""
        own = list(itertools.accumulate((span.length for span in self.spans), initial=0))
        whole = list(itertools.accumulate((span.total for span in self.spans), initial=0))
        return own, whole, [at for path in self.paths for at in path] if any(self.skips) else []


def pack(rows: Sequence[tuple[int, Row]], sharing: bool = True) -> Packed:
    """Lays (slot, row) pairs out; what a row begins with like the row before it in its slot is not laid out again."""
    spans: list[Span] = []
    skips: list[int] = []
    paths: list[list[int]] = []
    used = 0
    for at, (slot, row) in enumerate(rows):
        skip = _common(rows[at - 1][1].ids, row.ids) if sharing and at and rows[at - 1][0] == slot else 0
        before, left = [], skip
        for other, count in (*spans[-1].before, (at - 1, spans[-1].length)) if skip else ():
            if left:
                before.append((other, min(count, left)))
                left -= min(count, left)
        own = len(row.ids) - skip
        spans.append(Span(own, tuple(before)))
        skips.append(skip)
        paths.append([*(paths[-1][:skip] if skip else ()), *range(used, used + own)])
        used += own
    return Packed(tuple(spans), skips, paths)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning, short of the whole of ``b``; 0 if it is too short to matter."""
    shared = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    shared = min(shared, len(b) - 1)
    return shared if shared >= LEAST_SHARED else 0


@contextmanager
def reading(
    lm: LanguageModel, prefixes: Prefixes, rows: Sequence[tuple[int, Row]], adding: bool = False, sharing: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Runs (slot, row) pairs through the layers above the prefix; call inside ``document_attention``.

    Yields the last hidden states (N, d) at the positions that predict a labelled token, and those tokens (N,), row after row. The
    backward pass belongs inside the block. With ``sharing`` what a slot's neighbouring rows begin with is computed once, which
    changes nothing but rounding (and the draws of dropout: not with that).
    """
    packed = pack(rows, sharing)
    spans = packed.spans
    lm.read += sum(span.length for span in spans)
    unlabelled = [max(1, row.unlabelled) for _, row in rows]
    keep = [at for path, u in zip(packed.paths, unlabelled, strict=True) for at in path[u - 1 : -1]]
    # Rows that share their beginning may predict from the same position.
    unique = sorted(set(keep))
    place = {at: index for index, at in enumerate(unique)}
    slots = [slot for slot, _ in rows]
    segments = segments_of(slots, [span.length for span in spans])
    owner = [slot for slot, span in zip(slots, spans, strict=True) for _ in range(span.length)]
    kept_segments = segments_of([owner[at] for at in unique], [1] * len(unique))
    # One transfer for all indices of the pass.
    parts = (
        packed.positions,
        unique,
        [place[at] for at in keep],
        [token for (_, row), u in zip(rows, unlabelled, strict=True) for token in row.ids[u:]],
        [end for _, _, end in segments],
        [end for _, _, end in kept_segments],
        *packed.index,
    )
    together = torch.tensor([number for part in parts for number in part]).to(lm.device)
    pieces = torch.split(together, [len(part) for part in parts])
    positions_T, unique_U, keep_N, targets_N, ends, kept_ends, bounds, whole_bounds, paths = pieces
    shared = paths if any(packed.skips) else None
    whole = Stream(spans, segments, adding, bounds.int(), whole_bounds.int(), shared, ends.int())
    kept = Stream((), kept_segments, adding, ends=kept_ends.int())
    states_1Td = prefixes.states([row for _, row in rows], packed.skips)[None]
    with streaming(whole), layer_range(lm, prefixes.first, None), _last_mlp_at(lm, unique_U, kept):
        out = lm.model.base_model(inputs_embeds=states_1Td, position_ids=positions_T[None], use_cache=False)
        yield out.last_hidden_state[0, unique_U][keep_N], targets_N


def parts_of(rows: Sequence[tuple[int, Row]], laid_out: bool = False, most: int | None = None) -> Iterator[list[tuple[int, Row]]]:
    """Cuts (slot, row) pairs into passes of at most ``most`` tokens (``MOST_TOKENS``), in order.

    A slot's rows share a pass if they fit into one at all, so that where they are cut doesn't depend on other slots.

    Args:
        rows: what is to be read.
        laid_out: counts only what ``pack`` lays out; else every token, whether it is shared or not.
    """
    most = MOST_TOKENS if most is None else min(most, MOST_TOKENS)
    part: list[tuple[int, Row]] = []
    used = 0
    for slot, owned in itertools.groupby(rows, key=lambda pair: pair[0]):
        own = [row for _, row in owned]
        skips = [_common(a.ids, b.ids) if laid_out else 0 for a, b in itertools.pairwise(own)]
        sizes = [len(own[0].ids), *(len(row.ids) - skip for row, skip in zip(own[1:], skips, strict=True))]
        if part and used + sum(sizes) > most:
            yield part
            part, used = [], 0
        for row, size in zip(own, sizes, strict=True):
            if used + size > most and part:
                yield part
                part, used = [], 0
            used += size if part and part[-1][0] == slot else len(row.ids)
            part.append((slot, row))
    if part:
        yield part


class Prefixes:
    """Hidden states below the first adapted layer, computed once for each distinct document while there is room for them.

    No adapter in training sits there, so they are the same in every epoch, repeat and candidate.
    """

    def __init__(self, lm: LanguageModel, first: int, limit: int = PREFIX_BYTES) -> None:
        self.lm, self.first, self.limit = lm, first, limit
        self.known: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self.used = 0

    def states(self, rows: Sequence[Row], skips: Sequence[int]) -> torch.Tensor:
        """The rows' states one after the other, each without its first ``skips`` tokens, (T, d)."""
        if not self.first:
            ids = [token for row, skip in zip(rows, skips, strict=True) for token in row.ids[skip:]]
            embedded: torch.Tensor = self.lm.model.get_input_embeddings()(torch.tensor(ids, device=self.lm.device))
            return embedded
        # In order, so that neighbours share what they begin with.
        missing = sorted({row.ids for row in rows if row.ids not in self.known})
        fresh: dict[tuple[int, ...], torch.Tensor] = {}
        for part in parts_of([(0, Row(ids, 0)) for ids in missing], laid_out=True):
            fresh |= dict(zip((row.ids for _, row in part), self._compute(part), strict=True))
        found = []
        for row, skip in zip(rows, skips, strict=True):
            if row.ids in self.known:
                self.known.move_to_end(row.ids)
                found.append(self.known[row.ids][skip:])
            else:
                found.append(fresh[row.ids][skip:])
        for row_ids, states_Td in fresh.items():
            self.known[row_ids] = states_Td
            self.used += states_Td.nbytes
        while self.used > self.limit and self.known:
            self.used -= self.known.popitem(last=False)[1].nbytes
        return torch.cat(found)

    def _compute(self, rows: Sequence[tuple[int, Row]]) -> list[torch.Tensor]:
        with layer_range(self.lm, 0, self.first):
            states_Td, packed = _states_of(self.lm, rows)
        return [states_Td[path] for path in packed.paths]


def read_flat(lm: LanguageModel, rows: Sequence[tuple[int, Row]]) -> list[torch.Tensor]:
    """Runs (slot, row) pairs through the layers for whoever looks on; call inside ``document_attention``.

    Returns for each row the places (T,) of its tokens in the flat stream; those of a common beginning are the same.
    """
    _, packed = _states_of(lm, rows)
    lm.read += sum(span.length for span in packed.spans)
    return [torch.tensor(path, device=lm.device) for path in packed.paths]


@torch.no_grad()
def _states_of(lm: LanguageModel, rows: Sequence[tuple[int, Row]]) -> tuple[torch.Tensor, Packed]:
    """Hidden states of the flat stream (T, d), and where each row's tokens stand in it."""
    packed = pack(rows)
    ids = [token for (_, row), skip in zip(rows, packed.skips, strict=True) for token in row.ids[skip:]]
    ids_1T, positions_1T = torch.tensor([[ids], [packed.positions]], device=lm.device)
    bounds, whole_bounds, paths = (torch.tensor(numbers, device=lm.device) for numbers in packed.index)
    shared = paths if any(packed.skips) else None
    stream = Stream(packed.spans, bounds=bounds.int(), whole_bounds=whole_bounds.int(), paths=shared)
    with streaming(stream):
        out = lm.model.base_model(input_ids=ids_1T, position_ids=positions_1T, use_cache=False)
    return out.last_hidden_state[0], packed


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
