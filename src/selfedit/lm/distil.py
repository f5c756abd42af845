"""Context distillation: a model with the passage in view teaches the same model without it, token by token.

Prompt distillation (arXiv 2412.14964), as a share of the loss beside plain SFT. Departures: (1) Nothing is sampled for it: the
tokens are the documents' own, written with the passage in view. SDFT (arXiv 2601.19897) takes the student's. (2) Of the teacher's
distributions the likeliest tokens are kept, renormalised. They are made once, before the training: the teacher stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from selfedit.edits import Document, Prompt
from selfedit.lm.adapter import install
from selfedit.lm.batch import Row, SoftTargets, encode_document, encode_prompt
from selfedit.lm.flat import Prefixes, parts_of, reading
from selfedit.lm.load import Identity, LanguageModel
from selfedit.lm.stack import document_attention
from selfedit.lm.train import head_logits

LIKELIEST = 50
# The teacher's logits are made for so many positions at a time.
CHUNK = 256


def taught(lm: LanguageModel, documents: Sequence[Document], share: float) -> list[Row]:
    """Documents as rows with soft targets; the teacher is what stands (a memory, a policy), without an adapter in training.

    The target of a labelled token is the token itself with weight ``1 - share`` and the teacher's 50 likeliest ones with weight
    ``share``. The cross-entropy to it is ``1 - share`` times plain SFT's plus ``share`` times KL(teacher || student), but for a
    constant. A document keeps plain SFT's targets if it has no view, if it doesn't fit the window together with it (so of a passage
    longer than the window no document is taught), or if its request carries loss too.

    Args:
        lm: the model; an active adapter is taken off.
        documents: each with its own view.
        share: ``Settings.distil``; at 0 no teacher is asked.

    Raises:
        DataError: a request alone fills the window.
    """
    rows = [encode_document(lm, document) for document in documents]
    if not share:
        return rows
    views = {at: view for at, document in enumerate(documents) if (view := seen_by_teacher(lm, document, rows[at])) is not None}
    for at, teacher in zip(views, likeliest_targets(lm, list(views.values())), strict=True):
        own_L1 = torch.tensor(rows[at].ids[-rows[at].labelled :], device=lm.device)[:, None]
        shares_LK = torch.cat([torch.full_like(teacher.shares[:, :1], 1.0 - share), share * teacher.shares], dim=1)
        rows[at] = replace(rows[at], soft=SoftTargets(torch.cat([own_L1, teacher.ids], dim=1), shares_LK))
    return rows


def seen_by_teacher(known: Identity, document: Document, row: Row) -> Row | None:
    """A document's row with its view before it and the same labelled tokens; None where there is no teacher.

    The view stands where an exam with the passage in the prompt has it, at the beginning of the user's last message; before a plain
    document's text. The labelled tokens are taken over as ids: tokenised behind other text they might be others.
    """
    if not document.view or document.whole or row.labelled < 1:
        return None
    head = f"{document.view}\n\n"
    if document.request is None:
        begins = int(row.ids[0] == known.tokenizer.bos_token_id)
        ids = (*row.ids[:begins], *known.tokenizer(head, add_special_tokens=False)["input_ids"], *row.ids[begins:])
    else:
        ids = (*encode_prompt(known, _headed(document.request, head)), *row.ids[row.unlabelled :])
    return Row(ids, len(ids) - row.labelled) if len(ids) <= known.window else None


def _headed(request: Prompt, head: str) -> Prompt:
    """The turns with a text at the beginning of the user's last one."""
    last = max((at for at, message in enumerate(request) if message.role == "user"), default=len(request) - 1)
    message = request[last]._replace(content=f"{head}{request[last].content}")
    return (*request[:last], message, *request[last + 1 :])


@torch.no_grad()
def likeliest_targets(lm: LanguageModel, rows: Sequence[Row]) -> list[SoftTargets]:
    """For each row the likeliest tokens in the place of each labelled one, by what stands; an active adapter is taken off."""
    install(lm, None)
    prefixes = Prefixes(lm, 0)
    found: list[SoftTargets] = []
    with document_attention(lm):
        for part in parts_of([(0, row) for row in rows], laid_out=True):
            counts = [row.labelled for _, row in part]
            with reading(lm, prefixes, part) as (states_Nd, _):
                tops = [_top(head_logits(lm, states_Cd)) for states_Cd in torch.split(states_Nd, CHUNK)]
            ids_NK, shares_NK = (torch.cat(pieces) for pieces in zip(*tops, strict=True))
            pieces = zip(torch.split(ids_NK, counts), torch.split(shares_NK, counts), strict=True)
            found += [SoftTargets(ids_LK, shares_LK) for ids_LK, shares_LK in pieces]
    return found


def _top(logits_CV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of the largest logits and their probabilities among themselves, (C, K)."""
    largest, ids_CK = logits_CV.topk(min(LIKELIEST, logits_CV.shape[-1]))
    return ids_CK, largest.softmax(-1)
