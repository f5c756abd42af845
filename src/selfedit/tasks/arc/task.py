"""The puzzle domain as a ``Task``: a recipe is written, items are made of it, tests are answered and voted (paper section 4.2)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np

from selfedit import seeds
from selfedit.config import RecipeConfig, Rendering, Settings
from selfedit.contexts import Puzzle, Question, Rows
from selfedit.edits import Document, Prompt, TrainingPlan
from selfedit.errors import InvalidEditError
from selfedit.lm.batch import encode_answer, encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import Identity, LanguageModel
from selfedit.lm.score import log_probabilities
from selfedit.tasks.arc.grids import LARGEST, ended, parse, render
from selfedit.tasks.arc.items import MOST_ITEMS, Item, items_of
from selfedit.tasks.arc.prompts import item_prompt, recipe_prompt
from selfedit.tasks.arc.recipe import Recipe, parse_recipe, schema
from selfedit.tasks.arc.vote import View, views_of, voted
from selfedit.tasks.base import Asked, Request, Sitting

RECIPE_TOKENS, EXTENDED_TOKENS = 200, 640
# One item's tokens at most, as in the paper.
LONGEST_ITEM = 8192
# An answer has room for so many times the tokens of its puzzle's largest grid, the most that ARC-AGI-1 needs; a puzzle is asked
# only where the model's window has room for LIKELY times them.
GROWTH, LIKELY = 4, 2


@dataclass(frozen=True)
class ArcTask:
    """Puzzles.

    Attributes:
        edit: what a recipe may name, how puzzles are shown and answered.
        seed: of the answers that are sampled.
    """

    edit: RecipeConfig = field(default_factory=RecipeConfig)
    seed: int = 0

    def style(self, candidate: int) -> str:
        """All recipes are asked for alike."""
        return "recipe"

    def requests(self, lm: Identity, context: Puzzle, candidate: int) -> list[Request]:
        """One request: the options and the demonstrations."""
        held = json.dumps(schema(self.edit.extended)) if self.edit.constrained else None
        return [Request(self._choice(lm, context), EXTENDED_TOKENS if self.edit.extended else RECIPE_TOKENS, held)]

    def joined(self, candidate: int, texts: Sequence[str]) -> str:
        """The recipe in its own form, so that equal recipes are equal texts; what is none stays as it is."""
        try:
            return self.read(texts[0]).text()
        except InvalidEditError:
            return texts[0]

    def compile(self, lm: Identity, context: Puzzle, text: str, settings: Settings, seed: int) -> TrainingPlan:
        """Items by the recipe, as documents; learning rate, epochs and what else it names overrule the settings.

        Departure from the paper: (1) items beyond ``most_tokens`` are left out, so that recipes cost about the same.

        Raises:
            InvalidEditError: no recipe, no item that fits, or more steps than allowed.
        """
        recipe = self.read(text)
        every = recipe.training.strategy == "train_using_all_tokens"
        limit = recipe.items or MOST_ITEMS
        items = items_of(context, recipe.names, seeds.derive(seed, "items"), limit, self.edit.permutations)
        most = min(LONGEST_ITEM, lm.window)
        kept: list[Document] = []
        left = self.edit.most_tokens // recipe.training.num_train_epochs
        for document in (self.document(item, lm.chat, every) for item in items):
            size = len(encode_prompt(lm, document.request or ())) + len(lm.tokenizer(document.text)["input_ids"]) + 2
            if size < most and size <= left:
                kept.append(document)
                left -= size
        if not kept:
            raise InvalidEditError(f"no training item of fewer than {most} tokens, or within {self.edit.most_tokens} in all")
        chosen = {
            "learning_rate": recipe.training.learning_rate,
            "epochs": recipe.training.num_train_epochs,
            **({"rank": recipe.rank, "alpha": settings.alpha / settings.rank * recipe.rank} if recipe.rank else {}),
            **({"batch_size": recipe.batch_size} if recipe.batch_size else {}),
        }
        trained = settings.model_copy(update=chosen)
        steps = trained.epochs * math.ceil(len(kept) / (trained.batch_size * trained.accumulation))
        if steps > self.edit.most_steps:
            raise InvalidEditError(f"{steps} optimiser steps, more than {self.edit.most_steps}")
        return TrainingPlan(tuple(kept), trained, seed)

    def read(self, text: str) -> Recipe:
        """The recipe in a text, as far as this task's settings let it go. Raises UnreadableEditError."""
        return parse_recipe(text, self.edit.extended, free=not self.edit.constrained)

    def too_long(self, lm: Identity, context: Puzzle) -> str | None:
        """Why a puzzle can't be shown to a model; None where it can."""
        prompts = [item_prompt(Item(context.train, given, ()), self.edit.rendering, lm.chat) for given, _ in context.test]
        prompts.append(self._choice(lm, context))
        longest = max(len(encode_prompt(lm, prompt)) for prompt in prompts) + self.room(lm, context, LIKELY)
        return f"task {context.id}: {longest} tokens, the model's window has {lm.window}" if longest > lm.window else None

    def document(self, item: Item, chat: bool, every: bool) -> Document:
        """An item as a lesson: loss on the answer, or (``every``) on all its tokens."""
        answer = render(np.array(item.answer, dtype=np.int8), self.edit.rendering)
        return Document(answer, item_prompt(item, self.edit.rendering, chat), whole=every)

    def asked(self, context: Puzzle) -> tuple[Asked, ...]:
        """One question a test: its grid."""
        return tuple(
            Asked(Question(f"test {index}", "" if wanted is None else _text(wanted)), index, paraphrase=False)
            for index, (_, wanted) in enumerate(context.test)
        )

    def views(self, puzzle: Puzzle) -> list[View]:
        """The views that a puzzle's tests are answered in: the same for everyone who is examined."""
        return views_of(puzzle, seeds.derive(puzzle.id, "views"), self.edit.orders, self.edit.recolour)

    def examine(self, lm: LanguageModel, seats: Sequence[tuple[int, Puzzle]], first: int) -> list[Sitting]:
        """Every test of each (slot, puzzle) in all its views, greedily and so often sampled, each kind in one batch.

        An answer ends where its grid does; the answer to a test is the list of voted attempts.
        """
        edit = self.edit
        rows: list[tuple[int, Puzzle, int, View]] = []
        for slot, puzzle in seats:
            rows += [(slot, puzzle, test, view) for test in range(len(puzzle.test)) for view in self.views(puzzle)]
        prompts = [item_prompt(view.shown(puzzle, test), self.edit.rendering, lm.chat) for _, puzzle, test, view in rows]
        room = {puzzle: self.room(lm, puzzle) for puzzle in {puzzle for _, puzzle in seats}}
        limits = [room[puzzle] for _, puzzle, _, _ in rows]
        slots = [slot for slot, *_ in rows]
        encoded = [encode_prompt(lm, prompt) for prompt in prompts]
        stop = partial(ended, how=edit.rendering)
        texts = [[text] for text in generate(lm, encoded, limits, stop=stop, slots=slots, first=first)]
        for sample in range(edit.samples):
            row_seeds = [seeds.derive(self.seed, puzzle.id, "answer", test, sample, *view.key) for _, puzzle, test, view in rows]
            drawn = generate(lm, encoded, limits, edit.answer_temperature, 1.0, row_seeds, stop, slots, first)
            for found, text in zip(texts, drawn, strict=True):
                found.append(text)
        golds = [
            (slot, encode_answer(lm, self._plain(lm, puzzle, given), self.written(wanted)))
            for slot, puzzle in seats
            for given, wanted in puzzle.test
            if wanted is not None
        ]
        likelihoods = iter(log_probabilities(lm, [row for _, row in golds], [slot for slot, _ in golds], first))
        sittings = []
        at = 0
        for _, puzzle in seats:
            count = len(self.views(puzzle))
            answers, scores = [], []
            for _, wanted in puzzle.test:
                own = zip(rows[at : at + count], texts[at : at + count], strict=True)
                tried = [view.undone(parse(text, edit.rendering)) for (*_, view), written in own for text in written]
                answers.append(json.dumps(voted(tried)))
                scores.append(next(likelihoods) if wanted is not None else math.nan)
                at += count
            sittings.append(Sitting(tuple(answers), tuple(scores), tuple(scores)))
        return sittings

    def room(self, lm: Identity, puzzle: Puzzle, growth: int = GROWTH) -> int:
        """Tokens that an answer may have: ``growth`` times those of the puzzle's largest grid, but no more than a 30x30 grid's."""
        grids = [rows for pair in puzzle.train for rows in pair] + [given for given, _ in puzzle.test]
        largest = max(len(lm.tokenizer(self.written(rows))["input_ids"]) for rows in grids)
        return 16 + min(growth * largest, _tokens_of_largest(lm.tokenizer, self.edit.rendering))

    def _choice(self, lm: Identity, puzzle: Puzzle) -> Prompt:
        return recipe_prompt(puzzle, self.edit.rendering, lm.chat, self.edit.extended, free=not self.edit.constrained)

    def _plain(self, lm: LanguageModel, puzzle: Puzzle, given: Rows) -> Prompt:
        return item_prompt(Item(puzzle.train, given, ()), self.edit.rendering, lm.chat)

    def written(self, rows: Rows) -> str:
        """A grid as text."""
        return render(np.array(rows, dtype=np.int8), self.edit.rendering)


@cache
def _tokens_of_largest(tokenizer: Any, how: Rendering) -> int:
    """Of a 30x30 grid: of the longest of one colour, whose name may be several tokens, and one of all, whose digits don't merge."""
    cells = np.arange(LARGEST**2, dtype=np.int16).reshape(LARGEST, LARGEST)
    grids = [np.full_like(cells, colour) for colour in range(10)] + [7 * cells % 10]
    return max(len(tokenizer(render(grid.astype(np.int8), how))["input_ids"]) for grid in grids)


def _text(rows: Rows) -> str:
    return json.dumps([list(row) for row in rows])
