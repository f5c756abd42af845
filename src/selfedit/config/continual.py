"""``selfedit continual``, and the ways of keeping."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from selfedit.config.edit import EditConfig, JudgeConfig
from selfedit.config.inner import Frozen, Settings, plain
from selfedit.config.names import DEFAULT_MODEL, THRESHOLD, Dtype, GraderName


class KeepConfig(Frozen):
    """Settings of the ways of keeping; each uses its own."""

    last_layers: Annotated[int, Field(ge=1, description="last-layers: so many are adapted")] = 10
    replay_share: Annotated[float, Field(ge=0, lt=1, description="replay: share of earlier lessons among old and new ones")] = 0.5
    every: Annotated[int, Field(ge=1, description="consolidate: after so many commits")] = 4
    sleep_epochs: Annotated[int, Field(ge=0, le=200, description="consolidate: passes over everything; 0: a lesson's")] = 0
    sleep_rate: Annotated[float, Field(ge=0, le=0.1, description="consolidate: learning rate; 0: a lesson's")] = 0.0
    sleep_share: Annotated[
        float, Field(ge=0, lt=1, description="consolidate: share of the base's own answers in it; 0: a lesson's")
    ] = 0.0
    exam_drop: Annotated[float, Field(ge=0, le=1, description="gate: share of anchors that may be lost")] = 0.07
    bits: Annotated[float, Field(ge=0, description="gate: bits a token that the anchors' golds may lose")] = 0.08
    divergence: Annotated[float, Field(ge=0, description="gate: bits a token of KL divergence at the old answers")] = 0.7
    distil_share: Annotated[
        float, Field(ge=0, lt=1, description="distil: share of the base's own answers, in the place of settings.rehearsal")
    ] = 0.5
    null_space: Annotated[float, Field(gt=0, le=1, description="null-space: its damping, in the place of settings.null_space")] = (
        0.01
    )
    null_space_rate: Annotated[float, Field(ge=0, le=0.1, description="null-space: learning rate; 0: settings.learning_rate")] = 0.0
    null_space_rank: Annotated[int, Field(ge=0, le=512, description="null-space: rank, alpha as it is; 0: settings.rank")] = 0
    dead_zone: Annotated[float, Field(ge=0, le=100, description="null-space: in the place of settings.dead_zone")] = 1.5
    retention_weight: Annotated[float, Field(ge=0, description="retention: weight of what earlier passages lose")] = 1.0
    remembered: Annotated[int, Field(ge=1, description="retention: earlier passages that are asked")] = 4
    threshold: Annotated[float, Field(ge=-1, le=1, description="bank: likeness below which the base answers")] = THRESHOLD


class ContinualConfig(Frozen):
    """Everything that decides what ``selfedit continual`` does (paper section 5).

    The paper: 64 sequences of 8 passages, ``all-layers``, self-edits by the policy after two rounds.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: Dtype = "auto"
    data: Annotated[tuple[str, ...], Field(min_length=1, description="data sets, put together")] = ("almanac",)
    split: str = "test"
    methods: Annotated[tuple[str, ...], Field(min_length=1, description="ways of keeping; several at once joined by +")] = (
        "all-layers",
        "merge",
        "replay",
        "consolidate",
        "retrieve",
    )
    sequences: Annotated[int, Field(ge=1, description="sequences, each of other passages")] = 4
    passages: Annotated[int, Field(ge=1, description="passages a sequence")] = 8
    related: Annotated[float, Field(ge=0, le=1, description="share of sequences with two passages of one title")] = 0.5
    without: Annotated[str, Field(description="a run of selfedit continual, none of whose passages are drawn")] = ""
    exam_every: Annotated[
        int, Field(ge=1, description="all passages so far are examined after every so many commits; the newest after each")
    ] = 1
    locality: Annotated[int, Field(ge=0, le=1000, description="questions about passages of no sequence, where some are left")] = 20
    edits: Annotated[int, Field(ge=1, le=16, description="self-edits a passage, for methods that choose")] = 1
    writer: Annotated[str, Field(description="run of selfedit train, or a policy's folder; default: the base writes")] = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    grader: GraderName = "recall"
    judge: JudgeConfig = JudgeConfig()
    keep: KeepConfig = KeepConfig()
    edit: EditConfig = EditConfig()
    settings: Settings = Settings()

    @field_validator("settings")
    @classmethod
    def _plain_settings(cls, value: Settings) -> Settings:
        return plain(value, "ways of keeping train without the passage in view")

    @field_validator("methods")
    @classmethod
    def _different_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a method stands twice")
        return value

    @model_validator(mode="after")
    def _ways_differ(self) -> ContinualConfig:
        own = {"merge": self.settings.layers, "last-layers": f"last:{self.keep.last_layers}", "all-layers": "all"}
        named = [own[method] for method in self.methods if method in own]
        if len(set(named)) < len(named):
            raise ValueError(
                f"merge (settings.layers, {self.settings.layers}), last-layers (keep.last_layers, {self.keep.last_layers}) and "
                "all-layers must differ; give --set keep.last_layers=5, or one of them"
            )
        return self

    @model_validator(mode="after")
    def _something_to_choose(self) -> ContinualConfig:
        if self.edits < 2 and any("retention" in method.split("+") for method in self.methods):
            raise ValueError("retention chooses among self-edits, and edits is 1; give --set edits=3")
        return self

    @model_validator(mode="after")
    def _settings_of_the_methods(self) -> ContinualConfig:
        parts = {part for method in self.methods for part in method.split("+")}
        if self.settings.null_space and {"orthogonal", "replay"} & parts:
            raise ValueError(
                "orthogonal trains A itself, and replay mixes in what null_space keeps out of the way of; give "
                "settings.null_space=0, and the method null-space beside them"
            )
        if self.settings.weight_decay and "null-space" in parts:
            raise ValueError(f"weight_decay is {self.settings.weight_decay}, but null-space holds A as it is; give one of them up")
        return self
