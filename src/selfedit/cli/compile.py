"""``selfedit compile``: what self-edits compile to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from selfedit.cli.common import err
from selfedit.config import DocumentForm, PlainSplit
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.errors import DataError, InvalidEditError
from selfedit.runs import write_json


def compile_command(
    file: Annotated[Path, typer.Argument(help="Data set with self-edits, or a run's result file.")],
    form: Annotated[str, typer.Option(help="plain (the paper's documents) or chat (lessons as turns).")] = "plain",
    split: Annotated[str | None, typer.Option(help="lines or whole; default: the file's split_newlines, else lines.")] = None,
    grounding: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Chat form: share of a lesson's content words that must stand in the passage; learn: 0.75."
        ),
    ] = 0.0,
    limit_documents: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Most documents of a self-edit, the passage on top; 0: all; default: 30 in plain form, in chat form eight for "
            "each sentence and 60 at least.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write there; default: print.")] = None,
) -> None:
    """Shows the training documents of self-edits: [{title, completions: [{documents: [text]}]}], in the file's order.

    In chat form a document is the model's own turn; the request before it carries no loss and stands beside it in requests. Where
    the turn alone says nothing, as the answer to a question does, the request is shown in the document too.
    """
    if form not in ("plain", "chat"):
        raise DataError(f"--form {form}: give plain or chat")
    if split not in (None, "lines", "whole"):
        raise DataError(f"--split {split}: give lines or whole")
    if form == "chat" and split is not None:
        raise DataError("--split is of the plain form; in chat form a self-edit's lines are lessons anyway")
    if form == "plain" and grounding:
        raise DataError("--grounding is of the chat form; the plain one takes lines as they are")
    from selfedit.tasks.knowledge.data import load_edits

    written, newlines = load_edits(file)
    chosen = cast(PlainSplit, split or ("lines" if newlines else "whole"))
    how = (cast(DocumentForm, form), chosen, limit_documents, grounding)
    rows = [
        {
            "title": passage.title,
            "completions": [_shown(_documents(passage, text, *how)) for text in texts],
        }
        for passage, texts in written
    ]
    if json_file is not None:
        write_json(json_file, rows)
        err.print(f"{json_file}: {len(rows)} passages", highlight=False)
    else:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))


def _shown(documents: tuple[Document, ...]) -> dict[str, list[str]]:
    if all(document.request is None for document in documents):
        return {"documents": [document.text for document in documents]}
    from selfedit.tasks.knowledge.prompts import PASSAGE_REQUEST, STANDING_REQUESTS

    standing = tuple(request.split("{title}")[0] for request in (*STANDING_REQUESTS, PASSAGE_REQUEST))
    requests = [document.request[-1].content if document.request else "" for document in documents]
    shown = [
        document.text if request.startswith(standing) else f"{request}\n{document.text}"
        for request, document in zip(requests, documents, strict=True)
    ]
    return {"documents": shown, "requests": requests}


def _documents(
    passage: Passage, text: str, form: Literal["plain", "chat"], split: PlainSplit, limit: int | None, grounding: float
) -> tuple[Document, ...]:
    from selfedit.tasks.knowledge.documents import chat_documents, passage_document, plain_documents

    if form == "plain":
        return plain_documents(passage, text, split, limit)
    try:
        return chat_documents(passage, text, limit, grounding=grounding)
    except InvalidEditError as error:
        err.print(
            f"{passage.title}: a self-edit is invalid ({error}); learn would not try it",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return (passage_document(passage),)
