"""Names that settings take: models, rewards, screens, methods."""

from __future__ import annotations

from typing import Literal

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
Screen = Literal["ridge", "gradient", "in-context", "rubric", "length", "diversity", "coverage", "faithfulness"]
ScreenName = Literal["", Screen]
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
