"""The inner loop: how one adapter is trained on one self-edit."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from selfedit.config.names import Schedule


class Frozen(BaseModel):
    """A config section: unknown keys are errors, values can't change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


NO_VIEW_OF_PUZZLES = "a puzzle has no passage to be in view"


class Settings(Frozen):
    """How one adapter is trained on one plan: the inner loop's hyper-parameters (paper section 4.1, appendix B).

    Departures: (1) the paper's inner adapter sits on q_proj and v_proj (PEFT's default for Qwen2; ``targets="qv"``); (2) a batch
    has no padding to a fixed length and no loss on padding, where the reference code pads to 2048 tokens and trains on them.
    The defaults were chosen on dev data with the embedded model: ``docs/lab-book.md``.
    """

    rank: Annotated[int, Field(ge=1, le=512, description="LoRA rank r")] = 32
    alpha: Annotated[float, Field(gt=0, le=4096, description="LoRA alpha; the update is scaled by alpha / rank")] = 64.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout on the adapter's input")] = 0.0
    targets: Annotated[
        str, Field(description="all-linear, qv (the paper's), or module names joined by commas, such as q_proj,down_proj")
    ] = "all-linear"
    layers: Annotated[str, Field(description="all, or last:N for the last N decoder layers (all, if there are fewer)")] = "last:15"
    epochs: Annotated[int, Field(ge=1, le=200, description="passes over the documents")] = 8
    learning_rate: Annotated[float, Field(gt=0, le=0.1, description="AdamW's peak learning rate")] = 2e-3
    schedule: Annotated[Schedule, Field(description="learning rate over the steps, down to 0 for linear and cosine")] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps with a rising learning rate")] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=256, description="documents a forward pass")] = 1
    accumulation: Annotated[int, Field(ge=1, le=256, description="forward passes an optimiser step")] = 1
    clip: Annotated[float, Field(gt=0, le=1e6, description="largest norm of the gradient")] = 1.0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="AdamW's decoupled weight decay")] = 0.0
    distil: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of the loss that is the divergence from the same model with the passage in view; 0: plain SFT",
        ),
    ] = 0.0
    rehearsal: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of all documents that are the base's own answers to general questions, which keep them",
        ),
    ] = 0.0
    null_space: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="A reads what a lesson has and general text hasn't, and is not trained; the damping of what general text "
            "has (0.01); 0: an ordinary LoRA",
        ),
    ] = 0.0
    dead_zone: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="with null_space: where A reads less than so many times what it reads of general text on average, the "
            "adapter says nothing; 0: always something",
        ),
    ] = 0.0

    @model_validator(mode="after")
    def _directions_as_given(self) -> Settings:
        if self.dead_zone and not self.null_space:
            raise ValueError(f"dead_zone is {self.dead_zone}, but A is trained; give dead_zone=0 too, or null_space=0.01")
        if self.null_space and self.weight_decay:
            raise ValueError(f"weight_decay is {self.weight_decay}, but null_space holds A as it is; give one of them as 0")
        return self

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, value: str) -> str:
        if value != "all-linear" and not re.fullmatch(r"[A-Za-z0-9_]+(,[A-Za-z0-9_]+)*", value):
            raise ValueError(f"targets {value!r}: give all-linear, qv, or module names joined by commas")
        return value

    @field_validator("layers")
    @classmethod
    def _known_layers(cls, value: str) -> str:
        if value != "all" and not re.fullmatch(r"last:[1-9][0-9]*", value):
            raise ValueError(f"layers {value!r}: give all or last:N with N of at least 1")
        return value


def plain(settings: Settings, reason: str) -> Settings:
    """The settings of a training in which no passage can be in view. Raises ValueError if they ask for distillation."""
    if settings.distil:
        raise ValueError(f"distil is {settings.distil}, but {reason}; give 0")
    return settings


def no_lesson(settings: Settings, reason: str) -> Settings:
    """The settings of a training that is no lesson. Raises ValueError if they ask for what spares general knowledge."""
    for name in ("rehearsal", "null_space"):
        if value := getattr(settings, name):
            raise ValueError(f"{name} is {value}, but {reason}; give 0")
    return settings
