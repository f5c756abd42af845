"""Settings that users choose, validated and bounded. Nothing here imports torch (a test checks it)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

DEFAULT_MODEL = "builtin:smollm2-135m"

Style = str
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["linear", "cosine", "constant"]
DocumentForm = Literal["plain", "chat"]
GraderName = Literal["recall", "em", "f1", "judge"]
Unit = Literal["passage", "sentence"]
PlainSplit = Literal["lines", "whole"]
RewardName = Literal["accuracy", "likelihood", "mixed"]
SelectionRule = Literal["best", "positive", "best-positive", "top-fraction", "random"]
METHODS = (
    "none",
    "passage",
    "passage-matched",
    "self",
    "external",
    "seal-writer",
    "policy-none",
    "policy-passage",
    "seal",
    "context",
)
# Methods in which something is written; each may name its style: self:rewrite.
WRITTEN_METHODS = ("self", "external", "seal-writer", "seal")


class Frozen(BaseModel):
    """A config section: unknown keys are errors, values can't change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    layers: Annotated[str, Field(description="all, or last:N for the last N decoder layers (all, if there are fewer)")] = "last:10"
    epochs: Annotated[int, Field(ge=1, le=200, description="passes over the documents")] = 8
    learning_rate: Annotated[float, Field(gt=0, le=0.1, description="AdamW's peak learning rate")] = 2e-3
    schedule: Annotated[Schedule, Field(description="learning rate over the steps, down to 0 for linear and cosine")] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1, description="share of the steps with a rising learning rate")] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=256, description="documents a forward pass")] = 1
    accumulation: Annotated[int, Field(ge=1, le=256, description="forward passes an optimiser step")] = 1
    clip: Annotated[float, Field(gt=0, le=1e6, description="largest norm of the gradient")] = 1.0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="AdamW's decoupled weight decay")] = 0.0

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


class Sampling(Frozen):
    """How self-edits are written (paper: temperature 1.0, top-p 0.95)."""

    temperature: Annotated[float, Field(ge=0, le=5, description="0 is greedy")] = 0.4
    top_p: Annotated[float, Field(gt=0, le=1, description="nucleus mass")] = 0.95
    max_new_tokens: Annotated[
        int | None,
        Field(ge=1, le=8192, description="longest answer to a prompt, in tokens; default 80 a sentence, 512 a passage"),
    ] = None
    resamples: Annotated[int, Field(ge=0, le=10, description="how often a duplicate among the candidates is sampled again")] = 2


class EditConfig(Frozen):
    """What is written about a passage, and what it compiles to."""

    styles: Annotated[tuple[Style, ...], Field(min_length=1, description="prompt styles; candidates take them in turn (a mix)")] = (
        "details+self-qa",
    )
    unit: Annotated[Unit, Field(description="ask about the whole passage at once (the paper), or sentence by sentence")] = (
        "sentence"
    )
    passes: Annotated[int, Field(ge=1, le=16, description="how often each sentence is asked about, within one self-edit")] = 2
    shots: Annotated[int, Field(ge=0, le=2, description="worked examples in the prompt (the paper: 0)")] = 2
    sampling: Sampling = Sampling()
    form: Annotated[DocumentForm, Field(description="plain: title, newline, text (the paper); chat: lessons as turns")] = "chat"
    split: Annotated[PlainSplit, Field(description="plain form: a document a line, or whole self-edits")] = "lines"
    grounding: Annotated[
        float, Field(ge=0, le=1, description="chat form: share of a lesson's content words that must stand in the passage; 0: any")
    ] = 0.75
    limit_documents: Annotated[int, Field(ge=0, le=1000, description="most documents of one self-edit; 0: all")] = 30


class JudgeConfig(Frozen):
    """Where the grader ``judge`` sends its questions; the key is read from OPENAI_API_KEY."""

    url: str = "https://api.openai.com/v1"
    model: str = "gpt-4.1-2025-04-14"


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
    quiz_split: Annotated[float, Field(ge=0.1, le=0.9, description="share of the quiz that chooses; the rest reports the gain")] = (
        0.6
    )
    seed: Annotated[int, Field(ge=0, lt=2**31, description="seed of everything that is random")] = 0
    slots: Annotated[int, Field(ge=0, le=256, description="adapters trained side by side in one process; 0: chosen by memory")] = 0
    compiled: Annotated[bool, Field(description="decoder layers through torch.compile; needs a C++ compiler on a CPU")] = False
    grader: GraderName = "recall"
    judge: JudgeConfig = JudgeConfig()
    edit: EditConfig = EditConfig()
    settings: Settings = Settings()


class TrainConfig(Frozen):
    """Everything that decides what ``selfedit train`` does (paper algorithm 1 and section 4.1).

    The paper: 2 rounds, 50 passages, 5 edits, 3 repeats, rule ``best``, reward ``accuracy``, student ``policy``; outer LoRA of
    rank 64, alpha 128, 2 epochs, 3e-4, batch 10 (``recipes/paper``).
    """

    model: str = DEFAULT_MODEL
    device: str = "auto"
    dtype: Dtype = "auto"
    data: Annotated[tuple[str, ...], Field(min_length=1, description="data sets, put together")] = ("almanac",)
    split: str = "train"
    rounds: Annotated[int, Field(ge=1, le=100, description="rounds of ReST-EM, each with new passages")] = 2
    passages: Annotated[int, Field(ge=1, description="passages a round")] = 12
    edits: Annotated[int, Field(ge=1, le=64, description="self-edits a passage")] = 5
    repeats: Annotated[int, Field(ge=1, le=16, description="training runs of each self-edit, each with its own seed")] = 1
    noise_passages: Annotated[
        int, Field(ge=0, description="passages a round whose edits are tried at least twice, to estimate the reward's noise")
    ] = 4
    halving: Annotated[
        bool, Field(description="successive halving: of each passage's self-edits only the better half gets the next repeat")
    ] = False
    algorithm: Annotated[
        Literal["rest-em", "dpo"], Field(description="SFT on the selected, or preference for a passage's best over its worst")
    ] = "rest-em"
    dpo_beta: Annotated[float, Field(gt=0, le=10, description="weight of DPO's implicit KL penalty")] = 0.1
    rule: Annotated[SelectionRule, Field(description="which self-edits the policy is trained on")] = "best-positive"
    fraction: Annotated[float, Field(gt=0, le=1, description="share of all edits that top-fraction takes")] = 0.2
    credit: Annotated[
        Literal["edit", "pieces"],
        Field(description="train on all answers of a selected self-edit, or on those that a question won can be traced to"),
    ] = "edit"
    reward: RewardName = "accuracy"
    reward_weight: Annotated[float, Field(ge=0, le=1, description="share of likelihood in the reward mixed")] = 0.5
    student: Annotated[Literal["policy", "base"], Field(description="whose weights the inner adapter is trained on")] = "policy"
    merge: Annotated[bool, Field(description="write the last policy as a merged model too")] = False
    control_of: Annotated[str, Field(description="a run whose passages and numbers of rows the rule random takes")] = ""
    seed: Annotated[int, Field(ge=0, lt=2**31, description="seed of everything that is random")] = 0
    slots: Annotated[int, Field(ge=0, le=256, description="adapters trained side by side in one process; 0: chosen by memory")] = 0
    compiled: Annotated[bool, Field(description="decoder layers through torch.compile; needs a C++ compiler on a CPU")] = False
    grader: GraderName = "recall"
    judge: JudgeConfig = JudgeConfig()
    edit: EditConfig = EditConfig()
    settings: Settings = Settings()
    outer: Settings = Settings(layers="all", epochs=2, learning_rate=3e-4, batch_size=8)


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
