"""Recipes: what a schema lets through is a recipe, and what isn't one says why."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from selfedit.config import RecipeConfig
from selfedit.contexts import Puzzle
from selfedit.errors import InvalidEditError
from selfedit.lm.generate import generate
from selfedit.samplers.local import _goes_in_circles
from selfedit.tasks.arc.augment import GROUPS
from selfedit.tasks.arc.prompts import recipe_prompt
from selfedit.tasks.arc.recipe import AUGMENTATIONS, Recipe, parse_recipe, random_recipe, schema
from selfedit.tasks.arc.task import ArcTask

GOOD: dict[str, Any] = {
    "data_generation": {
        "use_basic_augmentations": True,
        "use_size_augmentations": False,
        "use_chain_augmentations": True,
        "use_repeat_augmentations": False,
    },
    "training": {"strategy": "train_using_output_tokens", "learning_rate": 1e-4, "num_train_epochs": 2},
}


@pytest.mark.slow
def test_a_thousand_constrained_samples_of_the_embedded_model() -> None:
    from selfedit.lm.load import load_model
    from selfedit.tasks.arc.task import RECIPE_TOKENS

    lm, held = load_model("builtin:smollm2-135m", dtype="float32"), [json.dumps(schema(extended=False))] * 100
    prompt = tuple(lm.tokenizer("Write a recipe as JSON:\n")["input_ids"])
    for part in range(10):
        texts = generate(lm, [prompt] * 100, RECIPE_TOKENS, 1.0, 1.0, list(range(100 * part, 100 * part + 100)), schemas=held)
        assert all(parse_recipe(text) for text in texts)


def test_every_constrained_sample_is_a_recipe(lm: Any) -> None:
    texts = generate(lm, [(5, 6)] * 30, 1400, 2.0, 1.0, list(range(30)), schemas=[json.dumps(schema(extended=True))] * 30)
    recipes = [parse_recipe(text) for text in texts]
    assert len({recipe.text() for recipe in recipes}) > 15 and all(recipe.rank for recipe in recipes)
    assert all(parse_recipe(recipe.text()) == recipe for recipe in recipes)


def test_a_recipe_in_words_around_it() -> None:
    recipe = parse_recipe(f"Sure:\n```json\n{json.dumps(GOOD)}\n```\nIt rotates.")
    assert recipe.groups == ("basic", "chain") and recipe.training.num_train_epochs == 2
    assert json.loads(recipe.text()) == GOOD


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["training"].update(learning_rate=0.5), "training.learning_rate"),
        (lambda r: r["training"].update(learning_rate=2e-4), "none of"),
        (lambda r: r["training"].update(num_train_epochs=99), "training.num_train_epochs"),
        (lambda r: r["training"].update(strategy="all"), "training.strategy"),
        (lambda r: r["data_generation"].pop("use_basic_augmentations"), "use_basic_augmentations: Field required"),
        (lambda r: r["data_generation"].update(use_basic_augmentations="yes"), "use_basic_augmentations"),
        (lambda r: r.update(rank=7), "rank"),
        (lambda r: r.update(more=1), "more"),
    ],
)
def test_what_is_no_recipe_says_why(change: Any, said: str) -> None:
    recipe = json.loads(json.dumps(GOOD))
    change(recipe)
    with pytest.raises(InvalidEditError, match=said):
        parse_recipe(json.dumps(recipe))
    free = json.loads(json.dumps(GOOD)) | {"training": GOOD["training"] | {"learning_rate": 2e-4}}
    assert parse_recipe(json.dumps(free), free=True).training.learning_rate == 2e-4
    with pytest.raises(InvalidEditError, match="only with the setting extended"):
        parse_recipe(json.dumps(GOOD | {"rank": 64}), extended=False)
    for text in ("", "{", "no", "{" * 5000):
        with pytest.raises(InvalidEditError):
            parse_recipe(text)


def test_equal_extended_recipes_are_equal_texts() -> None:
    def text(augmentations: dict[str, bool], **switches: bool) -> str:
        given = GOOD | {"data_generation": GOOD["data_generation"] | switches, "augmentations": augmentations, "rank": 16}
        recipe = Recipe.model_validate(given)
        assert recipe.names == parse_recipe(recipe.text()).names and parse_recipe(json.dumps(given)).text() == recipe.text()
        return recipe.text()

    written = text({"double": True, "rotate-90": True})
    assert written == text({"rotate-90": True, "flip-rows": False, "double": True}, use_basic_augmentations=False)
    found = json.loads(written)
    assert list(found["data_generation"].values()) == [True, True, False, False], "a group is on if any of it is"
    assert [n for n, on in found["augmentations"].items() if on] == ["rotate-90", "double"]
    assert tuple(found["augmentations"]) == AUGMENTATIONS
    whole = text({name: name in (*GROUPS["basic"], *GROUPS["chain"]) for name in AUGMENTATIONS}, use_size_augmentations=True)
    assert whole == Recipe.model_validate(GOOD | {"rank": 16}).text(), "whole groups, as the switches say them"
    assert text({}) == text({"double": False}, use_basic_augmentations=False) != whole
    assert Recipe.model_validate(GOOD).text() == json.dumps(GOOD), "a plain recipe is as it was"


PUZZLE = Puzzle("p", ((((1, 2),), ((2, 1),)),), ((((3, 4),), ((4, 3),)),))
# Of what asks for a recipe that is held to the schema, by (extended, chat).
ASKED = {
    (False, True): "db3b84dadf4c5e9e",
    (False, False): "87a514f3fcc7533f",
    (True, True): "ab05067e7b787d38",
    (True, False): "c61353c140991716",
}


@pytest.mark.parametrize("extended", [False, True])
def test_a_free_recipe_is_asked_for_by_its_form_and_without_grids(lm: Any, extended: bool) -> None:
    (request,) = ArcTask(RecipeConfig(constrained=False, extended=extended)).requests(lm, PUZZLE, 0)
    text = request.prompt[-1].content
    assert request.schema is None and "1e-05" not in text and "0.0003" not in text and "1, 2, 3, 4, 5" not in text
    form = next(line for line in text.split("\n") if line.startswith("{"))
    values = {
        "<true or false>": "true",
        '<"train_using_all_tokens" or "train_using_output_tokens">': '"train_using_output_tokens"',
        '"learning_rate": <number>': '"learning_rate": 0.007',
        "<whole number>": "12",
        "{<name>: true, ...}": '{"double": true}',
        "<number>": "8",
    }
    for kind, value in values.items():
        form = form.replace(kind, value)
    training = parse_recipe(form.replace('"items": 8', '"items": 25'), extended, free=True).training
    assert (training.learning_rate, training.num_train_epochs) == (0.007, 12)
    # Policies were trained on these prompts: they never change.
    held = ArcTask(RecipeConfig(extended=extended)).requests(lm, PUZZLE, 0)[0].prompt
    assert held == recipe_prompt(PUZZLE, "digits", lm.chat, extended)
    for chat in (True, False):
        (message,) = recipe_prompt(PUZZLE, "digits", chat, extended)
        assert hashlib.sha256(message.content.encode()).hexdigest()[:16] == ASKED[extended, chat]


def test_an_indented_recipe_does_not_go_in_circles() -> None:
    recipe = random_recipe(np.random.default_rng(0), extended=True)
    text = json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n"
    assert text.count("  },\n") == 3 and not any(_goes_in_circles(text[:at]) for at in range(len(text) + 1))
    assert _goes_in_circles("So it is.\n},\nSo it is.\n") and not _goes_in_circles("A: 1811\nA: 1811\n")


def test_random_recipes_cover_the_grid() -> None:
    generator = np.random.default_rng(0)
    found = [random_recipe(generator) for _ in range(300)]
    assert {recipe.training.learning_rate for recipe in found} == {1e-5, 5e-5, 1e-4, 3e-4, 1e-3, 2e-3}
    assert 0.4 < np.mean([recipe.data_generation.use_chain_augmentations for recipe in found]) < 0.6
