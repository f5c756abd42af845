"""Keys and values while text is made: a prompt's once for all rows that continue it, each row's own written in place.

Many rows continue one prompt (candidates of a self-edit, samples of an answer); a copy of its keys and values for each, and a new
copy of everything at each token, cost more than the model's products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache

from selfedit.lm.stack import refuse_other_attention

ATTENTION = "selfedit_branches"
# Prompts that no row continues any more are dropped once so large a share is left; dropping copies the others.
LIVELY = 0.75


class Branches(DynamicCache):  # type: ignore[misc]
    """What the attention of rows that continue distinct prompts reads; one new token a row in each pass.

    Args:
        read: the cache after the prompts, one row each.
        mask_UT: 1 where a column of a prompt is text.
        sources: for each row the prompt that it continues.
        room: longest continuation in tokens.
    """

    def __init__(self, read: DynamicCache, mask_UT: torch.Tensor, sources: Sequence[int], room: int) -> None:
        super().__init__()
        self.prompts = [(layer.keys, layer.values) for layer in read.layers]
        self.device = self.prompts[0][0].device
        self.mask_UT = mask_UT.to(self.device, torch.bool)
        self.own = [
            tuple(part.new_empty(len(sources), part.shape[1], room, part.shape[3]) for part in pair) for pair in self.prompts
        ]
        self.made = 0
        self._continue(sources)

    @property
    def positions_B1(self) -> torch.Tensor:
        """Where each row's next token stands in its text."""
        return self.lengths_B[:, None] + self.made

    def _continue(self, sources: Sequence[int]) -> None:
        """Says which prompt each row continues, and lays the rows of a prompt side by side."""
        self.sources = list(sources)
        self.source_B = torch.tensor(self.sources, device=self.device)
        self.lengths_B = self.mask_UT.sum(1)[self.source_B]
        counts = Counter(self.sources)
        self.most = max(counts.values())
        places = [[0] * self.most for _ in self.mask_UT]
        back, seen = [], Counter[int]()
        for row, source in enumerate(self.sources):
            places[source][seen[source]] = row
            back.append(source * self.most + seen[source])
            seen[source] += 1
        # Each prompt has one row, and they stand in order: nothing to lay out.
        self.plain = back == list(range(len(places)))
        self.row_N = torch.tensor(places, device=self.device).flatten()
        self.back_B = torch.tensor(back, device=self.device)
        self.biases: dict[tuple[int, int | None], torch.Tensor] = {}

    def keep(self, rows: Sequence[int]) -> None:
        """Rows that aren't listed leave."""
        index = torch.tensor(rows, device=self.device)
        room = self.own[0][0].shape[2]
        for at, pair in enumerate(self.own):
            kept = []
            for part in pair:
                fresh = part.new_empty(len(rows), part.shape[1], room, part.shape[3])
                fresh[:, :, : self.made] = part[index, :, : self.made]
                kept.append(fresh)
            self.own[at] = tuple(kept)
        sources = [self.sources[row] for row in rows]
        alive = sorted(set(sources))
        if len(alive) <= LIVELY * len(self.mask_UT):
            left = torch.tensor(alive, device=self.device)
            self.prompts = [(keys[left], values[left]) for keys, values in self.prompts]
            self.mask_UT = self.mask_UT[left]
            sources = [alive.index(source) for source in sources]
        self._continue(sources)

    def advance(self) -> None:
        """The pass is over: each row is a token longer."""
        self.made += 1
        self.biases = {key: bias for key, bias in self.biases.items() if key[1] is None}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes a token's keys and values (B, H, 1, D); returns those of all tokens made so far."""
        keys, values = self.own[layer_idx]
        keys[:, :, self.made] = key_states[:, :, 0]
        values[:, :, self.made] = value_states[:, :, 0]
        return keys[:, :, : self.made + 1], values[:, :, : self.made + 1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before the pass under way."""
        return self.mask_UT.shape[1] + self.made

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        cap: float | None,
    ) -> torch.Tensor:
        """Attention of one token a row (B, H, 1, D) over its prompt and its own text (B, Hkv, t, D); (B, 1, H, D)."""
        before_keys, before_values = self.prompts[layer]
        rows, heads, _, size = query.shape
        few = key.shape[1]
        scale = size**-0.5 if scaling is None else scaling
        q_BHGD = query.reshape(rows, few, heads // few, size) * scale
        if window is not None and key.shape[2] > window:
            key, value = key[:, :, -window:], value[:, :, -window:]
        scores = torch.cat([self._of_rows(self._by_prompt(q_BHGD) @ before_keys.mT), q_BHGD @ key.mT], dim=-1).float()
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        columns = before_keys.shape[2]
        scores[..., :columns] += self._bias(columns, window)
        weights = scores.softmax(-1).to(value.dtype)
        out_BHGD = self._of_rows(self._by_prompt(weights[..., :columns]) @ before_values) + weights[..., columns:] @ value
        return out_BHGD.reshape(rows, 1, heads, size)

    def _by_prompt(self, rows_BHGX: torch.Tensor) -> torch.Tensor:
        """(B, H, G, X) -> (U, H, N * G, X): the rows of each prompt side by side."""
        if self.plain:
            return rows_BHGX
        _, heads, group, width = rows_BHGX.shape
        laid = rows_BHGX[self.row_N].view(-1, self.most, heads, group, width).transpose(1, 2)
        return laid.reshape(-1, heads, self.most * group, width)

    def _of_rows(self, prompts_UHMX: torch.Tensor) -> torch.Tensor:
        """(U, H, N * G, X) -> (B, H, G, X)."""
        if self.plain:
            return prompts_UHMX
        prompts, heads, _, width = prompts_UHMX.shape
        apart = prompts_UHMX.view(prompts, heads, self.most, -1, width).transpose(1, 2)
        return apart.reshape(prompts * self.most, heads, -1, width)[self.back_B]

    def _bias(self, columns: int, window: int | None) -> torch.Tensor:
        """What is added to the scores of a prompt's last columns: 0 where a row sees them, else -inf, (B, 1, 1, columns)."""
        if (columns, window) not in self.biases:
            seen_BT = self.mask_UT[self.source_B]
            if window is not None:
                seen_BT = seen_BT & (self.positions_B1 - (seen_BT.cumsum(1) - 1) < window)
            bias_BT = torch.zeros(seen_BT.shape, device=self.device).masked_fill(~seen_BT, float("-inf"))
            self.biases[columns, window] = bias_BT[:, None, None, bias_BT.shape[1] - columns :]
        return self.biases[columns, window]


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    refuse_other_attention(others)
    branches: Branches = others["branches"]
    layer: Any = module.layer_idx
    return branches.attend(int(layer), query, key, value, scaling, sliding_window, softcap), None


AttentionInterface.register(ATTENTION, _attend)
