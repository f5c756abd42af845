"""Recipes: what a schema lets through is a recipe, and what isn't one says why."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from selfedit.errors import InvalidEditError
from selfedit.lm.generate import generate
from selfedit.tasks.arc.recipe import parse_recipe, random_recipe, schema

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


def test_random_recipes_cover_the_grid() -> None:
    generator = np.random.default_rng(0)
    found = [random_recipe(generator) for _ in range(300)]
    assert {recipe.training.learning_rate for recipe in found} == {1e-5, 5e-5, 1e-4, 3e-4, 1e-3, 2e-3}
    assert 0.4 < np.mean([recipe.data_generation.use_chain_augmentations for recipe in found]) < 0.6
