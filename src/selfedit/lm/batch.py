"""Text to tokens: chat turns, plain documents and prompts become rows of ids with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jinja2 import TemplateError

from selfedit.edits import Document, Message, Prompt
from selfedit.errors import DataError
from selfedit.lm.load import Identity

IGNORED = -100


@dataclass(frozen=True, slots=True, eq=False)
class SoftTargets:
    """What a row's labelled tokens are held against in the place of the tokens alone: a few ids each, with shares that sum to 1.

    Two are equal only if they are the same object, so that a row stays a key.

    Attributes:
        ids: token ids (labelled, K); one may stand twice, its shares add up.
        shares: float32 (labelled, K).
    """

    ids: torch.Tensor
    shares: torch.Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one sequence and how many of the first carry no loss.

    Attributes:
        ids: token ids.
        unlabelled: the number of leading tokens without loss; the first token of a sequence never has any.
        soft: what the labelled tokens are held against; None: each against itself.
        epoch: the only epoch of a training (0-based) that has it; None: every one.
    """

    ids: tuple[int, ...]
    unlabelled: int
    soft: SoftTargets | None = None
    epoch: int | None = None

    @property
    def labelled(self) -> int:
        """How many tokens carry loss."""
        return len(self.ids) - max(1, self.unlabelled)


def encode_prompt(lm: Identity, prompt: Prompt) -> tuple[int, ...]:
    """Ids of a prompt that the model is to continue: the chat template, or for base models the turns joined by newlines.

    A message of the role ``text`` stands for itself, without a template. A template that knows no system message gets its text at
    the beginning of the user's turn; one that can think first is told not to.
    """
    if lm.chat and prompt[0].role != "text":
        try:
            text = _templated(lm, prompt)
        except TemplateError:
            if prompt[0].role != "system":
                raise
            first, *others = prompt[1:]
            text = _templated(lm, (Message(first.role, f"{prompt[0].content}\n\n{first.content}"), *others))
        return tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    text = "\n".join(message.content for message in prompt)
    return tuple(lm.tokenizer(text)["input_ids"])


def _templated(lm: Identity, prompt: Prompt) -> str:
    turns = [message._asdict() for message in prompt]
    return str(lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False))


def encode_answer(lm: Identity, prompt: Prompt, answer: str) -> Row:
    """A prompt with the answer that carries the loss, closed by the end of the turn."""
    head = encode_prompt(lm, prompt)
    text = answer if lm.chat or prompt[-1].content.endswith("\n") else f" {answer}"
    tail = (*lm.tokenizer(text, add_special_tokens=False)["input_ids"], lm.tokenizer.eos_token_id)
    return Row(head + tail, len(head))


def encode_document(lm: Identity, document: Document) -> Row:
    """A training document: a turn whose answer carries the loss, or plain text that carries it everywhere.

    Departure from the reference code: one end-of-text token closes a plain document; there every document is padded with
    it to 2048 tokens and each of them is trained on. Longer rows than the model's window are cut.

    Raises:
        DataError: the request alone fills the window.
    """
    if document.request is not None:
        row = encode_answer(lm, document.request, document.text)
        row = Row(row.ids, 0) if document.whole else row
    else:
        row = Row((*lm.tokenizer(document.text)["input_ids"], lm.tokenizer.eos_token_id), 0)
    if row.unlabelled >= lm.window:
        raise DataError(f"a lesson's question fills the model's window of {lm.window} tokens; give a shorter title")
    return Row(row.ids[: lm.window], row.unlabelled)


def pad(rows: list[Row], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows, padded on the right to the longest, as ids (B, T) and labels (B, T).

    Padding is never looked at by a real token (attention is causal) and has no loss, so no attention mask is needed.
    """
    longest = max(len(row.ids) for row in rows)
    ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    labels_BT = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        ids_BT[index, : len(ids)] = ids
        labels_BT[index, row.unlabelled : len(ids)] = ids[row.unlabelled :]
    return ids_BT.to(device), labels_BT.to(device)


def soft_targets(rows: Sequence[Row], targets_N: torch.Tensor) -> SoftTargets | None:
    """What all labelled tokens are held against, (N, K), row after row; None if no row has soft targets.

    A token of a row without them is its own target with the whole share; of a row with fewer than others the rest has no share.

    Args:
        rows: rows in order.
        targets_N: their labelled tokens.
    """
    width = max((row.soft.ids.shape[1] for row in rows if row.soft is not None), default=0)
    if not width:
        return None
    ids_NK = targets_N[:, None].repeat(1, width)
    shares_NK = torch.zeros(len(targets_N), width, device=targets_N.device)
    shares_NK[:, 0] = 1.0
    at = 0
    for row in rows:
        if row.soft is not None:
            own = slice(at, at + row.labelled), slice(row.soft.ids.shape[1])
            shares_NK[at : at + row.labelled, 0] = 0.0
            ids_NK[own], shares_NK[own] = row.soft.ids, row.soft.shares
        at += row.labelled
    return SoftTargets(ids_NK, shares_NK)
