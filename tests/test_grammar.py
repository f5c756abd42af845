"""Self-edits held to a schema: every sample parses, neighbours don't matter, and the settings reach the plan."""

from __future__ import annotations

import json
from typing import Any

import pytest

from selfedit.config import EditConfig, Sampling, Settings
from selfedit.contexts import Passage
from selfedit.errors import InvalidEditError
from selfedit.lm.generate import generate
from selfedit.samplers.local import write_edits
from selfedit.tasks.knowledge.prompts import EPOCHS, LEARNING_RATES
from selfedit.tasks.knowledge.task import KnowledgeTask, read_plan

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "count": {"enum": [1, 22]}},
        "required": ["name", "count"],
        "additionalProperties": False,
    }
)
PASSAGE = Passage("Quillmoor Bridge", "Quillmoor Bridge was built in 1732. It is made of slate.")


def test_every_sample_of_a_random_model_parses(lm: Any) -> None:
    prompts = [(5, 6, 7)] * 12
    texts = generate(lm, prompts, 200, 1.5, 1.0, list(range(12)), schemas=[SCHEMA] * 12)
    for found in map(json.loads, texts):
        assert set(found) == {"name", "count"} and len(found["name"]) <= 6 and found["count"] in (1, 22)
    assert len(set(texts)) > 6


def test_rows_with_and_without_a_schema_share_a_batch(lm: Any) -> None:
    prompts, seeds = [(5, 6, 7), (9, 10, 11, 12), (5, 6, 7)], [1, 2, 3]
    schemas = [SCHEMA, None, SCHEMA]
    together = generate(lm, prompts, 40, 1.0, 1.0, seeds, schemas=schemas)
    alone = [
        generate(lm, [prompt], 40, 1.0, 1.0, [seed], schemas=[schema])[0]
        for prompt, seed, schema in zip(prompts, seeds, schemas, strict=True)
    ]
    assert together == alone
    assert together[1] == generate(lm, [prompts[1]], 40, 1.0, 1.0, [2])[0]


@pytest.mark.parametrize("style", ["notes+settings", "notes+fixed-settings", "notes+random-settings"])
def test_a_self_edit_may_name_its_settings(lm: Any, style: str) -> None:
    edit = EditConfig(styles=(style,), shots=0, form="plain")
    task = KnowledgeTask(edit)
    written = write_edits(lm, task, PASSAGE, 3, Sampling(temperature=1.0, max_new_tokens=1600), 0)
    plans = [task.compile(lm, PASSAGE, one.edit.text, Settings(epochs=5), 0) for one in written]
    for one, plan in zip(written, plans, strict=True):
        raw, kept = json.loads(one.texts[0]), json.loads(one.edit.text)
        assert kept["notes"] == raw["notes"] and len(plan.documents) > 1
        if style == "notes+fixed-settings":
            assert plan.settings == Settings(epochs=5)
            continue
        assert (plan.settings.learning_rate, plan.settings.epochs) == (kept["learning_rate"], kept["epochs"])
        assert plan.settings.learning_rate in LEARNING_RATES and plan.settings.epochs in EPOCHS
        if style == "notes+settings":
            assert kept == raw


def test_a_plan_may_be_laid_out_over_lines(lm: Any) -> None:
    """As another model writes it."""
    plan = {"notes": ["The mill stands."], "learning_rate": LEARNING_RATES[0], "epochs": EPOCHS[0], "why": "short"}
    task = KnowledgeTask(EditConfig(styles=("notes+settings",), form="plain"))
    found = task.compile(lm, PASSAGE, task.joined(0, [json.dumps(plan, indent=2)]), Settings(), 0)
    assert (found.settings.learning_rate, found.settings.epochs) == (LEARNING_RATES[0], EPOCHS[0])
    assert found.documents[0].text.endswith("The mill stands.") and len(found.documents) == 2


def test_a_broken_plan_is_an_invalid_edit() -> None:
    assert read_plan("Notes.\nMore.") == ("Notes.\nMore.", {})
    assert read_plan('{"note": 1}')[1] == {} and read_plan('{"notes": ["a"], "epochs": 8.0}') == ("a", {"epochs": 8})
    two = "\n".join(('{"notes": ["a"], "epochs": 4}', '{"notes": ["b"], "epochs": 8}'))
    assert read_plan(two) == ("a\nb", {"epochs": 4})
    for text in ('{"notes": ["cut', '{"notes": ["a"], "epochs": 3}', '{"notes": 3}'):
        with pytest.raises(InvalidEditError):
            read_plan(text)
