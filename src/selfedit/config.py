"""Settings that users choose, validated and bounded. Nothing here imports torch (a test checks it)."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DEFAULT_MODEL = "builtin:smollm2-135m"

Style = str
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["linear", "cosine", "constant"]
DocumentForm = Literal["plain", "chat"]
GraderName = Literal["recall", "em", "f1", "judge"]
Unit = Literal["passage", "sentence"]
PlainSplit = Literal["lines", "whole"]
RewardName = Literal[
    "accuracy", "likelihood", "mixed", "self-quiz", "self-quiz-likelihood", "sentences", "paraphrases", "agreement"
]
# Likeness of a question to a passage below which the base answers (docs/lab-book.md).
THRESHOLD = 0.4
# What each reward is taken on: the context's own questions, or an exam that needs nobody's.
REWARD_EXAMS: dict[RewardName, str] = {
    "accuracy": "labelled",
    "likelihood": "labelled",
    "mixed": "labelled",
    "self-quiz": "self-quiz",
    "self-quiz-likelihood": "self-quiz",
    "sentences": "sentences",
    "paraphrases": "paraphrases",
    "agreement": "agreement",
}
LABEL_FREE = tuple(reward for reward, exam in REWARD_EXAMS.items() if exam != "labelled")
# Exams of texts that are only scored, so that no answer is right or wrong.
TEXT_REWARDS = ("sentences", "paraphrases", "agreement")
ScreenName = Literal["", "ridge", "gradient", "in-context", "rubric", "length", "diversity", "coverage", "faithfulness"]
Rendering = Literal["python-list", "digits", "words"]
CreditName = Literal["edit", "lines"]
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
ARC_METHODS = ("icl", "random", "ttt", "best-fixed", "seal-writer", "seal", "oracle")
# Methods in which something is written; each may name its style: self:rewrite.
WRITTEN_METHODS = ("self", "external", "seal-writer", "seal")
NO_VIEW_OF_PUZZLES = "a puzzle has no passage to be in view"


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
            raise ValueError(f"dead_zone is {self.dead_zone}, but A is trained; give null_space=0.01 too")
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


def _plain(settings: Settings, reason: str) -> Settings:
    """The settings of a training in which no passage can be in view. Raises ValueError if they ask for distillation."""
    if settings.distil:
        raise ValueError(f"distil is {settings.distil}, but {reason}; give 0")
    return settings


def _no_lesson(settings: Settings, reason: str) -> Settings:
    """The settings of a training that is no lesson. Raises ValueError if they ask for what spares general knowledge."""
    for name in ("rehearsal", "null_space"):
        if value := getattr(settings, name):
            raise ValueError(f"{name} is {value}, but {reason}; give 0")
    return settings


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
    resamples: Annotated[int, Field(ge=1, le=16, description="answers sampled with the passage in view")] = 4
    agreeing: Annotated[int, Field(ge=1, le=16, description="of which so many must be the answer")] = 3
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
    settings: Settings = Settings()

    @model_validator(mode="after")
    def _nothing_replayed_in_the_null_space(self) -> LearnConfig:
        if self.replay and self.settings.null_space:
            raise ValueError("replay mixes in what null_space keeps out of the way of; give one of them as 0")
        return self


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
        _no_lesson(value, "a policy is trained on its own writing alone")
        return _plain(value, "the policy learns to write, with the passage in every prompt")

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
        return _plain(_no_lesson(value, "a puzzle's adapter answers that puzzle alone"), NO_VIEW_OF_PUZZLES)


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
        return _plain(_no_lesson(value, "a puzzle's adapter answers that puzzle alone"), NO_VIEW_OF_PUZZLES)

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
        return _plain(value, "ways of keeping train without the passage in view")

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
    named: Annotated[
        tuple[str, ...],
        Field(description="a screen and a reward named before anything is measured: the best of the others is the best of many"),
    ] = ("in-context", "self-quiz-likelihood")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    slots: Annotated[int, Field(ge=0, le=256, description="adapters trained side by side in one process; 0: chosen by memory")] = 0
    quiz: QuizConfig = QuizConfig()
    edit: EditConfig = EditConfig(held_out=0.25)
    settings: Settings = Settings()


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
