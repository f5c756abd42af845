"""All wording of the puzzle domain: what asks for a recipe, and how a puzzle is shown."""

from __future__ import annotations

import json

import numpy as np

from selfedit.config import Rendering
from selfedit.contexts import Puzzle, Rows
from selfedit.edits import Message, Prompt
from selfedit.tasks.arc.grids import render
from selfedit.tasks.arc.items import Item
from selfedit.tasks.arc.recipe import (
    AUGMENTATIONS,
    BATCHES,
    EPOCHS,
    ITEMS,
    LEARNING_RATES,
    MOST_EPOCHS,
    MOST_RATE,
    RANKS,
    STRATEGIES,
    SWITCHES,
)

SOLVE = "Find the rule that turns each input into its output, and write the last output."
OPENING = (
    "Below are the examples of a puzzle about grids of colours. A model will be trained on augmented copies of them. Choose how, "
    "as one JSON object and nothing else"
)
SWITCHED = (
    "data_generation: use_basic_augmentations (rotations, flips, reflections, shifts), use_size_augmentations (larger grids), "
    "use_chain_augmentations (two in a row), use_repeat_augmentations (tiled grids), each true or false;\n"
)
# Where recipes are held to the schema: what it lets through. Policies were trained on this text; it stays as it is.
CHOOSE = (
    f"{OPENING}:\n{SWITCHED}training: strategy (train_using_all_tokens or train_using_output_tokens), learning_rate (one of "
    "{rates}), num_train_epochs (one of {epochs})."
)
# Where they are written freely: the form, which nothing holds them to, and numbers without a grid, as in the paper.
CHOOSE_FREELY = (
    f"{OPENING}. It has this form, with a value in the place of each <>:\n{{form}}\n{SWITCHED}training: strategy (which tokens are "
    f"learnt), learning_rate (a number above 0, {MOST_RATE} at most), num_train_epochs (a whole number from 1 to {MOST_EPOCHS})."
)


def item_prompt(item: Item, how: Rendering, chat: bool) -> Prompt:
    """An item as it is asked: the demonstrations, then the query; a base model goes on after the last ``Output:``."""
    shown = [f"{_side('Input', given, how)}\n{_side('Output', wanted, how)}" for given, wanted in item.demonstrations]
    body = "\n\n".join([*shown, f"{_side('Input', item.query, how)}\nOutput:"])
    if chat:
        return (Message("system", SOLVE), Message("user", body))
    return (Message("text", f"{SOLVE}\n\n{body}\n"),)


def recipe_prompt(puzzle: Puzzle, how: Rendering, chat: bool, extended: bool = False, free: bool = False) -> Prompt:
    """What asks for a recipe: the options and the puzzle's demonstrations; never a test's output.

    Args:
        extended: whether it may name what is beyond the paper.
        free: whether nothing holds the writer to the form, and learning rate and epochs may lie between the grids' values.
    """
    rates, epochs = (json.dumps(list(grid))[1:-1] for grid in (LEARNING_RATES, EPOCHS))
    shown = "\n\n".join(f"{_side('Input', given, how)}\n{_side('Output', wanted, how)}" for given, wanted in puzzle.train)
    held = CHOOSE.replace("{rates}", rates).replace("{epochs}", epochs)
    asked = CHOOSE_FREELY.replace("{form}", _form(extended)) if free else held
    if extended:
        ranks, batches, items = (json.dumps(list(grid))[1:-1] for grid in (RANKS, BATCHES, ITEMS))
        names = ", ".join(AUGMENTATIONS)
        asked += (
            f"\nBesides: augmentations, an object that says true or false for each of {names}, and is what counts; rank (one of "
            f"{ranks}), batch_size (one of {batches}) and items, how many at most (one of {items})."
        )
    return (Message("user" if chat else "text", f"{asked}\n\n{shown}" if chat else f"{asked}\n\n{shown}\n\nJSON:\n"),)


def _form(extended: bool) -> str:
    """A recipe's JSON with the kind of each value in the value's place."""
    switches = ", ".join(f'"{name}": <true or false>' for name in SWITCHES)
    strategies = " or ".join(json.dumps(name) for name in STRATEGIES)
    numbers = '"learning_rate": <number>, "num_train_epochs": <whole number>'
    fields = f'"data_generation": {{{switches}}}, "training": {{"strategy": <{strategies}>, {numbers}}}'
    if extended:
        fields += ', "augmentations": {<name>: <true or false>, ...}, "rank": <number>, "batch_size": <number>, "items": <number>'
    return f"{{{fields}}}"


def _side(name: str, rows: Rows, how: Rendering) -> str:
    return f"{name}:\n{render(np.array(rows, dtype=np.int8), how)}"
