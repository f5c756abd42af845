"""The real command, run as a process on a tiny random model, and what it leaves on disk."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors import safe_open

from conftest import make_tiny_model
from selfedit.cli.common import WorkBar
from selfedit.keepers.routes import STATES
from selfedit.lm.adapter import load_adapter
from selfedit.memory.ledger import Memory

PLAIN = ("--set", "settings.null_space=0", "--set", "settings.dead_zone=0")
Command = Callable[..., subprocess.CompletedProcess[str]]
FAST = ("--set", "edit.sampling.max_new_tokens=16", "--set", "edit.form=plain", "--set", "settings.epochs=2", "--edits", 2)
WITHIN = ("--workers", 0)  # no processes of their own for the trials; the tests of kills and of two workers leave it out


def learn(command: Command, model: Path, passage: Path, quiz: Path | None, memory: Path, *more: object, **options: Any) -> Any:
    quiz_flags = ("--quiz", quiz) if quiz else ()
    return command("learn", passage, *quiz_flags, "--memory", memory, "--model", model, *FAST, *WITHIN, *more, **options)


def without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key != "seconds"}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def test_learn_leaves_a_result_with_all_keys_and_repeats_itself(
    command: Command, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path
) -> None:
    results = []
    for name in ("a", "b"):
        done = learn(
            command, tiny_model, passage_file, quiz_file, tmp_path / name, "--seed", 5, "--json", tmp_path / f"{name}.json"
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert without_times(results[0]) == without_times(results[1])
    result = results[0]
    assert result["model"] == str(tiny_model) and result["seed"] == 5
    assert set(result["baseline"]) >= {"accuracy", "logprob"}
    assert len(result["candidates"]) == 2
    for row in result["candidates"]:
        assert {"edit", "documents", "reward", "accuracy", "logprob", "tokens", "seconds", "status", "reason"} <= set(row)
        assert row["status"] == "ok" and row["tokens"] > 0
        assert len(row["questions"]) == len(result["baseline"]["questions"]) == len(result["quiz"]["choosing"])
        assert row["accuracy"] == sum(one["correct"] for one in row["questions"]) / len(row["questions"])
    assert result["decision"] in ("accepted", "rejected")
    report = result["report"]
    assert report["n"] == len(report["questions"]) == 2
    assert report["before"] == sum(row["before_correct"] for row in report["questions"]) / 2
    assert {"question", "gold", "before", "after", "before_correct", "after_correct"} <= set(report["questions"][0])
    assert (result["memory"]["entry"] is None) == (result["decision"] == "rejected")
    assert "The exam without the passage" in done.stdout and "Self-edits about Quillmoor Bridge" in done.stdout
    chosen, reported = set(result["quiz"]["choosing"]), set(result["quiz"]["reporting"])
    assert not chosen & reported and chosen | reported == {0, 1, 2, 3}


def test_every_candidate_has_a_row_even_if_none_can_be_tried(
    command: Command, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "template.txt"
    empty.write_text("{title}: {passage}")
    done = learn(
        command, tiny_model, passage_file, quiz_file, tmp_path / "m", "--style", empty, "--edits", 3,
        "--set", "edit.form=chat", "--set", "edit.sampling.max_new_tokens=1", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["status"] for row in result["candidates"]] == ["invalid"] * 3
    assert all(row["reason"] and row["reward"] == 0 for row in result["candidates"])
    assert result["decision"] == "rejected" and result["memory"]["entry"] is None and "Nothing kept" in done.stdout
    assert Memory.open(tmp_path / "m").state.slots == ()


def test_divergence_is_a_recorded_candidate(
    command: Command, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path
) -> None:
    wild = [f"settings.{s}" for s in ("learning_rate=0.1", "clip=1e6", "alpha=4096", "rank=1", "epochs=200")]
    sets = [part for setting in wild for part in ("--set", setting)]
    done = learn(command, tiny_model, passage_file, quiz_file, tmp_path / "m", *sets, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert {row["status"] for row in result["candidates"]} == {"diverged"}
    assert "lower the learning rate" in result["candidates"][0]["reason"]


def test_dry_run_prints_what_config_reads_back(command: Command, tmp_path: Path) -> None:
    done = command("learn", "x.md", "--edits", 7, "--set", "settings.epochs=3", "--dry-run")
    assert done.returncode == 0 and "edits: 7" in done.stdout
    (tmp_path / "c.yaml").write_text(done.stdout)
    again = command("learn", "x.md", "--config", tmp_path / "c.yaml", "--dry-run")
    assert again.stdout == done.stdout
    assert not (tmp_path / "memory").exists()


BAD_INPUT: dict[str, tuple[dict[str, bytes], list[str], list[str]]] = {
    "missing passage": ({}, ["none.md", "--quiz", "q.json"], ["none.md", "no such file"]),
    "empty passage": ({"p.md": b" \n"}, ["p.md", "--quiz", "q.json"], ["p.md", "empty"]),
    "binary passage": ({"p.md": b"\x00\x01"}, ["p.md", "--quiz", "q.json"], ["p.md", "binary"]),
    "quiz without questions": ({"p.md": b"Text.", "q.json": b"[]"}, ["p.md", "--quiz", "q.json"], ["q.json", "no questions"]),
    "one question": (
        {"p.md": b"Text.", "q.json": b'[{"question": "Q?", "answer": "A"}]'},
        ["p.md", "--quiz", "q.json"],
        ["at least 2"],
    ),
    "missing field": (
        {"p.md": b"Text.", "q.json": b'[{"question": "Q?", "answer": "A"},\n{"answer": "A"}]'},
        ["p.md", "--quiz", "q.json"],
        ["q.json", "line 2", "question"],
    ),
    "missing column": (
        {"p.md": b"Text.", "q.csv": b"question,answer\nQ?\n"},
        ["p.md", "--quiz", "q.csv"],
        ["q.csv", "line 2", "answer"],
    ),
    "wrong type": (
        {"p.md": b"Text.", "q.json": b'[{"question": "Q?", "answer": "A"},\n{"question": "R?", "answer": 1732}]'},
        ["p.md", "--quiz", "q.json"],
        ["q.json", "line 2", "answer", "text", "1732"],
    ),
    "unknown dtype": ({"p.md": b"Text."}, ["p.md", "--dry-run", "--dtype", "float31"], ["dtype", "bfloat16"]),
    "unknown targets": ({"p.md": b"Text."}, ["p.md", "--dry-run", "--set", "settings.targets=foo-linear"], ["foo-linear", "qv"]),
    "unknown style in a dry run": ({"p.md": b"Text."}, ["p.md", "--dry-run", "--style", "poem"], ["poem", "implications"]),
    "unknown model": (
        {"p.md": b"Text.", "q.json": b"GOOD"},
        ["p.md", "--quiz", "q.json", "--model", "no/such"],
        ["no/such", "hub"],
    ),
    "unknown builtin": (
        {"p.md": b"Text.", "q.json": b"GOOD"},
        ["p.md", "--quiz", "q.json", "--model", "builtin:x"],
        ["builtin:smollm2"],
    ),
    "unknown style": ({"p.md": b"Text."}, ["p.md", "--style", "poem"], ["poem", "implications"]),
    "unknown setting": ({"p.md": b"Text."}, ["p.md", "--set", "settings.epoch=3"], ["settings.epoch"]),
    "out of bounds": ({"p.md": b"Text."}, ["p.md", "--edits", "0"], ["edits", "greater than or equal to 1"]),
    "no such almanac passage": ({}, ["almanac:test:41"], ["1 to 40"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_says_what_and_changes_nothing(command: Command, quiz_file: Path, tmp_path: Path, case: str) -> None:
    files, arguments, parts = BAD_INPUT[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(quiz_file.read_bytes() if content == b"GOOD" else content)
    done = command("learn", *arguments, "--memory", "m", cwd=tmp_path)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "m").exists()


def test_a_long_passage_is_split_and_says_so(command: Command, tiny_model: Path, quiz_file: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(" ".join(f"Sentence number {i} is about the bridge." for i in range(60)))
    done = command(
        "learn", long, "--quiz", quiz_file, "--memory", tmp_path / "m", "--model", tiny_model, "--edits", 1,
        "--set", "edit.sampling.max_new_tokens=8", "--set", "edit.form=plain", "--set", "settings.epochs=1",
        "--set", "edit.unit=passage", "--set", "edit.shots=0", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "split into 3 parts" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["passage"]["parts"] == 3


def memory_of_two(tiny_model: Path, folder: Path, keep: str) -> Path:
    """A memory with two entries, committed by the library since a random model can't pass a quiz."""
    from selfedit.config import Settings
    from selfedit.lm.adapter import new_adapter, save_adapter
    from selfedit.lm.load import load_model
    from selfedit.memory.ledger import Base

    lm = load_model(str(tiny_model))
    memory = Memory.create(folder, Base(lm.name, lm.fingerprint), keep)
    for number in (1, 2):
        adapter = new_adapter(lm, Settings(rank=4, alpha=64), number)
        for _, up in adapter.weights.values():
            up.normal_()
        with memory.writing():
            made = memory.scratch() / "a"
            save_adapter(adapter, made, lm.name)
            record = {
                "title": f"Topic {number}",
                "text": f"It is {number}.",
                "style": "self-qa",
                "quiz": [
                    {"question": f"What is it {n}?", "answer": "x", "aliases": [], "paraphrases": [], "chose": n < 2}
                    for n in range(4)
                ],
                "documents": [{"text": f"It is {number}.", "request": [["user", "What is it?"]]}],
                "settings": Settings(rank=4, epochs=2).model_dump(mode="json"),
                "seed": number,
                "config": {"dtype": "float32"},
                "marks": {
                    "choosing": {"before": 0.0, "after": 0.5, "committed": 0.5},
                    "reporting": {"n": 2, "before": 0.0, "after": 1.0},
                },
                "created": "2026-01-01T00:00:00Z",
            }
            memory.commit(record, made)
    return folder


@pytest.fixture
def taught(tiny_model: Path, tmp_path: Path) -> Path:
    """Its adapters answer together."""
    return memory_of_two(tiny_model, tmp_path / "taught", "stack")


@pytest.fixture
def apart(tiny_model: Path, tmp_path: Path) -> Path:
    """Its adapters are kept apart."""
    return memory_of_two(tiny_model, tmp_path / "apart", "bank")


def test_memory_commands(command: Command, taught: Path, tmp_path: Path) -> None:
    listed = json.loads(command("memory", "list", "--memory", taught, "--json").stdout)
    assert [(row["entry"], row["title"], row["active"]) for row in listed["entries"]] == [
        (1, "Topic 1", True),
        (2, "Topic 2", True),
    ]
    assert "Topic 2" in command("memory", "list", "--memory", taught).stdout
    assert json.loads(command("memory", "show", 2, "--memory", taught).stdout)["title"] == "Topic 2"
    assert "no entry 9" in command("memory", "show", 9, "--memory", taught).stderr
    answer = command("ask", "What is it?", "--memory", taught)
    assert answer.returncode == 0, answer.stderr

    for form in ("merged", "peft"):
        done = command("memory", "export", tmp_path / form, "--memory", taught, "--as", form)
        assert done.returncode == 0, done.stderr
    assert "exists" in command("memory", "export", tmp_path / "peft", "--memory", taught).stderr

    undone = command("memory", "undo", "--memory", taught)
    assert undone.returncode == 0 and "entry 2" in undone.stdout
    assert Memory.open(taught).state.entries == (1,)
    assert command("ask", "What is it?", "--memory", taught).returncode == 0


def test_exports_answer_like_the_memory(command: Command, taught: Path, tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from selfedit.memory.compose import answering, export

    memory = Memory.open(taught)
    export(memory, tmp_path / "merged", merged=True)
    export(memory, tmp_path / "peft", merged=False)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        mine = answering(memory).lm.model(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        bare = base(input_ids=ids).logits
        peft = PeftModel.from_pretrained(base, tmp_path / "peft")(input_ids=ids).logits
    assert torch.allclose(mine, merged, atol=1e-3) and torch.allclose(mine, peft, atol=1e-3)
    assert not torch.allclose(mine, bare, atol=0.1)


def test_undo_of_an_earlier_entry_trains_the_later_ones_again(command: Command, taught: Path, tmp_path: Path) -> None:
    done = command("memory", "undo", 1, "--memory", taught, "--json", tmp_path / "u.json")
    assert done.returncode == 0, done.stderr
    assert "training entry 2 again" in done.stderr
    undone = json.loads((tmp_path / "u.json").read_text())
    rows = [(row["entry"], row["n"], row["undone"]) for row in undone["entries"]]
    assert undone["entry"] == 1 and rows == [(1, 4, True), (2, 4, False)], "what the memory still knows of it is shown too"
    assert "taken back" in done.stdout
    memory = Memory.open(taught)
    assert memory.state.entries == (2,)
    assert memory.adapter_folders()[0].name != "0002"
    assert command("ask", "What is it?", "--memory", taught).returncode == 0


def test_a_bank_answers_by_what_is_asked_and_gives_entries_back_untouched(command: Command, apart: Path, tmp_path: Path) -> None:
    from selfedit.memory.compose import answering

    memory = Memory.open(apart)
    digest, folders = memory.digest(), memory.adapter_folders()
    model = answering(memory)
    layers = model.lm.model._selfedit_layers
    with model.to("Topic 2\nIt is 2.") as who:
        second = {name: layer.active for name, layer in layers.items() if layer.active is not None}
        assert who == "what was learnt about Topic 2"
    with model.to("qqqq") as who:
        assert all(layer.active is None for layer in layers.values()) and who.startswith("the base")

    assert second.keys() == (own := load_adapter(folders[1]).weights).keys()
    assert all((second[name][0] == own[name][0]).all() for name in own)
    asked = command("ask", "It is 2.", "--title", "Topic 2", "--memory", apart)
    assert asked.returncode == 0 and "asked of what was learnt about Topic 2" in asked.stderr
    refused = command("memory", "export", tmp_path / "merged", "--memory", apart)
    assert refused.returncode == 1 and "kept apart" in refused.stderr and "memory consolidate" in refused.stderr
    done = command("memory", "undo", 1, "--memory", apart)
    assert done.returncode == 0 and "training" not in done.stderr, done.stderr
    memory = Memory.open(apart)
    assert memory.adapter_folders() == folders[1:] and memory.digest() != digest
    assert command("memory", "export", tmp_path / "merged", "--memory", apart).returncode == 0
    other = command("learn", "almanac:dev:6", "--memory", apart, "--keep", "stack", "--model", memory.base.name)
    assert other.returncode == 1 and "made as a bank" in other.stderr


def test_a_damaged_adapter_can_be_taken_out(command: Command, apart: Path, tmp_path: Path) -> None:
    first, second = Memory.open(apart).adapter_folders()
    aside = shutil.move(second, tmp_path / "second")
    shutil.rmtree(first)
    listed = command("memory", "list", "--memory", apart)
    assert listed.returncode == 0 and "Topic 1" in listed.stdout and "can't be read" in listed.stderr
    done = command("memory", "undo", 1, "--memory", apart, "--json", tmp_path / "u.json")
    assert done.returncode == 0 and "can't be told" in done.stderr, done.stderr
    undone = json.loads((tmp_path / "u.json").read_text())
    assert undone["state"] is None and [(row["before"], row["after"]) for row in undone["entries"]] == [(None, None)] * 2
    shutil.move(aside, second)
    assert Memory.open(apart).state.entries == (2,)
    assert command("ask", "It is 2.", "--title", "Topic 2", "--memory", apart).returncode == 0


def test_a_bank_of_one_consolidated_adapter_gives_single_entries_back(command: Command, apart: Path) -> None:
    done = command("memory", "consolidate", "--memory", apart, "--budget", 1)
    assert done.returncode == 0, done.stderr
    assert [slot.entries for slot in Memory.open(apart).state.slots] == [(1, 2)]
    (folder,) = Memory.open(apart).adapter_folders()
    with safe_open(folder / STATES, framework="pt") as file:
        assert len(list(file.keys())) == 2, "what both passages are found by lies beside their adapter"
    done = command("memory", "undo", 1, "--memory", apart)
    assert done.returncode == 0 and "training entry 2 again" in done.stderr, done.stderr
    assert [slot.entries for slot in Memory.open(apart).state.slots] == [(2,)]
    done = command("eval", "general", "--memory", apart, "--json", apart / "general.json")
    assert done.returncode == 0 and "memory" in done.stdout and "right, points" in done.stdout, done.stderr
    change = json.loads((apart / "general.json").read_text())["memory"]["change"]
    assert change["right"]["n"] == change["logprob"]["n"] >= 200 > change["text"]["n"] > 1


def test_consolidation_check_and_undo_out_of_it(command: Command, taught: Path, tmp_path: Path) -> None:
    done = command("memory", "check", "--memory", taught, "--json", tmp_path / "check.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "check.json").read_text())
    assert [(row["entry"], row["n"], row["learnt"], row["now"], row["lost"]) for row in rows] == [
        (1, 4, 0.75, 0.0, True),
        (2, 4, 0.75, 0.0, True),
    ]
    assert "lost" in done.stdout and "memory consolidate" in done.stdout
    wrong = command("memory", "consolidate", "--memory", taught, "--set", "epoch=4")
    assert wrong.returncode == 1 and "epoch: " in wrong.stderr and "Traceback" not in wrong.stderr
    sets = ("--set", "rank=3", "--set", "epochs=2")
    done = command("memory", "consolidate", "--memory", taught, "--budget", 1, *sets, "--json", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "c.json").read_text())["accepted"] is True
    memory = Memory.open(taught)
    assert len(memory.state.slots) == 1 and memory.state.entries == (1, 2)
    assert memory.state.slots[0].changed == {"rank": 3, "epochs": 2}
    assert {adapter[0].shape[0] for adapter in load_adapter(memory.adapter_folders()[0]).weights.values()} == {3}
    again = command("memory", "consolidate", "--memory", taught)
    assert again.returncode == 1 and "nothing to put together" in again.stderr
    done = command("memory", "check", "--memory", taught)
    assert "lost" in done.stdout and "memory consolidate" not in done.stdout, "it would be refused"
    done = command("memory", "undo", "--memory", taught)
    assert done.returncode == 0 and "training entry 1 again" in done.stderr, done.stderr
    left = Memory.open(taught)
    assert left.state.entries == (1,) and left.state.slots[0].changed == {"rank": 3, "epochs": 2}
    assert {adapter[0].shape[0] for adapter in load_adapter(left.adapter_folders()[0]).weights.values()} == {3}


def test_a_consolidation_that_loses_too_much_changes_nothing(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfedit.graders.text import RecallGrader
    from selfedit.memory import rebuild

    marks = iter([{1: 0.5, 2: 0.5}, {1: 0.0, 2: 1.0}])
    monkeypatch.setattr(rebuild, "exams", lambda *_: next(marks))
    memory = Memory.open(taught)
    before = memory.digest()
    with memory.writing():
        found = rebuild.consolidate(memory, lambda record: RecallGrader(), lambda text: None, budget=0.1)
        assert not list((taught / "adapters").glob(".candidates-*")), "nothing of it is left behind"
    assert not found["accepted"] and memory.digest() == before and found["after"] == 0.5, "one entry loses two of four questions"


def test_a_consolidation_that_is_killed_leaves_the_old_state(taught: Path) -> None:
    before = Memory.open(taught).digest()
    process = start_consolidating(taught)
    wait_for(taught, f"adapters/.candidates-{process.pid}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    memory = Memory.open(taught)
    assert memory.digest() == before and memory.state.entries == (1, 2)


@pytest.mark.slow
def test_a_consolidation_killed_at_ten_moments_leaves_an_old_or_new_state(taught: Path, tmp_path: Path) -> None:
    chance = random.Random(10)
    began = time.monotonic()
    shutil.copytree(taught, tmp_path / "whole")
    assert start_consolidating(tmp_path / "whole").wait() == 0
    lasts = time.monotonic() - began
    before = Memory.open(taught).digest()
    killed = 0
    for number in range(10):
        memory = tmp_path / str(number)
        shutil.copytree(taught, memory)
        process = start_consolidating(memory)
        time.sleep(chance.uniform(0.2, 1) * lasts)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        after = Memory.open(memory)
        old = after.digest() == before
        assert old or (len(after.state.slots) == 1 and after.state.entries == (1, 2))
        assert start_consolidating(memory).wait() == (0 if old else 1), "it goes on from what is there"
        assert len(Memory.open(memory).state.slots) == 1
    assert killed >= 5


def test_learning_says_what_earlier_entries_lose(
    command: Command, taught: Path, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path
) -> None:
    more = ("--set", "replay=0.5", *PLAIN, "--json", tmp_path / "r.json")
    done = learn(command, tiny_model, passage_file, quiz_file, taught, *more)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert [(row["entry"], row["title"]) for row in result["earlier"]] == [(1, "Topic 1"), (2, "Topic 2")]
    assert all(0 <= row[when] <= 1 for row in result["earlier"] for when in ("before", "after"))
    assert "2 earlier entries, right:" in done.stdout


def test_learning_into_a_bank_asks_what_the_memory_answers(
    command: Command, apart: Path, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path
) -> None:
    done = learn(command, tiny_model, passage_file, quiz_file, apart, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert [(row["entry"], row["before"], row["after"]) for row in result["earlier"]] == [(1, 0, 0), (2, 0, 0)]
    general = result["report"]["general"]
    assert general["n"] > 60 and set(general["right"]) == set(general["text"]) == {"before", "after"}
    assert "General questions" in done.stdout
    both = learn(command, tiny_model, passage_file, quiz_file, apart, "--set", "replay=0.5")
    assert both.returncode == 1 and "settings.null_space=0 and settings.dead_zone=0" in " ".join(both.stderr.split())
    refused = learn(command, tiny_model, passage_file, quiz_file, apart, "--set", "replay=0.5", *PLAIN)
    assert refused.returncode == 1 and "replay is 0.5" in refused.stderr


def test_a_bank_s_exam_is_each_question_s_own_way(tiny_model: Path, apart: Path) -> None:
    from dataclasses import replace

    from selfedit.contexts import Passage, Question
    from selfedit.lm.adapter import install
    from selfedit.lm.load import load_model
    from selfedit.memory.compose import general_kept, kept_by, newest_answers, sample_kept, sit_kept
    from selfedit.tasks.general import right, sampled, sit_general
    from selfedit.tasks.knowledge.task import KnowledgeTask

    lm, kept = load_model(str(tiny_model), "cpu", "float32"), kept_by(Memory.open(apart))
    own, away = Question("Topic 2\nIt is 2.", "x"), Question("%%%%", "y")
    exam = KnowledgeTask(form="bare", margins=True), Passage("Topic 2", "It is 2.", (own, away))
    (routed,) = sit_kept(lm, [exam], kept)
    (base,) = exam[0].examine(lm, [(0, exam[1])], 0)
    install(lm, load_adapter(Path(kept.adapters[1][0])))
    (second,) = exam[0].examine(lm, [(0, exam[1])], 0)
    install(lm, None)
    assert base.log_probabilities[0] != second.log_probabilities[0]
    assert routed.log_probabilities == (second.log_probabilities[0], base.log_probabilities[1])
    assert routed.margins == (second.margins[0], base.margins[1])
    newer = kept.beside(kept.adapters[0][0], exam[1])
    assert newest_answers(lm, *exam, newer) == [True, False]
    assert newest_answers(lm, *exam, replace(newer, keep="stack")) == [True, True]
    general = general_kept(lm, replace(kept, adapters=()))
    assert general.answers == sit_general(lm).answers
    sample = sample_kept(lm, replace(kept, adapters=()))
    assert sample["right"] == sum(right(general)[at] for at in sampled()) / sample["n"]


def test_an_empty_memory_may_become_another_kind(tmp_path: Path) -> None:
    from selfedit.memory.ledger import Base

    memory = Memory.create(tmp_path / "m", Base("m", "f"))
    with memory.writing():
        memory.bind(memory.base, "")
        assert memory.keep == "bank"
        memory.bind(memory.base, "stack")
    assert Memory.open(tmp_path / "m").keep == "stack"


def test_another_base_model_is_refused(
    command: Command, taught: Path, tiny_base_model: Path, passage_file: Path, quiz_file: Path, tiny_model: Path
) -> None:
    before = Memory.open(taught).digest()
    done = learn(command, tiny_base_model, passage_file, quiz_file, taught)
    assert done.returncode == 1 and str(tiny_base_model) in done.stderr and str(tiny_model) in done.stderr
    assert Memory.open(taught).digest() == before


def test_chat_talks(command: Command, taught: Path) -> None:
    done = command("chat", "--memory", taught, input="What is it?\nAnd then?\n\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("> ") >= 3


def test_compile(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "edits.json"
    items = [
        {"title": "A", "context": "Ca. ", "completions": ["1. x\n2. y", ""]},
        {"title": "B", "context": "Cb.", "completion": "one\n---\ntwo"},
    ]
    file.write_text(json.dumps(items))
    done = command("compile", file, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"title": "A", "completions": [{"documents": ["A\n1. x", "A\n2. y", "A\nCa."]}, {"documents": ["A\nCa."]}]},
        {"title": "B", "completions": [{"documents": ["B\none", "B\ntwo", "B\nCb."]}]},
    ]
    run = {"split_newlines": False, "articles": [{"title": "A", "context": "C", "completions": [{"text": "1. x\n2. y"}]}]}
    file.write_text(json.dumps(run))
    assert json.loads(command("compile", file).stdout)[0]["completions"][0]["documents"] == ["A\n1. x\n2. y", "A\nC"]
    assert json.loads(command("compile", file, "--split", "lines", "--limit-documents", 1).stdout)[0]["completions"][0][
        "documents"
    ] == [
        "A\n1. x",
        "A\nC",
    ]
    pairs = {
        "title": "A",
        "context": "C is 5.",
        "completions": ["Q: What is C?\nA: 5\nQ: What is C?\nA: 5\n\n1. C is 5, they say.\n"],
    }
    file.write_text(json.dumps([pairs]))
    (shown,) = json.loads(command("compile", file, "--form", "chat").stdout)[0]["completions"]
    assert shown["documents"] == ["A What is C?\n5", "What is C?\n5", "C is 5, they say.", "C is 5."]
    assert len(shown["requests"]) == 4 and "A" in shown["requests"][2]
    file.write_text(json.dumps([{"title": "A", "completions": []}]))
    bad = command("compile", file)
    assert bad.returncode == 1 and "item 1" in bad.stderr and "context" in bad.stderr


def test_eval_makes_a_table_and_resumes(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    flags = (
        "eval", "knowledge", "--data", "almanac", "--split", "dev", "--limit", 3, "--model", tiny_model,
        "--set", "edit.sampling.max_new_tokens=12", "--set", "edit.form=plain", "--set", "settings.epochs=1",
        "--set", "settings.rank=4", *WITHIN,
    )  # fmt: skip
    done = command(*flags, "--run", tmp_path / "run", "--json", tmp_path / "t.json")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "t.json").read_text())
    assert table["n"] == 3 and list(table["methods"]) == ["none", "passage", "passage-matched", "self", "context"]
    assert {"n", "mean", "se"} == set(table["methods"]["self"]["accuracy"])
    matched, own = (table["methods"][name] for name in ("passage-matched", "self"))
    assert matched["steps"]["mean"] == pytest.approx(own["steps"]["mean"], abs=0.5) and own["steps"]["mean"] > 0
    assert matched["tokens"]["mean"] == pytest.approx(own["tokens"]["mean"], rel=0.1)
    assert {"mean", "low", "high", "se", "n"} <= set(table["differences"][0])
    rows = (tmp_path / "run" / "trials.jsonl").read_text()
    assert "run is there already" in command(*flags, "--run", tmp_path / "run").stderr
    other = command(*flags, "--run", tmp_path / "run", "--resume", "--set", "settings.epochs=2").stderr
    assert "settings.epochs=1, now 2" in other
    assert "--run FOLDER" in command(*flags, "--resume").stderr
    (tmp_path / "run" / "trials.jsonl").write_text(rows.split("\n")[0] + "\n" + rows.split("\n")[1][:40])
    again = command(*flags, "--run", tmp_path / "run", "--resume", "--json", tmp_path / "t2.json")
    assert again.returncode == 0, again.stderr
    resumed = (tmp_path / "run" / "trials.jsonl").read_text()
    for one, other in zip(sorted(rows.split("\n")), sorted(resumed.split("\n")), strict=True):
        assert one == other == "" or without_times(json.loads(one)) == without_times(json.loads(other))
    other = command(*flags, "--run", tmp_path / "run", "--resume", "--seed", 4)
    assert other.returncode == 1 and "seed" in other.stderr
    kept = tmp_path / "run" / "data.json"
    data = json.loads(kept.read_text())
    data[1]["questions"][0]["answer"] = "another gold"
    kept.write_text(json.dumps(data))
    other = command(*flags, "--run", tmp_path / "run", "--resume")
    assert other.returncode == 1 and "data.json: 1 contexts" in other.stderr and "aren't what they were" in other.stderr
    for unused, said in (("--writer", "seal-writer"), ("--external", "external")):
        other = command(*flags, unused, tmp_path / "run")
        assert other.returncode == 1 and "no method takes it" in other.stderr and said in other.stderr


def test_kill_at_any_moment_leaves_an_old_or_new_state(
    command: Command, taught: Path, tiny_model: Path, passage_file: Path, quiz_file: Path
) -> None:
    """Three random moments here; twenty with the mark slow."""
    kill_many(3, taught, tiny_model, passage_file, quiz_file)
    assert learn(command, tiny_model, passage_file, quiz_file, taught).returncode == 0


@pytest.mark.slow
def test_kill_at_twenty_moments(command: Command, taught: Path, tiny_model: Path, passage_file: Path, quiz_file: Path) -> None:
    kill_many(20, taught, tiny_model, passage_file, quiz_file)
    assert learn(command, tiny_model, passage_file, quiz_file, taught).returncode == 0


def test_two_processes_on_one_memory(tiny_model: Path, passage_file: Path, quiz_file: Path, taught: Path) -> None:
    within = tuple(map(str, WITHIN))
    first = start_learning(passage_file, quiz_file, taught, tiny_model, "--set", "settings.epochs=50", *within)
    wait_for(taught, "unfinished/*/self-edits.json")
    second = start_learning(passage_file, quiz_file, taught, tiny_model, *within)
    told = [process.communicate(timeout=300)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), told
    assert "in use by another process" not in told[0] and "in use by another process" in told[1]


def test_a_full_disk_leaves_the_memory_as_it_was(
    command: Command, tiny_model: Path, passage_file: Path, quiz_file: Path, taught: Path
) -> None:
    import resource

    before = Memory.open(taught).digest()
    full = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))}
    done = learn(command, tiny_model, passage_file, quiz_file, taught, **full)
    assert done.returncode == 1 and "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert Memory.open(taught).digest() == before
    assert learn(command, tiny_model, passage_file, quiz_file, taught).returncode == 0


def test_ctrl_c_leaves_things_whole(tiny_model: Path, passage_file: Path, quiz_file: Path, taught: Path) -> None:
    before = Memory.open(taught).digest()
    process = start_learning(passage_file, quiz_file, taught, tiny_model, "--set", "settings.epochs=200")
    wait_for(taught, "unfinished/*/self-edits.json")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in told and "Traceback" not in told
    assert Memory.open(taught).digest() == before
    assert sorted(file.name for file in (taught / "adapters").iterdir()) == ["0001", "0002"], "what was tried isn't among them"
    again = start_learning(passage_file, quiz_file, taught, tiny_model, "--set", "settings.epochs=200")
    said = next(line for line in again.stderr or () if "going on" in line)
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=60)
    assert "going on where this call was interrupted; done already: " in said and "self-edits" in said


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.05)


def start_consolidating(memory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "selfedit", "memory", "consolidate", "--memory", str(memory), "--budget", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def start_learning(passage: Path, quiz: Path, memory: Path, model: Path, *more: str) -> subprocess.Popen[str]:
    arguments = ["learn", passage, "--quiz", quiz, "--memory", memory, "--model", model, *FAST, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "selfedit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def kill_many(times: int, memory: Path, model: Path, passage: Path, quiz: Path) -> None:
    chance = random.Random(times)
    before = Memory.open(memory).digest()
    for _ in range(times):
        process = start_learning(passage, quiz, memory, model)
        time.sleep(chance.uniform(0.5, 14))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        opened = Memory.open(memory)
        after = opened.digest()
        assert after == before or opened.state.entries[:2] == (1, 2)
        before = after


@pytest.mark.slow
def test_bench_inner_compares_all_ways(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    small = ("--edits", 2, "--epochs", 2, "--repeats", 1, "--last", 2)
    done = command("bench", "inner", "--model", tiny_model, *small, "--json", file)
    assert done.returncode == 0, done.stderr
    assert "stacked-last" in done.stdout
    table = json.loads(file.read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["reference-qv", "peft-qv", "stacked-qv", "peft", "trl", "stacked", "stacked-last"]
    assert table["peak_gflops"] > 0 and table["machine"]["threads"] == 1
    for name in ("stacked", "stacked-qv"):
        assert 0 < rows[name]["max_weight_diff"] < 1e-5
        assert rows[name]["exam_share"] > 0 and rows[name]["slots_add_mb"] >= 0
    assert rows["stacked-qv"]["ratio_reference"] > 1
    assert all(row["seconds_per_edit"] > 0 and row["peak_memory_mb"] > 100 for row in rows.values())


def test_brackets_in_texts_are_shown_as_they_are(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    passage, quiz = tmp_path / "p.md", tmp_path / "q.json"
    passage.write_text("# Arrays [/x]\n\nAn array[int] is made of slate. It was built in 1732.\n")
    quiz.write_text(json.dumps([{"question": f"What is array[int] {n}?", "answer": f"[sic] {n}"} for n in range(2)]))
    done = learn(command, tiny_model, passage, quiz, tmp_path / "m")
    assert done.returncode == 0, done.stderr
    assert "Arrays [/x]" in done.stdout and "array[int]" in done.stdout and "[sic]" in done.stdout


def test_the_grouping_of_trials_does_not_depend_on_the_workers(
    command: Command, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path
) -> None:
    results = []
    for workers in (1, 2):
        file = tmp_path / f"{workers}.json"
        done = learn(
            command,
            tiny_model,
            passage_file,
            quiz_file,
            tmp_path / str(workers),
            "--workers",
            workers,
            "--slots",
            2,
            "--json",
            file,
        )
        assert done.returncode == 0, done.stderr
        results.append(without_times(json.loads(file.read_text())))
    assert results[0] == results[1]


def test_json_that_could_not_be_written_is_refused_before_the_work(
    command: Command, tiny_model: Path, passage_file: Path, quiz_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    done = learn(command, tiny_model, passage_file, quiz_file, tmp_path / "m", "--json", tmp_path / "file" / "out.json")
    assert done.returncode == 1 and "can't be written" in done.stderr
    assert not (tmp_path / "m").exists()


def test_a_base_that_changed_is_refused_everywhere(command: Command, tiny_model: Path, taught: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=9)
    for arguments in (("export", tmp_path / "out"), ("undo", 1)):
        done = command("memory", *arguments, "--memory", taught, "--model", other)
        assert done.returncode == 1 and "made with the base model" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()
    assert len(Memory.open(taught).state.slots) == 2


def test_dry_run_of_a_long_path_reads_back(command: Command, tmp_path: Path) -> None:
    model = "/" + "long/" * 40 + "model"
    done = command("learn", "x.md", "--model", model, "--dry-run", env={"COLUMNS": "80"})
    file = tmp_path / "c.yaml"
    file.write_text(done.stdout)
    again = command("learn", "x.md", "--config", file, "--dry-run")
    assert again.stdout == done.stdout and model in again.stdout


def test_an_eval_of_an_unknown_model_leaves_no_run_behind(command: Command, tmp_path: Path) -> None:
    done = command("eval", "knowledge", "--model", "./nowhere", "--run", tmp_path / "run")
    assert done.returncode == 1 and "no such model" in done.stderr
    assert not (tmp_path / "run").exists()


def test_slow_work_says_how_far_it_is_where_no_bar_can_be_drawn() -> None:
    now, file = 0.0, io.StringIO()
    with WorkBar("{task.description} passages", Console(file=file, width=80), lambda: now) as bar:
        task = bar.add_task("trying", total=10)
        for done in range(1, 6):
            now += 45
            bar.update(task, completed=done)
        now += 90
        bar.update(bar.add_task("making a quiz of", total=None), completed=0)
    lines = [line for line in file.getvalue().splitlines() if line]
    assert lines == [
        "trying passages 2/10, 0:01:30 so far, 0:06:00 left",
        "trying passages 4/10, 0:03:00 so far, 0:04:30 left",
        "making a quiz of passages, 0:00:00 so far",
    ]
