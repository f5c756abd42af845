"""The self-edit of a puzzle: a recipe of augmentations and training settings, JSON under a schema (paper section 4.2).

Departures from the paper: (1) learning rate and epochs come from grids (unless recipes are written freely, ``free``); (2) the
schema can hold a writer to the form; (3) an extended recipe switches augmentations one by one and names rank, batch and items.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from selfedit.errors import UnreadableEditError
from selfedit.tasks.arc.augment import GROUPS

# Learning rates and epochs that a recipe may name; one that is written freely, as in the paper, any within the bounds below.
LEARNING_RATES: tuple[float, ...] = (1e-5, 5e-5, 1e-4, 3e-4, 1e-3, 2e-3)
EPOCHS: tuple[int, ...] = (1, 2, 3, 4, 5)
MOST_RATE, MOST_EPOCHS = 0.1, 50
RANKS: tuple[int, ...] = (8, 16, 32, 64, 128)
BATCHES: tuple[int, ...] = (1, 2, 4, 8)
ITEMS: tuple[int, ...] = (25, 50, 100, 250)
AUGMENTATIONS = tuple(name for names in GROUPS.values() for name in names)
# What only an extended recipe names.
BEYOND = ("augmentations", "rank", "batch_size", "items")
SWITCHES = {
    "use_basic_augmentations": "basic",
    "use_size_augmentations": "size",
    "use_chain_augmentations": "chain",
    "use_repeat_augmentations": "repeat",
}
Strategy = Literal["train_using_all_tokens", "train_using_output_tokens"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


class DataGeneration(BaseModel):
    """Which groups of augmentations are used."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    use_basic_augmentations: bool
    use_size_augmentations: bool
    use_chain_augmentations: bool
    use_repeat_augmentations: bool


class Training(BaseModel):
    """Which tokens carry loss, and how long and how fast is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Strategy
    learning_rate: Annotated[float, Field(gt=0, le=MOST_RATE)]
    num_train_epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS, strict=True)]

    @field_validator("learning_rate", "num_train_epochs")
    @classmethod
    def _in_grid(cls, value: float, info: ValidationInfo) -> float:
        grid: Sequence[float] = LEARNING_RATES if info.field_name == "learning_rate" else EPOCHS
        if value not in grid and not (info.context or {}).get("free"):
            raise ValueError(f"{value} is none of {', '.join(map(str, grid))}")
        return value


class Recipe(BaseModel):
    """What a model writes about a puzzle.

    Attributes:
        augmentations: beyond the paper, one by one, whatever the groups' switches say; None: those of the groups that are on.
        rank, batch_size, items: beyond the paper; None: the run's own settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_generation: DataGeneration
    training: Training
    augmentations: dict[str, bool] | None = None
    rank: int | None = None
    batch_size: int | None = None
    items: int | None = None

    @field_validator("rank", "batch_size", "items")
    @classmethod
    def _known(cls, value: int | None, info: ValidationInfo) -> int | None:
        grid = {"rank": RANKS, "batch_size": BATCHES, "items": ITEMS}[str(info.field_name)]
        if value is not None and value not in grid:
            raise ValueError(f"{value} is none of {', '.join(map(str, grid))}")
        return value

    @field_validator("augmentations")
    @classmethod
    def _named(cls, value: dict[str, bool] | None) -> dict[str, bool] | None:
        unknown = set(value or {}) - set(AUGMENTATIONS)
        if unknown:
            raise ValueError(f"{', '.join(sorted(unknown))}: unknown")
        return value

    @model_validator(mode="after")
    def _within(self, info: ValidationInfo) -> Recipe:
        beyond = [name for name in BEYOND if getattr(self, name) is not None]
        if beyond and not (info.context or {"extended": True}).get("extended"):
            raise ValueError(f"{', '.join(beyond)}: only with the setting extended")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The augmentations that are on, in the order of their groups."""
        if self.augmentations is not None:
            return tuple(name for name in AUGMENTATIONS if self.augmentations.get(name))
        return tuple(name for group in self.groups for name in GROUPS[group])

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of augmentations that are switched on."""
        return tuple(group for switch, group in SWITCHES.items() if getattr(self.data_generation, switch))

    def text(self) -> str:
        """Its JSON, in the form that the schema has a model write: recipes that make the same of a puzzle are equal texts."""
        return json.dumps(self.canonical().model_dump(mode="json", exclude_none=True))

    def canonical(self) -> Recipe:
        """The one form of all recipes that make the same of a puzzle.

        Where augmentations are named, a group's switch, which then decides nothing, is on if any of its augmentations is; all of
        them are named, in the groups' order, those that are off as false. Where these are just whole groups, the switches say it.
        """
        if self.augmentations is None:
            return self
        on = set(self.names)
        groups = {switch: bool(on.intersection(GROUPS[group])) for switch, group in SWITCHES.items()}
        plain = self.model_copy(update={"data_generation": DataGeneration(**groups), "augmentations": None})
        return plain if on == set(plain.names) else plain.model_copy(update={"augmentations": {n: n in on for n in AUGMENTATIONS}})


# The hand-made recipe: of the method oracle by default, and of the screening of the split laptop.
HAND_MADE = Recipe(
    data_generation=DataGeneration(
        use_basic_augmentations=True,
        use_size_augmentations=False,
        use_chain_augmentations=False,
        use_repeat_augmentations=False,
    ),
    training=Training(strategy="train_using_output_tokens", learning_rate=1e-3, num_train_epochs=1),
)


def schema(extended: bool) -> dict[str, Any]:
    """The JSON schema that constrained decoding holds a model to.

    Args:
        extended: whether a recipe may name rank, batch and number of items too.
    """
    switches = {name: {"type": "boolean"} for name in SWITCHES}
    training = {
        "strategy": {"enum": list(STRATEGIES)},
        "learning_rate": {"enum": list(LEARNING_RATES)},
        "num_train_epochs": {"enum": list(EPOCHS)},
    }
    fields: dict[str, Any] = {"data_generation": _object(switches), "training": _object(training)}
    if extended:
        fields |= {"augmentations": _object({name: {"type": "boolean"} for name in AUGMENTATIONS})}
        fields |= {"rank": {"enum": list(RANKS)}, "batch_size": {"enum": list(BATCHES)}, "items": {"enum": list(ITEMS)}}
    return _object(fields)


def parse_recipe(text: str, extended: bool = True, free: bool = False) -> Recipe:
    """The recipe in a text, in its canonical form: the first JSON object, whatever stands around it (a code fence, a preamble).

    Args:
        extended: whether it may name what is beyond the paper.
        free: whether learning rate and epochs may lie between the grids' values, as in the paper.

    Raises:
        UnreadableEditError: there is none, or a field is missing, unknown or out of bounds.
    """
    try:
        return Recipe.model_validate(_first_object(text), context={"extended": extended, "free": free}).canonical()
    except ValidationError as error:
        lines = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()]
        raise UnreadableEditError("; ".join(lines)) from error


def _first_object(text: str) -> Any:
    # A brace before anything but a name or another brace is none of an object.
    begin = re.search(r'\{\s*["}]', text)
    if begin is None:
        raise UnreadableEditError("no JSON object in it")
    try:
        found, _ = json.JSONDecoder().raw_decode(text[begin.start() :])
    except (ValueError, RecursionError) as error:
        raise UnreadableEditError(f"not JSON ({error})") from error
    return found


def random_recipe(generator: np.random.Generator, extended: bool = False) -> Recipe:
    """A uniform valid recipe: the control without a model."""

    def pick(grid: Sequence[Any]) -> Any:
        return grid[int(generator.integers(len(grid)))]

    switches: Mapping[str, bool] = {name: bool(generator.integers(2)) for name in SWITCHES}
    return Recipe(
        data_generation=DataGeneration(**switches),
        training=Training(
            strategy=pick(STRATEGIES),
            learning_rate=pick(LEARNING_RATES),
            num_train_epochs=pick(EPOCHS),
        ),
        **(
            {
                "augmentations": {name: bool(generator.integers(2)) for name in AUGMENTATIONS},
                "rank": pick(RANKS),
                "batch_size": pick(BATCHES),
                "items": pick(ITEMS),
            }
            if extended
            else {}
        ),
    )


def _object(fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
