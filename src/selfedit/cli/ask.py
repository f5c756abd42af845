"""``selfedit ask``: one question to a memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfedit.cli.common import err


def ask_command(
    question: Annotated[str, typer.Argument(help="The question.")],
    memory: Annotated[Path, typer.Option(help="Folder of the memory.")] = Path("memory"),
    title: Annotated[str | None, typer.Option(help="Put a topic before the question, as the exam does.")] = None,
    model: Annotated[str | None, typer.Option(help="The memory's base model under another name or path.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Answers a question from what the memory has learnt, without any passage in front of it.

    In a bank a question that is like none of its passages goes to the base; a title counts there too.
    """
    from selfedit.lm.batch import encode_prompt
    from selfedit.lm.generate import generate
    from selfedit.memory.compose import answering
    from selfedit.memory.ledger import Memory
    from selfedit.tasks.knowledge.prompts import exam_prompt

    model_of = answering(Memory.open(memory), device, dtype, model)
    lm = model_of.lm
    prompt = encode_prompt(lm, exam_prompt(question, title, lm.chat))
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    with model_of.to(f"{title} {question}" if title else question) as who:
        if who:
            err.print(f"asked of {who}", highlight=False, markup=False)
        typer.echo(generate(lm, [prompt], 64, stop=stop)[0])
