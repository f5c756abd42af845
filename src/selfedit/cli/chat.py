"""``selfedit chat``: a conversation with a memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfedit.cli.common import err


def chat_command(
    memory: Annotated[Path, typer.Option(help="Folder of the memory.")] = Path("memory"),
    model: Annotated[str | None, typer.Option(help="The memory's base model under another name or path.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling.")] = 0,
) -> None:
    """Talks with the model of a memory; an empty line or Ctrl-D ends it.

    In a bank each turn goes to the adapter whose passage is most like what was said last, or to the base.
    """
    from selfedit import seeds
    from selfedit.edits import Message
    from selfedit.lm.batch import encode_prompt
    from selfedit.lm.generate import generate
    from selfedit.memory.compose import answering
    from selfedit.memory.ledger import Memory

    opened = Memory.open(memory)
    model_of = answering(opened, device, dtype, model)
    lm = model_of.lm
    err.print(f"{opened.base.name} with {len(opened.state.entries)} entries; an empty line ends the talk", highlight=False)
    turns: list[Message] = []
    # A model that takes no turns would go on with the next line of the user's.
    stop = None if lm.chat else (lambda text: "\n" in text.strip())
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        turns.append(Message("user", line))
        prompt = encode_prompt(lm, tuple(turns))
        while len(prompt) > lm.window - 256 and len(turns) > 2:
            turns = turns[2:]
            prompt = encode_prompt(lm, tuple(turns))
        with model_of.to(line):
            answer = generate(lm, [prompt], 256, temperature, 0.95, [seeds.derive(seed, "chat", len(turns))], stop=stop)[0]
        answer = answer if lm.chat else answer.strip().split("\n")[0].strip()
        typer.echo(answer)
        turns.append(Message("assistant", answer))
