"""How self-edits, quizzes and recipes are written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfedit.config.inner import Frozen
from selfedit.config.names import DocumentForm, PlainSplit, Rendering, Style, Unit


class Sampling(Frozen):
    """How self-edits are written (paper: temperature 1.0, top-p 0.95)."""

    temperature: Annotated[float, Field(ge=0, le=5, description="0 is greedy")] = 0.4
    top_p: Annotated[float, Field(gt=0, le=1, description="nucleus mass")] = 0.95
    max_new_tokens: Annotated[
        int | None,
        Field(ge=1, le=8192, description="longest answer to a prompt, in tokens; default 80 a sentence, 512 a passage"),
    ] = None
    resamples: Annotated[int, Field(ge=0, le=10, description="how often a candidate that won't do is sampled again")] = 2
    again: Annotated[
        Literal["duplicates", "unreadable"],
        Field(description="what won't do: a duplicate among the candidates, or what isn't in the form that was asked for"),
    ] = "duplicates"


class Writing(Frozen):
    """How a domain's self-edits are written; each domain adds its own."""

    sampling: Sampling = Sampling()


class EditConfig(Writing):
    """What is written about a passage, and what it compiles to."""

    styles: Annotated[tuple[Style, ...], Field(min_length=1, description="prompt styles; candidates take them in turn (a mix)")] = (
        "details+self-qa",
    )
    unit: Annotated[Unit, Field(description="ask about the whole passage at once (the paper), or sentence by sentence")] = (
        "sentence"
    )
    passes: Annotated[int, Field(ge=1, le=16, description="how often each sentence is asked about, within one self-edit")] = 2
    shots: Annotated[int, Field(ge=0, le=2, description="worked examples in the prompt (the paper: 0)")] = 2
    form: Annotated[DocumentForm, Field(description="plain: title, newline, text (the paper); chat: lessons as turns")] = "chat"
    split: Annotated[PlainSplit, Field(description="plain form: a document a line, or whole self-edits")] = "lines"
    grounding: Annotated[
        float, Field(ge=0, le=1, description="chat form: share of a lesson's content words that must stand in the passage; 0: any")
    ] = 0.75
    limit_documents: Annotated[
        int | None,
        Field(
            ge=0,
            le=1000,
            description="most documents of one self-edit; 0: all; default: 30 in plain form (the paper's code), in chat form eight "
            "for each sentence of the passage, and 60 at least",
        ),
    ] = None
    held_out: Annotated[
        float, Field(ge=0, le=0.5, description="share of the passage's sentences that no lesson of the passage itself has")
    ] = 0.0


class RecipeConfig(Writing):
    """How a puzzle's recipe is written, what it may name, and how puzzles are shown and answered (paper section 4.2)."""

    sampling: Sampling = Sampling(temperature=1.0, top_p=1.0, again="unreadable")
    rendering: Annotated[Rendering, Field(description="how grids are written; python-list is the paper's")] = "digits"
    constrained: Annotated[
        bool,
        Field(description="recipes are held to the schema as they are written, with its grids of rates and epochs (the paper: no)"),
    ] = True
    extended: Annotated[
        bool, Field(description="recipes switch augmentations one by one and name rank, batch and items (the paper: groups only)")
    ] = False
    permutations: Annotated[
        int, Field(ge=0, le=50, description="copies of each item with other colours, and with the demonstrations in another order")
    ] = 1
    most_tokens: Annotated[
        int,
        Field(ge=1, description="tokens of a recipe's items, all epochs together; those beyond are left out (paper: any)"),
    ] = 25_000
    most_steps: Annotated[int, Field(ge=1, description="a recipe of more optimiser steps is invalid")] = 375
    orders: Annotated[int, Field(ge=1, le=8, description="orders of the demonstrations in which each test is answered")] = 2
    recolour: Annotated[bool, Field(description="each test is answered in permuted colours too, but for the plain view")] = False
    samples: Annotated[
        int, Field(ge=0, le=16, description="sampled answers to each view beside the greedy one (the paper: none)")
    ] = 0
    answer_temperature: Annotated[float, Field(gt=0, le=5, description="of the sampled answers")] = 0.7


class JudgeConfig(Frozen):
    """Where the grader ``judge`` sends its questions; the key is read from OPENAI_API_KEY."""

    url: str = "https://api.openai.com/v1"
    model: str = "gpt-4.1-2025-04-14"


class QuizConfig(Frozen):
    """How a model examines itself where nobody wrote questions (the paper names it as a way on, section 6)."""

    items: Annotated[int, Field(ge=4, le=64, description="questions wanted; no more are kept")] = 12
    least: Annotated[int, Field(ge=2, le=64, description="with fewer that passed there is no decision")] = 4
    passes: Annotated[int, Field(ge=1, le=16, description="questions asked for about each sentence, each time")] = 4
    retries: Annotated[int, Field(ge=0, le=8, description="how often more are asked for while fewer than wanted have passed")] = 2
    resamples: Annotated[int, Field(ge=1, le=16, description="answers sampled with the passage, or a part of it, in view")] = 4
    agreeing: Annotated[int, Field(ge=1, le=16, description="of which so many must be the answer")] = 3
    view: Annotated[
        int, Field(ge=64, le=2**20, description="tokens of the passage in view of who answers; a longer one is read part by part")
    ] = 512
    temperature: Annotated[float, Field(gt=0, le=5, description="of questions and of those answers")] = 0.5
    overlap: Annotated[
        float, Field(gt=0, le=1, description="a question is dropped if a lesson has such a share of its word trigrams")
    ] = 0.6
    most_bits: Annotated[
        float, Field(gt=0, le=16, description="a text of more bits a byte is one that the model can't read; no quiz is made of it")
    ] = 2.2
    url: Annotated[str, Field(description="OpenAI-compatible server whose model writes the quiz; default: the model itself")] = ""
    model: Annotated[str, Field(description="the model's name there")] = ""

    @model_validator(mode="after")
    def _consistent(self) -> QuizConfig:
        if self.agreeing > self.resamples:
            raise ValueError(f"agreeing {self.agreeing} of {self.resamples} resamples can't be; give more resamples")
        if self.least > self.items:
            raise ValueError(f"least {self.least} of {self.items} items can't be; give more items")
        if self.url and not self.model:
            raise ValueError("url without model: give quiz.model, the name of the model there")
        return self
