"""Ways of keeping, one by one, and ``selfedit continual`` as a process: the matrix, kill and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfedit.config import KeepConfig, Settings
from selfedit.contexts import Passage, Question
from selfedit.edits import Document, Message
from selfedit.errors import DataError
from selfedit.keepers import KEEPERS, keeper
from selfedit.keepers.base import Held, Lesson
from selfedit.keepers.orthogonal import subspaces
from selfedit.tasks.knowledge.prompts import exam_prompt

Command = Callable[..., subprocess.CompletedProcess[str]]
SETTINGS = Settings(rank=4, alpha=8, layers="all", epochs=40, learning_rate=5e-3, clip=1e6)


def lesson(name: str, word: str) -> Lesson:
    """Teaches the answer to one question."""
    question = Question(f"What colour is {name}?", word)
    passage = Passage(name, f"{name} is {word}.", (question,))
    document = Document(word, exam_prompt(question.question, name, chat=True))
    return Lesson(passage, ((document,),), (question,))


LESSONS = [lesson(letter, word) for letter, word in (("Alder", "red"), ("Birch", "blue"), ("Cedar", "green"))]


def learnt(lm: Any, name: str, lessons: list[Lesson] = LESSONS, **more: Any) -> tuple[Held, list[Any]]:
    method, held, costs = keeper(name, KeepConfig(**more)), Held(), []
    for seed, one in enumerate(lessons):
        held, cost, accepted = method.commit(lm, held, one, SETTINGS, seed)
        costs.append((cost, accepted))
    return held, costs


def likelihoods(lm: Any, name: str, held: Held, **more: Any) -> list[float]:
    sat, _ = keeper(name, KeepConfig(**more)).examine(lm, held, [one.passage for one in LESSONS])
    return [sitting.log_probabilities[0] for sitting in sat]


def test_merge_adds_one_adapter_a_commit_and_leaves_the_model_as_it_was(lm: Any) -> None:
    before = likelihoods(lm, "merge", Held())
    held, costs = learnt(lm, "merge")
    assert len(held.adapters) == len(held.lessons) == held.pending == 3 and all(accepted for _, accepted in costs)
    after = likelihoods(lm, "merge", held)
    assert after[2] > before[2] + 0.3, "what was learnt last is known"
    assert likelihoods(lm, "merge", Held()) == before


def test_replay_keeps_the_first_lesson_better_than_merge(lm: Any) -> None:
    merged, replayed = (
        likelihoods(lm, name, learnt(lm, name, replay_share=0.6, base_share=0.0)[0]) for name in ("merge", "replay")
    )
    assert replayed[0] > merged[0], (merged, replayed)


def test_replay_mixes_in_its_share(lm: Any) -> None:
    part = KEEPERS["replay"](KeepConfig(replay_share=0.5, base_share=0.0))
    new = Lesson(LESSONS[0].passage, (LESSONS[0].edits[0] * 4,))
    held = Held((), (LESSONS[1], LESSONS[2]))
    assert sorted(d.text for d in part.documents(lm, held, new, 0)) == ["blue", "green"], "as many as there are, of 4 wanted"
    assert part.documents(lm, Held(), new, 0) == []
    mixed = KEEPERS["replay"](KeepConfig(replay_share=0.0, base_share=0.5))
    found = mixed.documents(lm, Held(), new, 0)
    assert 0 < len(found) <= 4 and found == mixed.documents(lm, Held(), new, 0)


def test_consolidation_puts_one_adapter_in_the_place_of_all(lm: Any) -> None:
    held, costs = learnt(lm, "consolidate", every=2)
    assert len(held.adapters) == 2 and held.pending == 1 and len(held.lessons) == 3
    assert "consolidated" in costs[1][0].happened and costs[1][0].tokens > costs[0][0].tokens
    whole, _ = learnt(lm, "consolidate", every=3)
    assert len(whole.adapters) == 1
    assert min(likelihoods(lm, "consolidate", whole)) > max(likelihoods(lm, "merge", Held())) + 0.2


def test_a_gate_scales_or_rejects(lm: Any) -> None:
    strict, costs = learnt(lm, "gate", exam_drop=0.0, bits=0.0, divergence=0.0)
    assert strict.adapters == () and not any(accepted for _, accepted in costs)
    wide, costs = learnt(lm, "gate", exam_drop=1.0, bits=100.0, divergence=100.0)
    assert len(wide.adapters) == 3 and all(cost.notes["scale"] == 1.0 for cost, _ in costs)
    plain, _ = learnt(lm, "merge")
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*(h.adapters[0].weights.values() for h in (wide, plain)), strict=True))
    budgets = ({"exam_drop": 1.0, "bits": bits, "divergence": bits} for bits in (0.01, 0.03, 2.0))
    between = [learnt(lm, "gate", LESSONS[:1], **budget)[1][0][0].notes["scale"] for budget in budgets]
    assert between == sorted(between) and 0 < between[1] < between[2] == 1, between


def test_orthogonal_updates_read_what_no_earlier_one_reads(lm: Any) -> None:
    held, _ = learnt(lm, "orthogonal", LESSONS[:2])
    first, second = held.adapters
    for name, basis in subspaces([first], 4).items():
        assert (second.weights[name][0] @ basis.T).abs().max() < 1e-4
    assert likelihoods(lm, "merge", held)[1] > likelihoods(lm, "merge", Held())[1] + 0.3


def test_distillation_stays_nearer_to_the_base(lm: Any) -> None:
    def distance(held: Held) -> float:
        from selfedit.lm.adapter import standing
        from selfedit.tasks.general import sit_general

        base = sit_general(lm).log_probabilities
        with standing(lm, held.adapters):
            now = sit_general(lm).log_probabilities
        return sum(abs(a - b) for a, b in zip(base, now, strict=True))

    free, held = (learnt(lm, name, LESSONS[:1], distil_weight=4.0)[0] for name in ("merge", "distil"))
    assert distance(held) < distance(free)


def test_retention_takes_the_self_edit_with_the_best_reward(lm: Any) -> None:
    held, _ = learnt(lm, "merge", LESSONS[:1])
    other = Document("qqqq", (Message("user", "Something else?"),))
    two = replace(LESSONS[1], edits=((other,), LESSONS[1].edits[0]))
    method = keeper("retention", KeepConfig(retention_weight=0.0))
    after, _, _ = method.commit(lm, held, two, SETTINGS, 3)
    assert after.lessons[1].edits == (LESSONS[1].edits[0],), "the one that teaches the answer"
    plain, _, _ = keeper("merge", KeepConfig()).commit(lm, held, LESSONS[1], SETTINGS, 3)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(*(h.adapters[1].weights.values() for h in (after, plain)), strict=True))


def test_a_bank_routes_each_question_to_its_adapter(lm: Any) -> None:
    held, _ = learnt(lm, "bank")
    alone = [likelihoods(lm, "bank", learnt(lm, "bank", [one])[0], threshold=-1.0)[at] for at, one in enumerate(LESSONS)]
    passages = [one.passage for one in LESSONS]
    method = keeper("bank", KeepConfig(threshold=-1.0))
    _, cost = method.examine(lm, held, passages)
    assert 0 <= cost.notes["routed"] <= 1
    base = likelihoods(lm, "bank", held, threshold=1.0)
    assert base == likelihoods(lm, "merge", Held()), "nothing is like anything: the base answers"
    assert alone[0] > base[0]


def test_retrieval_finds_the_passage(lm: Any) -> None:
    held, costs = learnt(lm, "retrieve")
    assert all(cost.tokens == 0 for cost, _ in costs)
    sat, cost = keeper("retrieve", KeepConfig()).examine(lm, held, [one.passage for one in LESSONS])
    assert cost.notes["found"] == 1.0 and len(sat) == 3
    context, _ = keeper("context", KeepConfig()).examine(lm, held, [one.passage for one in LESSONS])
    assert [s.log_probabilities for s in context] == [s.log_probabilities for s in sat]


def test_combinations_and_unknown_names(lm: Any) -> None:
    held, _ = learnt(lm, "replay+consolidate+gate", every=2, exam_drop=1.0, bits=100.0, divergence=100.0)
    assert len(held.adapters) == 2
    with pytest.raises(DataError, match=r"nothing.*merge"):
        keeper("nothing", KeepConfig())
    with pytest.raises(DataError, match="can't be put together"):
        keeper("orthogonal+distil", KeepConfig())


FLAGS = (
    "continual", "--split", "test", "--sequences", 2, "--passages", 2, "--set", "edit.sampling.max_new_tokens=12",
    "--set", "edit.form=plain", "--set", "edit.passes=1", "--set", "edit.shots=0", "--set", "settings.epochs=1",
    "--set", "settings.rank=4", "--workers", 0,
)  # fmt: skip


def test_a_run_has_a_matrix_and_resumes(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = (*FLAGS, "--methods", "merge,replay+consolidate,retrieve", "--set", "keep.every=2", "--model", tiny_model)
    done = command(*flags, "--run", run, "--json", tmp_path / "t.json")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "t.json").read_text())
    assert list(table["methods"]) == ["merge", "replay+consolidate", "retrieve"]
    matrix = table["matrix"]["merge"]
    assert len(matrix) == 3 and len(matrix[0]) == 2 and matrix[1][1] is None and matrix[0][1]["n"] == 2
    assert table["methods"]["merge"]["general"]["n"] == 2 and "consolidated" in table["methods"]["replay+consolidate"]
    assert "retention" in done.stdout and not list((run / "states").iterdir()), "finished sequences leave no state behind"
    page = command("report", run, "--out", tmp_path / "page.html")
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "page.html").read_text().count("<figure>") == 3 and "What was kept" in (tmp_path / "page.html").read_text()
    rows = (run / "trials.jsonl").read_text()
    assert rows.count("\n") == 2 + 3 * 2 * 2
    other = command(*flags, "--run", run, "--resume", "--set", "keep.every=3")
    assert other.returncode == 1 and "keep.every=2, now 3" in other.stderr


def test_kill_and_resume_end_in_the_same_rows(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    flags = [str(flag) for flag in (*FLAGS, "--methods", "merge", "--model", tiny_model)]
    whole = command(*flags, "--run", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    start = [sys.executable, "-m", "selfedit", *flags, "--run", str(tmp_path / "killed")]
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    file, deadline = tmp_path / "killed" / "trials.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and (not file.exists() or file.read_bytes().count(b"\n") < 2):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = command(*flags, "--run", tmp_path / "killed", "--resume")
    assert again.returncode == 0, again.stderr
    assert rows_of(file) == rows_of(tmp_path / "whole" / "trials.jsonl")


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    plain = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return sorted(plain, key=lambda row: (row["method"], row["sequence"], row["step"]))


def test_too_few_passages_are_an_error(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    done = command("continual", "--split", "dev", "--sequences", 9, "--model", tiny_model, "--run", tmp_path / "run")
    assert done.returncode == 1 and "9 sequences of 8 need 72 passages" in done.stderr
    done = command("continual", "--methods", "magic", "--model", tiny_model, "--run", tmp_path / "run")
    assert done.returncode == 1 and "magic" in done.stderr and not (tmp_path / "run").exists()
