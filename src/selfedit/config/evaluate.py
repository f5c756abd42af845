"""``selfedit eval`` and ``selfedit bench rewards``."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from selfedit.config.edit import EditConfig, JudgeConfig, QuizConfig, RecipeConfig
from selfedit.config.inner import NO_VIEW_OF_PUZZLES, Frozen, Settings, no_lesson, plain
from selfedit.config.names import ARC_METHODS, DEFAULT_MODEL, METHODS, WRITTEN_METHODS, Dtype, GraderName, RewardName, Screen


class CorpusConfig(Frozen):
    """Many passages at once (paper section 4.1, continued pre-training): one adapter, or all weights, on everything together."""

    full: Annotated[bool, Field(description="all weights are trained, no adapter (the paper's version 2)")] = False
    variants: Annotated[
        tuple[dict[str, float | int | str], ...],
        Field(description="settings that differ, each a row of its own, none selected: [{learning_rate: 0.001, epochs: 3}]"),
    ] = ()

    @field_validator("variants")
    @classmethod
    def _known_variants(cls, value: tuple[dict[str, float | int | str], ...]) -> tuple[dict[str, float | int | str], ...]:
        return tuple(Settings.model_validate(variant).model_dump(include=set(variant)) for variant in value)

    @model_validator(mode="after")
    def _no_adapter_in_full(self) -> CorpusConfig:
        adapters = {"rank", "alpha", "targets", "layers", "dropout", "null_space", "dead_zone"}
        named = sorted({key for variant in self.variants for key in variant} & adapters)
        if self.full and named:
            raise ValueError(f"full trains all weights, so that variants of {', '.join(named)} would be equal rows; leave them out")
        return self


class EvalConfig(Frozen):
    """Everything that decides the table of ``selfedit eval knowledge``."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: Dtype = "auto"
    data: str = "almanac"
    split: str = "test"
    setting: Annotated[Literal["single", "corpus"], Field(description="an adapter for each passage, or one for all")] = "single"
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("none", "passage", "passage-matched", "self", "context")
    limit: Annotated[int, Field(ge=0, description="first passages only; 0: all")] = 0
    edits: Annotated[int, Field(ge=1, le=16, description="self-edits a passage; averaged, not selected; in a corpus all used")] = 2
    writer: Annotated[str, Field(description="run of selfedit train, or a policy's folder: for seal* and policy-*")] = ""
    external: Annotated[str, Field(description="file with self-edits, or URL of an OpenAI-compatible server: for external")] = ""
    external_model: Annotated[str, Field(description="the model's name at that server")] = "gpt-4.1-2025-04-14"
    locality: Annotated[int, Field(ge=0, le=100, description="questions about other passages asked of each trial; 0: none")] = 5
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    slots: Annotated[int, Field(ge=0, le=256, description="adapters trained side by side in one process; 0: chosen by memory")] = 0
    compiled: Annotated[bool, Field(description="decoder layers through torch.compile; needs a C++ compiler on a CPU")] = False
    grader: GraderName = "recall"
    judge: JudgeConfig = JudgeConfig()
    edit: EditConfig = EditConfig()
    settings: Settings = Settings()
    corpus: CorpusConfig = CorpusConfig()

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for method in value:
            name, colon, style = method.partition(":")
            if name not in METHODS or (colon and (name not in WRITTEN_METHODS or not style)):
                raise ValueError(
                    f"method {method!r}: give {', '.join(METHODS)}; {', '.join(WRITTEN_METHODS)} take a style, self:rewrite"
                )
        if len(set(value)) < len(value):
            raise ValueError("a method stands twice")
        return value

    @model_validator(mode="after")
    def _corpus_settings_count(self) -> EvalConfig:
        if self.setting == "single" and (self.corpus.full or self.corpus.variants):
            raise ValueError("corpus.full and corpus.variants are for many passages at once; give --setting corpus")
        for variant in self.corpus.variants or ({},):
            settings = Settings.model_validate(self.settings.model_dump() | variant)
            if self.corpus.full and settings.null_space:
                raise ValueError("null_space says where an adapter reads, and corpus.full trains all weights; give null_space=0")
        return self


class ArcEvalConfig(Frozen):
    """Everything that decides the table of ``selfedit eval arc``."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: Dtype = "auto"
    data: Annotated[str, Field(description="arc-1, arc-2, a file or a folder")] = "arc-1"
    split: str = "paper-eval-run"
    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("icl", "random", "ttt", "oracle")
    limit: Annotated[int, Field(ge=0, description="first puzzles only; 0: all")] = 0
    edits: Annotated[int, Field(ge=1, le=64, description="recipes a puzzle of each method that writes or draws; averaged")] = 5
    trainings: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="runs of one recipe, each with its own seed: equal recipes share them, the fixed ones have all",
        ),
    ] = 1
    writer: Annotated[str, Field(description="run of selfedit train arc, or a policy's folder: for seal and seal-writer")] = ""
    oracle: Annotated[
        str | dict[str, str],
        Field(
            description="the recipe of the method oracle, as JSON; or such recipes by a puzzle's id, 'others' for those not named; "
            "default: the hand-made one"
        ),
    ] = ""
    fixed_of: Annotated[str, Field(description="run whose most successful recipe is best-fixed; default: the writer's")] = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    slots: Annotated[int, Field(ge=0, le=256, description="adapters trained side by side in one process; 0: chosen by memory")] = 0
    compiled: Annotated[bool, Field(description="decoder layers through torch.compile; needs a C++ compiler on a CPU")] = False
    edit: RecipeConfig = RecipeConfig()
    settings: Settings = Settings(layers="all", batch_size=2)

    @field_validator("settings")
    @classmethod
    def _plain_settings(cls, value: Settings) -> Settings:
        return plain(no_lesson(value, "a puzzle's adapter answers that puzzle alone"), NO_VIEW_OF_PUZZLES)

    @field_validator("oracle", mode="before")
    @classmethod
    def _recipes_as_text(cls, value: Any) -> Any:
        """Recipes may stand in a YAML file, or behind ``--set``, as what they are and not as a string."""
        if not isinstance(value, dict):
            return value
        if "data_generation" in value:
            return json.dumps(value)
        return {name: json.dumps(recipe) if isinstance(recipe, dict) else recipe for name, recipe in value.items()}

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for method in value:
            if method not in ARC_METHODS:
                raise ValueError(f"method {method!r}: give {', '.join(ARC_METHODS)}")
        if len(set(value)) < len(value):
            raise ValueError("a method stands twice")
        return value


class Named(Frozen):
    """What is named before anything is measured: the best of all the others is the best of many."""

    screen: Screen = "in-context"
    screened: Annotated[int, Field(ge=0, description="self-edits that it lets through; 0: all that may be")] = 0
    by: Annotated[Literal["accuracy", "likelihood"], Field(description="labelled reward that takes the best of those")] = (
        "likelihood"
    )
    label_free: Annotated[RewardName, Field(description="reward in the place of labelled ones")] = "self-quiz-likelihood"


class RewardBenchConfig(Frozen):
    """What decides the rows of ``selfedit bench rewards``."""

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: Dtype = "auto"
    data: Annotated[tuple[str, ...], Field(min_length=1, description="data sets with questions, put together")] = ("almanac",)
    split: str = "dev"
    passages: Annotated[int, Field(ge=2, description="passages with 4 questions or more; the first ones")] = 16
    edits: Annotated[int, Field(ge=2, le=64, description="self-edits a passage")] = 8
    repeats: Annotated[int, Field(ge=2, le=16, description="seeds of training of each")] = 2
    screened: Annotated[int, Field(ge=1, le=64, description="self-edits that a screen lets through")] = 2
    named: Named = Named()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    slots: Annotated[int, Field(ge=0, le=256, description="adapters trained side by side in one process; 0: chosen by memory")] = 0
    quiz: QuizConfig = QuizConfig()
    edit: EditConfig = EditConfig(held_out=0.25)
    settings: Settings = Settings()

    @model_validator(mode="after")
    def _named_is_measured(self) -> RewardBenchConfig:
        if self.named.screened > self.screened:
            raise ValueError(
                f"named.screened is {self.named.screened}, and at most {self.screened} are screened; give a larger --screened"
            )
        return self
