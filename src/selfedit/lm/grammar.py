"""Decoding held to a JSON schema: which tokens may come next, row by row (llguidance)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from selfedit.errors import ModelError
from selfedit.lm.load import LanguageModel

_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """One matcher for each row that has a schema; JSON without line breaks, a space after commas and colons."""

    def __init__(self, lm: LanguageModel, schemas: Sequence[str | None]) -> None:
        """Compiles each distinct schema once.

        Raises:
            ModelError: a schema that can't be compiled.
        """
        tokenizer = _tokenizer(lm)
        self.vocabulary = tokenizer.vocab_size
        self.rows: list[LLMatcher | None] = []
        compiled: dict[str, LLMatcher] = {}
        for schema in schemas:
            if schema is None:
                self.rows.append(None)
                continue
            if schema not in compiled:
                compiled[schema] = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.loads(schema), defaults=_FORM))
                if compiled[schema].is_error():
                    raise ModelError(f"{lm.name}: the JSON schema can't be compiled ({compiled[schema].get_error()})")
            self.rows.append(compiled[schema].deep_copy())

    def masked(self, logits_BV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The logits of some rows with -inf at every token that their schema forbids."""
        held = [(at, self.rows[row]) for at, row in enumerate(rows) if self.rows[row] is not None]
        if not held:
            return logits_BV
        bits_Rw = allocate_token_bitmask(len(held), self.vocabulary)
        for place, (_, matcher) in enumerate(held):
            fill_next_token_bitmask(matcher, bits_Rw, place)
        allowed_RV = np.unpackbits(bits_Rw.view(np.uint8), axis=1, bitorder="little").astype(bool)
        masked_BV = logits_BV.clone()
        for place, (at, _) in enumerate(held):
            forbidden_V = torch.ones(logits_BV.shape[1], dtype=torch.bool)
            width = min(self.vocabulary, logits_BV.shape[1])
            forbidden_V[:width] = torch.from_numpy(~allowed_RV[place, :width])
            masked_BV[at, forbidden_V.to(logits_BV.device)] = -torch.inf
        return masked_BV

    def took(self, row: int, token: int) -> bool:
        """Notes a row's new token; whether the text is whole now."""
        matcher = self.rows[row]
        if matcher is None:
            return False
        matcher.consume_token(token)
        return bool(matcher.is_stopped())


def _tokenizer(lm: LanguageModel) -> LLTokenizer:
    """The model's vocabulary as llguidance wants it; made once, since it takes a second."""
    known: Any = getattr(lm.tokenizer, "_selfedit_grammar", None)
    if known is None:
        known = from_tokenizer(lm.tokenizer)
        lm.tokenizer._selfedit_grammar = known
    return known
