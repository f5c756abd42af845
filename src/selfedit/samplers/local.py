"""Self-edits written by the model itself, all candidates of a passage in one batch."""

from __future__ import annotations

from collections.abc import Sequence

from selfedit import seeds
from selfedit.config import EditConfig
from selfedit.contexts import Passage
from selfedit.edits import Prompt, SelfEdit
from selfedit.lm.batch import encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import LanguageModel
from selfedit.tasks.knowledge.documents import passage_pieces
from selfedit.tasks.knowledge.prompts import STYLES, about_sentences, edit_prompts, parts_of

# Longest answers where the sampling names no length.
SENTENCE_TOKENS, PASSAGE_TOKENS = 80, 512


def write_edits(lm: LanguageModel, passages: Sequence[Passage], count: int, config: EditConfig, seed: int) -> list[SelfEdit]:
    """Writes ``count`` self-edits about one context (paper equation 1: SE ~ LM(. | C)).

    Candidate i takes style i modulo the number of styles. A candidate that equals an earlier one is sampled again, at most
    ``config.sampling.resamples`` times; after that the duplicate stays.

    Args:
        passages: the context's parts, one unless it is longer than the model's window.
        count: how many.
        config: styles, unit, worked examples, sampling.
        seed: each candidate's random numbers come from it, the context's id, its index and the attempt.
    """
    texts = [""] * count
    open_candidates = list(range(count))
    for attempt in range(config.sampling.resamples + 1):
        for index, text in zip(open_candidates, _write(lm, passages, open_candidates, config, seed, attempt), strict=True):
            texts[index] = text
        open_candidates = [index for index in open_candidates if texts[index] in texts[:index]]
        if not open_candidates or config.sampling.temperature == 0:
            break
    return [SelfEdit(passages[0].id, config.styles[i % len(config.styles)], text) for i, text in enumerate(texts)]


def _write(
    lm: LanguageModel, passages: Sequence[Passage], candidates: list[int], config: EditConfig, seed: int, attempt: int
) -> list[str]:
    prompts: list[Prompt] = []
    limits: list[int] = []
    row_seeds, counts = [], []
    for index in candidates:
        asked: list[Prompt] = []
        for style in parts_of(config.styles[index % len(config.styles)]):
            short = config.unit == "sentence" and about_sentences(style)
            for _ in range(config.passes if short else 1):
                for part in passages:
                    pieces = passage_pieces(part.text)
                    own = edit_prompts(style, part.title, pieces, part.text, lm.chat, config.shots, config.unit)
                    asked += own
                    limits += [config.sampling.max_new_tokens or (SENTENCE_TOKENS if short else PASSAGE_TOKENS)] * len(own)
        prompts += asked
        counts.append(len(asked))
        row_seeds += [seeds.derive(seed, passages[0].id, "write", index, attempt, piece) for piece in range(len(asked))]
    sampling = config.sampling
    texts = generate(
        lm,
        [encode_prompt(lm, prompt) for prompt in prompts],
        limits,
        sampling.temperature,
        sampling.top_p,
        row_seeds,
        stop=_goes_in_circles,
    )
    joined = []
    for index, count in zip(candidates, counts, strict=True):
        pieces, texts = texts[:count], texts[count:]
        styles = parts_of(config.styles[index % len(config.styles)])
        cuts = {STYLES[style].cut for style in styles if style in STYLES} - {None}
        for cut in cuts:
            pieces = [text.rsplit(str(cut), 1)[-1].strip() for text in pieces]
        joined.append("\n".join(pieces))
    return joined


def _goes_in_circles(text: str) -> bool:
    """Whether the last whole line repeats an earlier one; answers ("A: 1811") may recur."""
    lines = [line.strip() for line in text.split("\n")[:-1] if line.strip()]
    return bool(lines) and not lines[-1].startswith("A:") and lines[-1] in lines[:-1]
