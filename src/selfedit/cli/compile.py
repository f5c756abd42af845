"""``selfedit compile``: what self-edits compile to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from selfedit.cli.common import err, write_json
from selfedit.config import DocumentForm, PlainSplit
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.errors import DataError, InvalidEditError


def compile_command(
    file: Annotated[Path, typer.Argument(help="Data set with self-edits, or a run's result file.")],
    form: Annotated[str, typer.Option(help="plain (the paper's documents) or chat (lessons as turns).")] = "plain",
    split: Annotated[str | None, typer.Option(help="lines or whole; default: the file's split_newlines, else lines.")] = None,
    limit_documents: Annotated[int, typer.Option(min=0, help="Most documents of a self-edit, the passage on top; 0: all.")] = 30,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write there; default: print.")] = None,
) -> None:
    """Shows the training documents of self-edits: [{title, completions: [{documents: [text]}]}], in the file's order.

    In chat form a document is the model's own turn; the request before it carries no loss and is not shown.
    """
    if form not in ("plain", "chat"):
        raise DataError(f"--form {form}: give plain or chat")
    if split not in (None, "lines", "whole"):
        raise DataError(f"--split {split}: give lines or whole")
    data = _read(file)
    items, newlines = (data.get("articles"), data.get("split_newlines", True)) if isinstance(data, dict) else (data, True)
    if not isinstance(items, list):
        raise DataError(f"{file}: neither a list of {{title, context, completions}} nor a result with articles")
    chosen = cast(PlainSplit, split or ("lines" if newlines else "whole"))
    rows = [
        _compiled(item, f"{file}, item {index + 1}", cast(DocumentForm, form), chosen, limit_documents)
        for index, item in enumerate(items)
    ]
    if json_file is not None:
        write_json(json_file, rows)
        err.print(f"{json_file}: {len(rows)} passages", highlight=False)
    else:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: can't be read ({error})") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: not valid JSON ({error.msg})") from error


def _compiled(item: Any, at: str, form: DocumentForm, split: PlainSplit, limit: int) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise DataError(f"{at}: not an object")
    for field in ("title", "context"):
        if not isinstance(item.get(field), str):
            raise DataError(f"{at}: field {field} is missing or not text")
    passage = Passage(item["title"], item["context"])
    completions = item.get("completions", [item["completion"]] if "completion" in item else None)
    if not isinstance(completions, list):
        raise DataError(f"{at}: field completions is missing or not a list")
    rows = []
    for number, completion in enumerate(completions):
        text = completion.get("text") if isinstance(completion, dict) else completion
        if not isinstance(text, str):
            raise DataError(f"{at}, completion {number + 1}: not text")
        rows.append({"documents": [document.text for document in _documents(passage, text, form, split, limit)]})
    return {"title": passage.title, "completions": rows}


def _documents(passage: Passage, text: str, form: Literal["plain", "chat"], split: PlainSplit, limit: int) -> tuple[Document, ...]:
    from selfedit.tasks.knowledge.documents import chat_documents, passage_document, plain_documents

    if form == "plain":
        return plain_documents(passage, text, split, limit)
    try:
        return chat_documents(passage, text, limit)
    except InvalidEditError:
        return (passage_document(passage),)
