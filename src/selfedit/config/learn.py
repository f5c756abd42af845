"""``selfedit learn``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from selfedit.config.edit import EditConfig, JudgeConfig, QuizConfig
from selfedit.config.inner import Frozen, Settings
from selfedit.config.names import DEFAULT_MODEL, Dtype, GraderName


class LearnConfig(Frozen):
    """Everything that decides what ``selfedit learn`` does; printed by ``--dry-run``, stored with the entry."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: Dtype = "auto"
    writer: Annotated[
        str, Field(description="run of selfedit train, or a policy's folder: it writes, the base learns; default: the base writes")
    ] = ""
    edits: Annotated[int, Field(ge=1, le=64, description="candidate self-edits")] = 4
    repeats: Annotated[int, Field(ge=1, le=16, description="training runs of each candidate, each with its own seed")] = 1
    keep: Annotated[
        Literal["", "bank", "stack"],
        Field(
            description="of a new memory. bank: adapters are kept apart, and a question goes to the one whose passage is like it, "
            "or to the base; stack: all of them answer together; default: the memory's own, of a new one bank"
        ),
    ] = ""
    replay: Annotated[
        float, Field(ge=0, lt=1, description="of a stack: share of earlier entries' lessons among them and the new ones")
    ] = 0.0
    budget: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="by how much the mean share right over earlier entries' exams may fall, or nothing is kept; 1: by anything",
        ),
    ] = 1.0
    quiz_split: Annotated[float, Field(ge=0.1, le=0.9, description="share of the quiz that chooses; the rest reports the gain")] = (
        0.6
    )
    seed: Annotated[int, Field(ge=0, lt=2**31, description="seed of everything that is random")] = 0
    slots: Annotated[int, Field(ge=0, le=256, description="adapters trained side by side in one process; 0: chosen by memory")] = 0
    compiled: Annotated[bool, Field(description="decoder layers through torch.compile; needs a C++ compiler on a CPU")] = False
    grader: GraderName = "recall"
    judge: JudgeConfig = JudgeConfig()
    quiz: QuizConfig = QuizConfig()
    edit: EditConfig = EditConfig()
    # What keeps the most of what the base knew, by docs/keeping.md; alpha stays what it is at rank 32.
    settings: Settings = Settings(rank=8, learning_rate=4e-3, null_space=0.01, dead_zone=1.5)

    @model_validator(mode="after")
    def _nothing_replayed_in_the_null_space(self) -> LearnConfig:
        if self.replay and self.settings.null_space:
            raise ValueError(
                "replay mixes in what null_space keeps out of the way of; give replay=0, or settings.null_space=0 and "
                "settings.dead_zone=0"
            )
        return self
