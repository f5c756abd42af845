"""General knowledge: the data, and ``selfedit eval general`` as a process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfedit.tasks.general import load_general, marked, sit_general

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_the_items_are_whole_and_different() -> None:
    data = load_general()
    items = [(item.get("question") or item["begins"], item["answer"]) for item in (*data["questions"], *data["completions"])]
    assert len(items) == len(dict(items)) >= 200 and all(text and answer for text, answer in items)
    assert all(text == text.strip() and answer == answer.strip() for text, answer in items)
    assert len(data["texts"]) == 8 and all(len(text.split()) > 50 for text in data["texts"])


def test_likelihoods_are_those_of_one_forward_pass(lm: Any) -> None:
    import torch

    sat, data = sit_general(lm), load_general()
    item = data["completions"][0]
    head = lm.tokenizer(item["begins"])["input_ids"]
    tail = lm.tokenizer(f" {item['answer']}", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        scores = lm.model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    wanted = sum(scores[len(head) - 1 + at, token].item() for at, token in enumerate(tail)) / len(tail)
    assert sat.log_probabilities[len(data["questions"])] == pytest.approx(wanted, abs=1e-4)
    found = marked(sat)
    assert found["n"] == len(sat.answers) == len(sat.log_probabilities) and found["perplexity"] > 1


def test_eval_general_compares_a_memory_with_its_base(
    command: Command, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path
) -> None:
    small = ("--set", "edit.sampling.max_new_tokens=16", "--set", "edit.form=plain", "--edits", 1, "--workers", 0)
    memory = tmp_path / "memory"
    command("learn", passage_file, "--quiz", quiz_file, "--memory", memory, "--model", tiny_model, *small)
    done = command("eval", "general", "--memory", memory, "--json", tmp_path / "g.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "g.json").read_text())
    assert found["base"]["n"] >= 200 and found["base"]["perplexity"] > 1 and "perplexity" in done.stdout
    missing = command("eval", "general", "--memory", tmp_path / "none")
    assert missing.returncode == 1 and "no memory there" in missing.stderr


@pytest.mark.slow
def test_the_embedded_model_gets_most_right() -> None:
    from selfedit.lm.load import load_model

    found = marked(sit_general(load_model("builtin:smollm2-135m", dtype="float32")))
    assert found["right"].mean > 0.6 and found["perplexity"] < 25
