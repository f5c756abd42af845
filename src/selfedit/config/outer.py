"""``selfedit train``: the outer loop, whatever the domain."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from selfedit.config.edit import EditConfig, JudgeConfig, QuizConfig, RecipeConfig, Writing
from selfedit.config.inner import NO_VIEW_OF_PUZZLES, Frozen, Settings, no_lesson, plain
from selfedit.config.names import (
    DEFAULT_MODEL,
    LABEL_FREE,
    TEXT_REWARDS,
    CreditName,
    Dtype,
    GraderName,
    RewardName,
    ScreenName,
    SelectionRule,
)


class OuterConfig(Frozen):
    """What decides the outer loop, whatever the domain (paper algorithm 1).

    ``contexts`` are passages or puzzles.
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: Dtype = "auto"
    data: Annotated[tuple[str, ...], Field(min_length=1, description="data sets, put together")] = ("almanac",)
    split: str = "train"
    rounds: Annotated[int, Field(ge=1, le=100, description="rounds of ReST-EM, each with new contexts")] = 2
    contexts: Annotated[int, Field(ge=1, description="passages or puzzles a round")] = 12
    edits: Annotated[int, Field(ge=1, le=64, description="self-edits a context")] = 5
    repeats: Annotated[int, Field(ge=1, le=16, description="training runs of each self-edit, each with its own seed")] = 1
    noise_contexts: Annotated[
        int, Field(ge=0, description="contexts a round whose edits are tried at least twice, to estimate the reward's noise")
    ] = 4
    halving: Annotated[
        bool, Field(description="successive halving: of each context's self-edits only the better half gets the next repeat")
    ] = False
    algorithm: Annotated[
        Literal["rest-em", "dpo"], Field(description="SFT on the selected, or preference for a context's best over its worst")
    ] = "rest-em"
    dpo_beta: Annotated[float, Field(gt=0, le=10, description="weight of DPO's implicit KL penalty")] = 0.1
    rule: Annotated[SelectionRule, Field(description="which self-edits the policy is trained on")] = "best-positive"
    fraction: Annotated[float, Field(gt=0, le=1, description="share of all edits that top-fraction takes")] = 0.2
    credit: Annotated[
        CreditName,
        Field(description="train on selected self-edits as they are, or on rows put together of those of their lines that taught"),
    ] = "edit"
    reward: RewardName = "accuracy"
    reward_weight: Annotated[float, Field(ge=0, le=1, description="share of likelihood in the reward mixed")] = 0.5
    screen: Annotated[
        ScreenName,
        Field(description="two stages: only the self-edits that look best by it are trained; ridge learns from those that were"),
    ] = ""
    screened: Annotated[int, Field(ge=1, le=64, description="self-edits of a context that a screen lets through")] = 3
    least_correlation: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="a screen that ranks a round's first contexts worse than that is put aside; 0 lets half of those pass that "
            "know nothing",
        ),
    ] = 0.15
    student: Annotated[Literal["policy", "base"], Field(description="whose weights the inner adapter is trained on")] = "policy"
    merge: Annotated[bool, Field(description="write the last policy as a merged model too")] = False
    control_of: Annotated[str, Field(description="a run whose contexts and numbers of rows the rule random takes")] = ""
    seed: Annotated[int, Field(ge=0, lt=2**31, description="seed of everything that is random")] = 0
    slots: Annotated[int, Field(ge=0, le=256, description="adapters trained side by side in one process; 0: chosen by memory")] = 0
    compiled: Annotated[bool, Field(description="decoder layers through torch.compile; needs a C++ compiler on a CPU")] = False
    edit: Writing = Writing()
    settings: Settings = Settings()
    outer: Settings = Settings(layers="all", epochs=2, learning_rate=3e-4, batch_size=8)

    @field_validator("outer")
    @classmethod
    def _plain_outer(cls, value: Settings) -> Settings:
        no_lesson(value, "a policy is trained on its own writing alone")
        return plain(value, "the policy learns to write, with the passage in every prompt")

    @model_validator(mode="after")
    def _something_to_halve(self) -> OuterConfig:
        if self.halving and self.repeats < 2:
            raise ValueError("halving lets the better half have further repeats; give repeats of 2 or more")
        return self

    @model_validator(mode="after")
    def _something_to_prefer(self) -> OuterConfig:
        if self.algorithm != "dpo":
            return self
        if self.rule == "random":
            raise ValueError("a control at random has no best and no worst self-edit; give the algorithm rest-em")
        if self.outer.dropout:
            raise ValueError("dpo is trained without dropout; give outer.dropout=0")
        return self


class TrainConfig(OuterConfig):
    """Everything that decides what ``selfedit train knowledge`` does (paper section 4.1).

    The paper: 2 rounds, 50 passages, 5 edits, 3 repeats, rule ``best``, reward ``accuracy``, student ``policy``; outer LoRA of
    rank 64, alpha 128, 2 epochs, 3e-4, batch 10 (``recipes/paper``).
    """

    grader: GraderName = "recall"
    judge: JudgeConfig = JudgeConfig()
    quiz: QuizConfig = QuizConfig()
    edit: EditConfig = EditConfig()

    @model_validator(mode="after")
    def _rewards_agree(self) -> TrainConfig:
        if self.reward == "sentences" and not self.edit.held_out:
            raise ValueError("reward sentences needs sentences that are held out; give edit.held_out=0.25")
        if self.reward in TEXT_REWARDS and self.credit == "lines":
            raise ValueError(f"credit lines goes by questions' golds, and the reward {self.reward} asks none; give credit edit")
        if self.algorithm == "dpo" and self.credit == "lines":
            raise ValueError("dpo prefers whole self-edits to others; give credit edit")
        if self.algorithm == "dpo" and len(self.edit.styles) > 1:
            raise ValueError("dpo compares what was written to the same prompts; give edit.styles one style")
        if self.rule == "random" and self.credit == "lines" and not self.control_of:
            raise ValueError("the rule random tries nothing, so no line is known to have taught; give --control-of or credit edit")
        if self.screen and self.halving:
            raise ValueError("halving and a screen are two ways to try fewer; give one of them")
        return self

    @model_validator(mode="after")
    def _something_to_screen(self) -> TrainConfig:
        if not self.screen:
            return self
        if not self.noise_contexts:
            raise ValueError("a screen is trusted by what a round's first contexts show, and noise_contexts is 0; give 4 of them")
        if self.contexts <= self.noise_contexts:
            raise ValueError(
                f"all {self.contexts} contexts of a round are tried whole (noise_contexts is {self.noise_contexts}), so that none "
                "is left to be screened; give more contexts, or fewer noise_contexts"
            )
        if self.edits <= self.screened:
            raise ValueError(
                f"screened is {self.screened}, and only {self.edits} edits are written; give more of them, or fewer screened"
            )
        return self


class ArcTrainConfig(OuterConfig):
    """Everything that decides what ``selfedit train arc`` does (paper section 4.2).

    The paper: one round, 15 recipes a puzzle, SFT on every recipe that solved its puzzle; outer LoRA of rank 16, alpha 16, 8
    epochs, 5e-5 (``recipes/paper``). A puzzle's reward is 1 if all of its tests are solved, less what the baseline has.
    """

    data: Annotated[tuple[str, ...], Field(min_length=1, description="arc-1, arc-2, files or folders")] = ("arc-1",)
    split: str = "paper-train-run"
    rounds: Annotated[int, Field(ge=1, le=100, description="rounds of ReST-EM, each with new puzzles")] = 1
    contexts: Annotated[int, Field(ge=1, description="puzzles a round")] = 8
    edits: Annotated[int, Field(ge=1, le=64, description="recipes a puzzle; equal ones are tried once and counted often")] = 8
    noise_contexts: Annotated[
        int, Field(ge=0, description="puzzles a round whose recipes are tried at least twice, to estimate the reward's noise")
    ] = 2
    rule: Annotated[SelectionRule, Field(description="which recipes the policy is trained on; the paper: all that solved")] = (
        "positive"
    )
    edit: RecipeConfig = RecipeConfig()
    settings: Settings = Settings(layers="all", batch_size=2)
    outer: Settings = Settings(layers="all", rank=16, alpha=16, epochs=8, learning_rate=1e-3, batch_size=4)

    @model_validator(mode="after")
    def _labelled(self) -> ArcTrainConfig:
        if self.reward in LABEL_FREE:
            raise ValueError(f"reward {self.reward} is taken on a passage; a puzzle has accuracy, likelihood and mixed")
        if self.screen:
            raise ValueError(f"screen {self.screen} looks at notes about a passage; leave it out for puzzles")
        if self.credit == "lines":
            raise ValueError("credit lines goes by a passage's lines; a recipe is one piece, give credit edit")
        return self

    @field_validator("settings")
    @classmethod
    def _plain_settings(cls, value: Settings) -> Settings:
        return plain(no_lesson(value, "a puzzle's adapter answers that puzzle alone"), NO_VIEW_OF_PUZZLES)
