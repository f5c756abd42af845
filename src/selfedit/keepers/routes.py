"""Ways that don't put everything into one set of weights: a bank of adapters with a router, and two that train nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import ClassVar, TypeVar

import bm25s
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.functional import normalize

from selfedit.config import Settings
from selfedit.contexts import Passage
from selfedit.edits import Document
from selfedit.errors import MemoryStoreError
from selfedit.keepers.base import Cost, Held, Keeper, gathered
from selfedit.lm.adapter import Adapter, install, standing
from selfedit.lm.load import LanguageModel
from selfedit.lm.train import Trained, layer_range
from selfedit.tasks.base import Asked, Sitting
from selfedit.tasks.general import General, general_items, general_questions, load_general, spoken
from selfedit.tasks.knowledge.exam import ExamForm, Paper, asked_in, exam_questions, sit_exams

Found = TypeVar("Found")
# Share of the layers whose states a question is routed by: chosen on dev passages (docs/lab-book.md).
LOWER = 0.2
# Tokens that are read at once for it.
LONGEST_PIECE = 1024
# Beside an adapter of a memory's bank: what its passages are found by.
STATES = "states.safetensors"


@dataclass(frozen=True)
class Bank(Keeper):
    """Every adapter is trained on the base and kept apart; a question goes to the one whose passage is most like it.

    Likeness is a late interaction (ColBERT's MaxSim, Khattab and Zaharia 2020) with the base model's own hidden states, of its
    lower layers: each token of the question finds the most like token of the passage, and counts the more the less neutral texts
    have one like it. Below ``threshold`` the base answers; as the most like passage counts, more that is none of them reaches it
    the more are held (docs/keeping.md). Departure from ColBERT: nothing is trained; states are standardised by those of neutral
    texts instead (``neutral_texts``).
    """

    threshold: float

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """On the base: what stands is put aside."""
        with standing(lm, [], alone=True):
            return super().train(lm, Held(), documents, settings, seed)

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], form: ExamForm, cost: Cost) -> list[Sitting]:
        """Every question by itself to its adapter; ``routed`` is the share that came to their own passage's."""
        asked = _asked(passages, form)
        routes = self.routed(lm, held, [query_of(passage, one, form) for passage, one in asked])
        owners = [lesson.passage.id for lesson in held.lessons]
        hits = [owners[at] == p.id if at >= 0 else False for at, (p, _) in zip(routes, asked, strict=True) if p.id in owners]
        if hits:
            cost.notes["routed"] = sum(hits) / len(hits)

        def answer(places: Sequence[int]) -> list[Sitting]:
            return sit_exams(lm, [_single(asked[at][0], asked[at][1], asked[at][0], form, form == "titled") for at in places])

        return gathered(passages, form, by_route(lm, held.adapters, routes, answer))

    def general(self, lm: LanguageModel, held: Held, cost: Cost) -> General | None:
        """Every general question and text to its adapter, or to the base; ``astray``: the share that came to an adapter."""
        routes = self.routed(lm, held, [*general_questions(), *load_general()["texts"]])
        cost.notes["astray"] = fmean(float(route >= 0) for route in routes)
        items, text = general_by_route(lm, held.adapters, routes, range(len(general_questions())))
        return General(tuple(answer for answer, _ in items), tuple(value for _, value in items), tuple(text))

    def routed(self, lm: LanguageModel, held: Held, queries: Sequence[str]) -> list[int]:
        """For each query the place of its adapter; -1: the base's."""
        return routes_to(lm, [lesson.passage for lesson in held.lessons], queries, self.threshold)


def routes_to(lm: LanguageModel, passages: Sequence[Passage], queries: Sequence[str], threshold: float) -> list[int]:
    """For each query the place of the passage that is most like it; -1: none is as like it as the threshold asks.

    Of equal passages the last one, so that what is learnt again answers. The base alone must stand; passages are read once.
    """
    if not passages or not queries:
        return [-1] * len(queries)
    states = _states_of(lm, [*(passage.view for passage in passages), *neutral_texts()])
    keys, neutral_Nd = states[: len(passages)], torch.cat(states[len(passages) :])
    found = likenesses(embedded(lm, queries), keys, neutral_Nd).tolist()
    best = [max(range(len(row)), key=lambda at: (row[at], at)) for row in found]
    return [at if row[at] >= threshold else -1 for row, at in zip(found, best, strict=True)]


def neutral_texts() -> list[str]:
    """What texts have in common is read off these; none of them is one that ``selfedit eval general`` measures by (a test)."""
    return list(json.loads(files(__package__).joinpath("neutral.json").read_text(encoding="utf-8")))


def _states_of(lm: LanguageModel, texts: Sequence[str]) -> list[torch.Tensor]:
    """``embedded``, each text read once in a process."""
    known: dict[str, torch.Tensor] = lm.made.setdefault("embedded", {})
    missing = list(dict.fromkeys(text for text in texts if text not in known))
    known |= dict(zip(missing, embedded(lm, missing), strict=True))
    return [known[text] for text in texts]


def keep_states(lm: LanguageModel, passages: Sequence[Passage], folder: str) -> None:
    """A job: what passages are found by, written beside their adapter, so that no later process reads them again.

    Raises:
        MemoryStoreError: no space left, or another fault of the disk.
    """
    states = _states_of(lm, [passage.view for passage in passages])
    kept = {_name(passage): found.cpu().contiguous() for passage, found in zip(passages, states, strict=True)}
    try:
        save_file(kept, Path(folder) / STATES, metadata={"by": _reader(lm)})
    except (OSError, SafetensorError) as error:
        raise MemoryStoreError(f"{folder}: could not be written ({error}); free space and try again") from error


def recall_states(lm: LanguageModel, passages: Sequence[Passage], folder: Path) -> None:
    """Takes what ``keep_states`` wrote, where the same model wrote it; what isn't there is read anew when it is wanted."""
    known: dict[str, torch.Tensor] = lm.made.setdefault("embedded", {})
    wanted = [passage for passage in passages if passage.view not in known]
    if not wanted or not (folder / STATES).is_file():
        return
    # A file that can't be read is made up for.
    with suppress(OSError, SafetensorError), safe_open(folder / STATES, framework="pt", device=str(lm.device)) as file:
        if (file.metadata() or {}).get("by") == _reader(lm):
            names = set(file.keys())
            known |= {one.view: file.get_tensor(_name(one)) for one in wanted if _name(one) in names}


def _name(passage: Passage) -> str:
    return hashlib.sha256(passage.view.encode()).hexdigest()


def _reader(lm: LanguageModel) -> str:
    """On whom and on what states depend."""
    return f"{lm.fingerprint} {lm.dtype} {lm.device.type} {LOWER} {LONGEST_PIECE}"


def likenesses(queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor], neutral_Nd: torch.Tensor) -> torch.Tensor:
    """(queries, keys), at most 1: the weighted mean over a query's tokens of the largest cosine with a token of the key.

    Args:
        queries, keys: (T, d) states of each text's tokens.
        neutral_Nd: states of neutral texts, which say what is common.
    """
    mean_d, spread_d = neutral_Nd.mean(0), neutral_Nd.std(0) + 1e-6

    def directions(states_Td: torch.Tensor) -> torch.Tensor:
        return normalize((states_Td - mean_d) / spread_d, dim=-1)

    common_Nd, keys = directions(neutral_Nd), [directions(key) for key in keys]
    found = []
    for query in queries:
        tokens_Td = directions(query)
        weights_T = (1 - (tokens_Td @ common_Nd.T).max(1).values).clamp(min=1e-3)
        found.append(torch.stack([weights_T @ (tokens_Td @ key_Td.T).max(1).values for key_Td in keys]) / weights_T.sum())
    return torch.stack(found)


class Untrained(Keeper):
    """Nothing is trained; what general questions would get into their prompts is not measured."""

    trains: ClassVar[bool] = False

    def train(self, lm: LanguageModel, held: Held, documents: Sequence[Document], settings: Settings, seed: int) -> Trained:
        """An adapter of nothing."""
        return Trained(Adapter({}, 1.0), [], 0)

    def general(self, lm: LanguageModel, held: Held, cost: Cost) -> General | None:
        """Not measured."""
        return None


class Retrieve(Untrained):
    """BM25 finds the passage among those seen so far, and it goes into the prompt."""

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], form: ExamForm, cost: Cost) -> list[Sitting]:
        """Each question with the passage that was found for it; before the first lesson without any."""
        if not held.lessons:
            return super().examine(lm, held, passages, form, cost)
        known = [lesson.passage for lesson in held.lessons]
        index = bm25s.BM25()
        index.index(bm25s.tokenize([one.view for one in known], show_progress=False), show_progress=False)
        papers, hits = [], []
        for passage, one in _asked(passages, form):
            query = bm25s.tokenize(query_of(passage, one, form), show_progress=False)
            places, _ = index.retrieve(query, k=1, show_progress=False)
            best = known[int(places[0, 0])]
            if passage in known:
                hits.append(best.id == passage.id)
            papers.append(_single(best, one, passage, "context", form == "titled"))
        if hits:
            cost.notes["found"] = sum(hits) / len(hits)
        return gathered(passages, form, sit_exams(lm, papers))


class Context(Untrained):
    """The right passage stands in the prompt, also of a question about a passage that was no lesson: that says nothing."""

    def examine(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], form: ExamForm, cost: Cost) -> list[Sitting]:
        """Each exam with its passage in view."""
        asked = [(one, asked_in(form, exam_questions(one.questions))) for one in passages]
        return sit_exams(lm, [Paper(one, questions, "context", margins=form == "titled") for one, questions in asked])

    def elsewhere(self, lm: LanguageModel, held: Held, passages: Sequence[Passage], cost: Cost) -> list[Sitting] | None:
        """Not measured."""
        return None


@torch.inference_mode()
def embedded(lm: LanguageModel, texts: Sequence[str]) -> list[torch.Tensor]:
    """(T, d) of each text: its tokens' hidden states above the lower layers, under what stands; a long text is read in pieces.

    An end-of-text token stands before each piece and is left out: whatever stands first takes a state that says little of it.
    """
    install(lm, None)
    found = []
    with layer_range(lm, 0, max(1, round(LOWER * lm.config.get_text_config().num_hidden_layers))):
        for text in texts:
            ids, room = lm.tokenizer(text, add_special_tokens=False)["input_ids"], min(lm.window, LONGEST_PIECE) - 1
            pieces = []
            for at in range(0, max(1, len(ids)), room):
                ids_1T = torch.tensor([[lm.tokenizer.eos_token_id, *ids[at : at + room]]], device=lm.device)
                pieces.append(lm.model.base_model(input_ids=ids_1T, use_cache=False).last_hidden_state[0, 1:].float())
            found.append(torch.cat(pieces))
    return found


def by_route(
    lm: LanguageModel,
    adapters: Mapping[int, Adapter] | Sequence[Adapter],
    routes: Sequence[int],
    answer: Callable[[Sequence[int]], Sequence[Found]],
) -> list[Found]:
    """What ``answer`` says for the places of each route, under its adapter (-1: without one); in the order of ``routes``."""
    found: dict[int, Found] = {}
    for route in sorted(set(routes)):
        places = [at for at, one in enumerate(routes) if one == route]
        install(lm, adapters[route] if route >= 0 else None)
        try:
            found |= dict(zip(places, answer(places), strict=True))
        finally:
            install(lm, None)
    return [found[at] for at in range(len(routes))]


def general_by_route(
    lm: LanguageModel, adapters: Mapping[int, Adapter] | Sequence[Adapter], routes: Sequence[int], places: Sequence[int]
) -> tuple[list[tuple[str, float]], list[tuple[float, ...]]]:
    """``general_items`` for the places and ``spoken`` for all texts, each its own way; ``routes``: the former's, the latter's."""
    count = len(places)
    items = by_route(lm, adapters, routes[:count], lambda chosen: general_items(lm, [places[at] for at in chosen]))
    return items, by_route(lm, adapters, routes[count:], lambda chosen: spoken(lm, chosen))


def _single(shown: Passage, one: Asked, of: Passage, form: ExamForm, margins: bool) -> Paper:
    """One question of a passage's exam, with the title or the text of what is shown."""
    return Paper(shown, (one,), form, margins=margins, beside=tuple(exam_questions(of.questions)))


def _asked(passages: Sequence[Passage], form: ExamForm) -> list[tuple[Passage, Asked]]:
    return [(passage, one) for passage in passages for one in asked_in(form, exam_questions(passage.questions))]


def query_of(passage: Passage, one: Asked, form: ExamForm) -> str:
    """What a question is routed by: what stands in its prompt."""
    return f"{passage.title} {one.question.question}" if form == "titled" else one.question.question
