"""Ways of keeping, one by one, and ``selfedit continual`` as a process: the matrix, kill and resume."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from selfedit.config import ContinualConfig, EditConfig, KeepConfig, Settings
from selfedit.contexts import Passage, Question
from selfedit.continual import Commit, check_run, commit, sequences
from selfedit.edits import Document, Message
from selfedit.errors import DataError
from selfedit.graders.text import ExactMatchGrader
from selfedit.keepers import KEEPERS, keeper
from selfedit.keepers.base import Cost, Held, Lesson
from selfedit.keepers.gate import active, anchors_of
from selfedit.keepers.orthogonal import subspaces
from selfedit.keepers.routes import STATES, keep_states, likenesses, neutral_texts, recall_states, routes_to
from selfedit.lm.adapter import FrozenSum, new_adapter
from selfedit.lm.batch import encode_document
from selfedit.lm.score import divergences, likeliest
from selfedit.matrix import halves, related, table
from selfedit.report.continual import kept_differences_table, kept_table
from selfedit.report.read import RunData, read_run
from selfedit.report.tables import with_interval
from selfedit.runs import Policy, Run
from selfedit.tasks.base import Asked
from selfedit.tasks.general import general_questions, load_general, sit_general
from selfedit.tasks.knowledge.exam import exam_questions
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
    merged, replayed = (likelihoods(lm, name, learnt(lm, name, replay_share=0.6)[0]) for name in ("merge", "replay"))
    assert replayed[0] > merged[0], (merged, replayed)


def test_replay_mixes_in_its_share(lm: Any) -> None:
    part = KEEPERS["replay"](KeepConfig(replay_share=0.5))
    new = Lesson(LESSONS[0].passage, (LESSONS[0].edits[0] * 4,))
    held = Held((), (LESSONS[1], LESSONS[2]))
    assert sorted(d.text for d in part.documents(lm, held, new, 0)) == ["blue", "green"], "as many as there are, of 4 wanted"
    assert part.documents(lm, Held(), new, 0) == []


def test_consolidation_puts_one_adapter_in_the_place_of_all(lm: Any) -> None:
    held, costs = learnt(lm, "consolidate", every=2)
    assert len(held.adapters) == 2 and held.pending == 1 and len(held.lessons) == 3
    assert "consolidated" in costs[1][0].happened and costs[1][0].tokens > costs[0][0].tokens
    whole, _ = learnt(lm, "consolidate", every=3)
    assert len(whole.adapters) == 1
    assert min(likelihoods(lm, "consolidate", whole)) > max(likelihoods(lm, "merge", Held())) + 0.2


def test_a_sleep_may_have_settings_of_its_own(lm: Any) -> None:
    _, plain = learnt(lm, "consolidate", every=3)
    gentle, costs = learnt(lm, "consolidate", every=3, sleep_epochs=2 * SETTINGS.epochs, sleep_rate=1e-9, sleep_share=0.5)
    assert [cost.tokens for cost, _ in costs[:2]] == [cost.tokens for cost, _ in plain[:2]], "lessons are as they were"
    assert costs[2][0].tokens > 2 * plain[2][0].tokens - costs[0][0].tokens, "twice as often, and the base's own answers beside"
    assert likelihoods(lm, "consolidate", gentle) == pytest.approx(likelihoods(lm, "merge", Held()), abs=1e-3)


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

        base = sit_general(lm).log_probabilities
        with standing(lm, held.adapters):
            now = sit_general(lm).log_probabilities
        return sum(abs(a - b) for a, b in zip(base, now, strict=True))

    free, held = (learnt(lm, name, LESSONS[:1], distil_share=0.8)[0] for name in ("merge", "distil"))
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


def test_what_retention_notes_is_before_a_consolidation_wherever_it_stands_in_a_name(lm: Any) -> None:
    held = [learnt(lm, name, LESSONS[:2], every=2)[0] for name in ("retention+consolidate", "consolidate+retention")]
    noted = [[one.likelihood for one in of.lessons] for of in held]
    assert noted[0] == noted[1] and all(len(of.adapters) == 1 for of in held)


def test_retention_chooses_wherever_it_stands_in_a_name_and_trains_each_once(lm: Any) -> None:
    other = Document("qqqq", (Message("user", "Something else?"),))
    two = replace(LESSONS[0], edits=((other,), LESSONS[0].edits[0]))
    found = {}
    for name in ("retention+replay", "replay+retention"):
        method = keeper(name, KeepConfig(retention_weight=0.0))
        held, cost, _ = method.commit(lm, Held(), two, SETTINGS, 3)
        assert held.lessons[0].edits == (LESSONS[0].edits[0],), name
        found[name] = cost.tokens
    each = [SETTINGS.epochs * encode_document(lm, edit[0]).labelled for edit in two.edits]
    assert set(found.values()) == {sum(each)}, "the winner isn't trained again"


def test_a_bank_routes_each_question_to_its_adapter(lm: Any) -> None:
    held, _ = learnt(lm, "bank")
    alone = [likelihoods(lm, "bank", learnt(lm, "bank", [one])[0], threshold=-1.0)[at] for at, one in enumerate(LESSONS)]
    passages = [one.passage for one in LESSONS]
    method = keeper("bank", KeepConfig(threshold=-1.0))
    assert method.examine(lm, held, passages)[1].notes["routed"] > 1 / 3, "better than by chance"
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
    costs = {name: learnt(lm, name, LESSONS[:1])[1][0][0].tokens for name in ("orthogonal", "orthogonal+distil")}
    assert costs["orthogonal+distil"] > costs["orthogonal"], "it rehearses too"
    assert len(keeper("distil+last-layers", KeepConfig()).parts) == 2


FLAGS = (
    "continual", "--split", "test", "--sequences", 2, "--passages", 2, "--set", "edit.sampling.max_new_tokens=12",
    "--set", "edit.form=plain", "--set", "edit.passes=1", "--set", "edit.shots=0", "--set", "settings.epochs=1",
    "--set", "settings.rank=4", "--workers", 0,
)  # fmt: skip


def test_a_combination_that_makes_no_sense_is_refused() -> None:
    for name in (
        "bank+gate",
        "bank+consolidate",
        "retention+bank",
        "retrieve+replay",
        "all-layers+last-layers",
    ):
        with pytest.raises(DataError, match="can't be put together"):
            keeper(name, KeepConfig())
    with pytest.raises(DataError, match="stands twice"):
        keeper("replay+replay", KeepConfig())
    assert len(keeper("bank+replay+last-layers", KeepConfig()).parts) == 3
    with pytest.raises(ValueError, match="edits=3"):
        ContinualConfig(methods=("merge", "retention"))
    for rate in ("sleep_rate", "null_space_rate"):
        assert KeepConfig.model_validate({rate: 0.1})
        with pytest.raises(ValueError, match=rate):
            KeepConfig.model_validate({rate: 4})


def test_a_gate_holds_a_consolidation_to_its_budgets(lm: Any) -> None:
    strict = keeper("gate+consolidate", KeepConfig(exam_drop=1.0, bits=0.0, divergence=0.0, every=3))
    held, _ = learnt(lm, "merge")
    after = strict.parts[1].settle(lm, held, strict, SETTINGS, 0, cost := Cost())
    assert after.adapters == held.adapters and after.pending == 0 and cost.happened == {"consolidation refused"}


def test_a_gate_draws_its_anchors_over_all_lessons(lm: Any) -> None:
    quiz = tuple(Question(f"Question {n}?", "x") for n in range(30))
    many = Held((), tuple(replace(one, quiz=quiz) for one in LESSONS))
    anchors = anchors_of(lm, many, 0)
    counts = [sum(one.passage.title in anchor.prompt[-1].content for anchor in anchors) for one in LESSONS]
    assert len(anchors) == 64 and counts == [16, 16, 16]
    unseen = anchors_of(lm, Held((), tuple(replace(one, quiz=()) for one in LESSONS)), 0)
    assert len(unseen) == 16, "a lesson without a quiz to look at gives no anchor"


def test_a_divergence_is_that_of_the_whole_distributions(lm: Any) -> None:
    rows = [encode_document(lm, document) for one in LESSONS for document in one.edits[0]]
    before, few = likeliest(lm, rows, 10_000), likeliest(lm, rows, 20)
    same = [value for values in divergences(lm, rows, few) for value in values]
    assert max(same) == pytest.approx(0, abs=1e-5)
    (adapter,) = learnt(lm, "merge", LESSONS[:1])[0].adapters
    with active(lm, adapter):
        exact, coarse = divergences(lm, rows, before), divergences(lm, rows, few)
        after = likeliest(lm, rows, 10_000)
    for row, (ids, logs), (new_ids, new_logs) in zip(exact, before, after, strict=True):
        ours = logs.gather(1, ids.argsort(1))
        wanted = (ours.exp() * (ours - new_logs.gather(1, new_ids.argsort(1)))).sum(1)
        assert row == pytest.approx(wanted.tolist(), abs=1e-4)
    pairs = [(a, b) for some, all_of in zip(coarse, exact, strict=True) for a, b in zip(some, all_of, strict=True)]
    assert all(-1e-6 <= a <= b + 1e-4 for a, b in pairs) and max(b for _, b in pairs) > 0.01


def test_orthogonal_leaves_room_for_a_new_adapter(lm: Any) -> None:
    adapters = []
    for seed in range(12):
        adapter = new_adapter(lm, SETTINGS, seed)
        for _, up in adapter.weights.values():
            up.normal_(generator=torch.Generator().manual_seed(seed))
        adapters.append(adapter)
    found = subspaces(adapters, 4)
    widths = {name: down.shape[1] for name, (down, _) in adapters[0].weights.items()}
    assert all(len(basis) == min(48, widths[name] - 4) for name, basis in found.items()) and 28 in map(len, found.values())


def test_a_question_is_like_the_passage_that_has_its_rare_words() -> None:
    neutral = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.1, 0.0, 0.0], [0.0, -0.1, 0.1, 0.1]])
    common, rare, other = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 3.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 3.0])
    keys = [torch.stack([common, rare]), torch.stack([common, common, other])]
    found = likenesses([torch.stack([common, rare]), torch.stack([other])], keys, neutral)
    assert found.argmax(1).tolist() == [0, 1] and found[0, 0] == pytest.approx(1, abs=1e-3)
    assert found[0, 1] < 0.5, "the word that all have counts for little"
    alone = likenesses([torch.stack([common, rare])], keys[:1], neutral)
    assert alone[0, 0] == found[0, 0], "the same with one passage and with many"


def test_of_equal_passages_the_newest_is_asked_and_each_is_read_once(lm: Any) -> None:
    passages = [LESSONS[0].passage, LESSONS[1].passage, LESSONS[0].passage]
    assert routes_to(lm, passages, [passages[0].view, passages[1].view, "%"], 0.9) == [2, 1, -1]
    read = dict(lm.made["embedded"])
    assert routes_to(lm, passages[:2], [passages[0].view], 0.9) == [0]
    assert all(lm.made["embedded"][text] is states for text, states in read.items()) and len(read) == len(lm.made["embedded"])
    assert routes_to(lm, [], ["anything"], 0.0) == [-1]
    long = Passage("Long", f"{'zyx ' * 700}The heron is grey.")
    assert routes_to(lm, [passages[1], long], ["The heron is grey."], 0.9) == [1], "what stands beyond the window is found too"


def test_what_a_passage_is_found_by_is_written_once(lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = [LESSONS[0].passage, LESSONS[1].passage]
    query = [passages[1].view]
    ways = routes_to(lm, passages, query, 0.9)
    states = dict(lm.made["embedded"])
    keep_states(lm, passages, str(tmp_path))
    for passage in passages:
        del lm.made["embedded"][passage.view]
    recall_states(lm, passages, tmp_path)
    assert all(torch.equal(lm.made["embedded"][one.view], states[one.view]) for one in passages)
    assert routes_to(lm, passages, query, 0.9) == ways == [1]
    for passage in passages:
        del lm.made["embedded"][passage.view]
    monkeypatch.setattr(lm, "fingerprint", "another")
    recall_states(lm, passages, tmp_path)
    assert passages[0].view not in lm.made["embedded"], "another model's say nothing"
    (tmp_path / STATES).write_bytes((tmp_path / STATES).read_bytes()[:50])
    recall_states(lm, passages, tmp_path)
    assert passages[0].view not in lm.made["embedded"], "what is broken is read anew"


def test_the_router_knows_none_of_the_texts_that_it_is_measured_by(lm: Any) -> None:
    def runs(text: str) -> set[str]:
        words = re.findall(r"\w+", text.lower())
        return {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}

    measured = load_general()["texts"]
    assert len(neutral_texts()) == 8 and all(60 < len(text.split()) < 100 for text in neutral_texts())
    for text in (*measured, *general_questions()):
        assert not any(runs(text) & runs(neutral) for neutral in neutral_texts()), text
    routes_to(lm, [LESSONS[0].passage], ["What colour is Alder?"], 0.4)
    assert not set(measured) & set(lm.made["embedded"]) and set(neutral_texts()) <= set(lm.made["embedded"])


def test_general_questions_take_a_method_s_own_way(lm: Any) -> None:
    held, _ = learnt(lm, "bank", LESSONS[:1])
    base = sit_general(lm)
    aside, cost = keeper("bank", KeepConfig(threshold=1.0)).general(lm, held)
    assert aside is not None and aside.answers == base.answers and cost.notes == {"astray": 0}
    assert aside.log_probabilities == pytest.approx(base.log_probabilities, abs=1e-5)
    routed, cost = keeper("bank", KeepConfig(threshold=-1.0)).general(lm, held)
    assert routed is not None and cost.notes == {"astray": 1}
    assert routed.log_probabilities != pytest.approx(base.log_probabilities, abs=1e-2) and routed.text != base.text
    assert keeper("retrieve", KeepConfig()).general(lm, held)[0] is None


def test_the_share_in_replay_is_of_old_and_new_documents(lm: Any) -> None:
    part = KEEPERS["replay"](KeepConfig(replay_share=0.5))
    new = Lesson(LESSONS[0].passage, (LESSONS[0].edits[0] * 8,))
    old = [replace(one, edits=(one.edits[0] * 20,)) for one in LESSONS[1:]]
    found = part.documents(lm, Held((), tuple(old)), new, 0)
    assert [document.text in ("blue", "green") for document in found] == [True] * 8


def general(gold: float, right: int, text: float) -> dict[str, Any]:
    """So many golds answered, each gold and each token of the texts so likely."""
    data = load_general()
    golds = [item["answer"] for item in (*data["questions"], *data["completions"])]
    answers = [gold if at < right else "nothing of it" for at, gold in enumerate(golds)]
    return {"answers": answers, "log_probabilities": [gold] * len(golds), "text": [[text] * 3] * 2}


def hand_made() -> tuple[ContinualConfig, list[list[Passage]], list[dict[str, Any]]]:
    """One sequence of two passages of four questions; merge forgets, replay doesn't."""
    config = ContinualConfig(methods=("merge", "replay"), sequences=1, passages=2, grader="em")
    drawn = [[Passage(title, "Text.", tuple(Question(f"{title} {n}?", f"gold {n}") for n in range(4))) for title in ("A", "B")]]

    def sat(**right: str) -> dict[str, Any]:
        return {
            passage.id: {
                "answers": [f"gold {n}" if str(n) in right[passage.title] else f"no {n}" for n in range(4)],
                "log_probabilities": [-1.0] * 4,
            }
            for passage in drawn[0]
            if passage.title in right
        }

    def row(method: str, step: int, **more: Any) -> dict[str, Any]:
        cost = {"tokens": 10 * step, "seconds": 1.0, "commit_bytes": 8, "state_bytes": 8 * step, "notes": {}}
        cost |= {f"answering{form}": {} for form in ("", "_bare", "_general")}
        happened = ["diverged"] if method == "merge" and step == 2 else []
        return {"method": method, "sequence": 0, "step": step, "accepted": not happened, "happened": happened} | cost | more

    rows = [
        {
            "method": "base",
            "sequence": 0,
            "step": 0,
            "sittings": sat(A="0", B=""),
            "bare": sat(A="", B=""),
            "general": general(-3.0, 10, -2.0),
        },
        row("merge", 1, sittings=sat(A="012"), bare=sat(A="01")),
        row("merge", 2, sittings=sat(A="03", B="01"), bare=sat(A="0", B="012"), general=general(-3.75, 4, -2.5)),
        row("replay", 1, sittings=sat(A="012"), bare=sat(A="0")),
        row("replay", 2, sittings=sat(A="0123", B="01"), bare=sat(A="", B=""), general=None),
    ]
    return config, drawn, rows


def test_the_figures_of_hand_made_rows() -> None:
    config, drawn, rows = hand_made()
    found = table(config, drawn, [], rows, ExactMatchGrader())
    merge, replay = ({name: of["mean"] for name, of in found["methods"][name].items()} for name in ("merge", "replay"))
    # Of A the base knew question 0: 2 of 3 right after its commit, 1 of 3 in the end; of B 2 of 4 both times, which keeps nothing.
    assert merge["before"] == pytest.approx(0.125) and merge["immediate"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert merge["retained"] == pytest.approx((1 / 3 + 1 / 2) / 2) and merge["retention"] == pytest.approx(1 / 2)
    assert merge["forgetting"] == pytest.approx(3 / 4 - 2 / 4) and merge["bare"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert merge["all_own"] == pytest.approx(5 / 8) and merge["all_after"] == pytest.approx(1 / 2)
    assert merge["along"] == pytest.approx(1 / 3) and merge["bare_own"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert merge["general"] == pytest.approx(-0.75) and merge["general_share"] == pytest.approx(-0.25)
    assert merge["general_right"] == pytest.approx(-6 / len(general_questions()))
    assert merge["text"] == pytest.approx(-0.5) and merge["text_share"] == pytest.approx(-0.25)
    assert merge["accepted"] == merge["diverged"] == 0.5 and merge["state_bytes"] == 16 and merge["commit_bytes"] == 8
    assert replay["retained"] == pytest.approx(3 / 4) and replay["retention"] == pytest.approx(3 / 2)
    assert replay["forgetting"] == pytest.approx(-0.25) and "general" not in replay
    assert [[cell and cell["mean"] for cell in line] for line in found["matrix"]["merge"]] == [[0.25, 0], [0.75, None], [0.5, 0.5]]
    to_base = {row["measure"]: row["mean"] for row in found["differences"] if row["control"] == "base"}
    assert to_base == pytest.approx({"general_share": -0.25, "general_right": merge["general_right"], "text_share": -0.25})
    differences = {row["measure"]: row["mean"] for row in found["differences"] if row["control"] == "merge"}
    assert differences == pytest.approx(
        {"immediate": 0, "retained": 1 / 3, "along": 2 / 3, "bare": -1 / 2, "retention": 1, "forgetting": -1 / 2}
        | {"gain_own": 0, "gain_after": 0}
    )
    assert found["questions"] == found["counted"] == 8


def test_what_stays_of_how_probable_the_golds_became() -> None:
    config, drawn, rows = hand_made()
    first = drawn[0][0].id
    for row in rows:
        # Of A: .1 before, .5 after its own commit, .2 in the end by merge and .5 by replay. B is the last one, and doesn't count.
        probable = 0.1 if row["step"] == 0 else 0.2 if row["step"] == 2 and row["method"] == "merge" else 0.5
        row["sittings"][first]["log_probabilities"] = [math.log(probable)] * 4
    merge, replay = (table(config, drawn, [], rows, ExactMatchGrader())["methods"][name] for name in ("merge", "replay"))
    assert merge["gain_own"]["mean"] == pytest.approx(0.4) and merge["gain_after"]["mean"] == pytest.approx(0.1)
    assert merge["retention_gain"]["mean"] == pytest.approx(1 / 4) and replay["retention_gain"]["mean"] == pytest.approx(1)
    last = next(row for row in rows if row["method"] == "merge" and row["step"] == 1)
    sitting = {"answers": ["no"] * 4, "log_probabilities": [math.log(0.3)] * 4}
    last["own"] = {"sittings": {first: sitting}, "bare": last["bare"]}
    found = table(config, drawn, [], rows, ExactMatchGrader())["methods"]["merge"]
    assert found["retention_gain"]["mean"] == pytest.approx(1 / 2), "what was so before a consolidation is the immediate"


def test_what_stays_of_the_margins() -> None:
    """Of how much likelier than the exam's other golds each has become; rows without margins have no such figure."""
    config, drawn, rows = hand_made()
    assert "retention_margin" not in table(config, drawn, [], rows, ExactMatchGrader())["methods"]["merge"]
    for row in rows:
        margin = 0.5 if row["step"] == 0 else 1.0 if row["step"] == 2 and row["method"] == "merge" else 2.5
        for sitting in row["sittings"].values():
            sitting["margins"] = [margin] * 4
    found = table(config, drawn, [], rows, ExactMatchGrader())
    merge = found["methods"]["merge"]
    assert merge["margin_own"]["mean"] == pytest.approx(2.0) and merge["retention_margin"]["mean"] == pytest.approx(1 / 4)
    (difference,) = [row for row in found["differences"] if row["measure"] == "retention_margin"]
    assert difference["mean"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("name", ["merge", "bank", "retrieve", "context"])
def test_margins_are_over_the_golds_of_the_whole_exam(lm: Any, name: str) -> None:
    """Also where questions are asked one by one, each its own way."""
    held, *_ = learnt(lm, name, LESSONS[:2])
    more = (Question("How tall is it?", "tall"), Question("How old is it?", "ancient"))
    passages = [replace(one.passage, questions=(*one.passage.questions, *more)) for one in LESSONS[:2]]
    sittings, _ = keeper(name, KeepConfig(threshold=-1)).examine(lm, held, passages)
    for passage, sitting in zip(passages, sittings, strict=True):
        asked = exam_questions(passage.questions)
        assert len(sitting.margins) == len(sitting.log_probabilities) == len(asked)
        assert all(own != margin for own, margin in zip(sitting.log_probabilities, sitting.margins, strict=True))


def test_long_sequences_share_the_rare_titles() -> None:
    """Filled in turn: else the first would have all that stand once."""
    passages = [Passage(title, f"Text {n}.", (Question(f"Q{n}?", "a"),)) for n, title in enumerate("ABCDEFGHIJKL" + "XXXXXXXXXXXX")]
    config = ContinualConfig(methods=("merge",), sequences=2, passages=10, related=0)
    titles = [len({passage.title for passage in own}) for own in sequences(config, passages)]
    assert titles == [7, 7]


def test_a_stored_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    config = ContinualConfig(methods=("merge",))
    run = Run(tmp_path / "run", config, resume=False)
    check_run(run, [[LESSONS[0].passage]], (), Policy(None, "base"))
    before = (tmp_path / "run" / "sequences.json").read_bytes()
    check_run(run, [[LESSONS[0].passage]], (), Policy(None, "base"))
    assert (tmp_path / "run" / "sequences.json").read_bytes() == before
    (tmp_path / "run" / "sequences.json").write_text("")
    with pytest.raises(DataError, match=r"sequences\.json: can't be read"):
        check_run(run, [[LESSONS[0].passage]], (), Policy(None, "base"))


def test_methods_are_held_against_merge_wherever_it_stands_and_unfinished_sequences_left_out() -> None:
    config, drawn, rows = hand_made()
    turned = table(config.model_copy(update={"methods": ("replay", "merge")}), drawn, [], rows, ExactMatchGrader())
    assert {row["control"] for row in turned["differences"]} == {"merge", "base"} and turned["control"] == "merge"
    partly = table(config, drawn, [], rows[:-1], ExactMatchGrader())
    assert partly["methods"]["merge"]["immediate"]["n"] == 1 and list(partly["methods"]) == ["merge"]
    assert not [row for row in partly["differences"] if row["control"] == "merge"]


def test_what_was_right_before_a_consolidation_is_the_immediate() -> None:
    config, drawn, rows = hand_made()
    last = next(row for row in rows if row["method"] == "merge" and row["step"] == 2)
    wrong = {drawn[0][1].id: {"answers": [f"no {n}" for n in range(4)], "log_probabilities": [-1.0] * 4}}
    last["own"] = {"sittings": wrong, "bare": wrong}
    found = {name: of["mean"] for name, of in table(config, drawn, [], rows, ExactMatchGrader())["methods"]["merge"].items()}
    assert found["immediate"] == pytest.approx((2 / 3 + 0) / 2) and found["bare_own"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["retained"] == pytest.approx((1 / 3 + 1 / 2) / 2) and found["all_own"] == pytest.approx((3 / 4 + 0) / 2)


def test_a_commit_costs_so_many_times_one_of_merge(tmp_path: Path) -> None:
    config, drawn, rows = hand_made()
    alone = table(config, drawn, [], rows, ExactMatchGrader())
    assert alone["methods"]["replay"]["tokens_to_merge"]["mean"] == 1 and "tokens_to_merge" not in alone["methods"]["merge"]
    both = [row | {"sequence": at} for at in (0, 1) for row in rows]
    for row in both:
        if row["method"] == "replay":
            row["tokens"] *= 2 + 2 * row["sequence"]
    two = table(config.model_copy(update={"sequences": 2}), drawn * 2, [], both, ExactMatchGrader())
    ratio = two["methods"]["replay"]["tokens_to_merge"]
    assert ratio["n"] == 2 and ratio["mean"] == pytest.approx(3) and ratio["low"] < 2 < 4 < ratio["high"]
    assert two["methods"]["replay"]["seconds_to_merge"]["mean"] == 1
    assert with_interval(ratio | {"low": 2.0, "high": 4.0}, 1, 2) == "3.00 [2.00, 4.00]"
    shown = kept_table(RunData("run", tmp_path, "continual", {}, table=two))
    cells = dict(zip(shown.columns, shown.rows[1], strict=True))
    assert cells["tokens x merge"].startswith("3.00 [") and cells["retention %"] == "150.0 [150.0, 150.0]"
    assert cells["notes"] is None and "all passages of a sequence but the last" in shown.note
    without = table(config.model_copy(update={"methods": ("replay",)}), drawn, [], rows, ExactMatchGrader())
    assert "tokens_to_merge" not in without["methods"]["replay"], "a run without merge has nothing to be held against"


def test_older_tables_are_still_shown(tmp_path: Path) -> None:
    found = table(*hand_made()[:2], [], hand_made()[2], ExactMatchGrader())
    new = ("earlier_own", "earlier_after", "gain_own", "gain_after", "tokens_to_merge", "seconds_to_merge")
    older = {name: {key: of[key] for key in of if key not in new} for name, of in found["methods"].items()}
    shown = kept_table(RunData("run", tmp_path, "continual", {}, table=found | {"methods": older}))
    cells = dict(zip(shown.columns, shown.rows[0], strict=True))
    assert cells["retention %"] == "50.0" and cells["tokens x merge"] is None and "an older table" in shown.note
    for file in (Path(__file__).parent.parent / "benchmarks" / "results").glob("*/table.json"):
        if (run := read_run(file.parent)).kind == "continual":
            assert kept_table(run).rows and kept_differences_table(run).rows, file


def test_what_cannot_be_asked_elsewhere_has_no_locality() -> None:
    config, drawn, rows = hand_made()
    asked = [Asked(Question("Which?", "gold"), 0, False)]
    for at, elsewhere in ((0, -2.0), (2, -1.5), (4, None)):
        rows[at]["elsewhere"] = elsewhere and {"answers": ["no"], "log_probabilities": [elsewhere]}
    found = table(config, drawn, asked, rows, ExactMatchGrader())["methods"]
    assert found["merge"]["locality_logprob"]["mean"] == 0.5 and found["merge"]["locality"]["mean"] == 0
    assert not {"locality", "locality_logprob"} & set(found["replay"])


def test_sequences_are_drawn_apart_from_another_run_and_with_pairs_where_they_are_wanted(tmp_path: Path) -> None:
    question = (Question("Which?", "gold"),)
    passages = [Passage(f"T{n // 3}", f"Text {n}.", question) for n in range(24)]
    config = ContinualConfig(sequences=4, passages=3, related=0.5)
    drawn = sequences(config, passages)
    assert related(drawn) == 2, "two have a pair, and none of the others by chance"
    (tmp_path / "sequences.json").write_text(json.dumps({"sequences": [[one.id for one in own] for own in drawn], "elsewhere": []}))
    apart = sequences(config.model_copy(update={"without": str(tmp_path)}), passages)
    assert not {one.id for own in apart for one in own} & {one.id for own in drawn for one in own}
    with pytest.raises(DataError, match="without those of"):
        sequences(config.model_copy(update={"without": str(tmp_path), "sequences": 5}), passages)
    with pytest.raises(DataError, match="no run of selfedit continual"):
        sequences(config.model_copy(update={"without": str(tmp_path / "none")}), passages)


def test_questions_that_a_method_sees_are_not_counted_for_any() -> None:
    config, drawn, rows = hand_made()
    gated = config.model_copy(update={"methods": ("merge", "replay+gate")})
    for passage in drawn[0]:
        seen, counted = halves(gated, passage)
        assert len(seen) == len(counted) == 2 and sorted(seen + counted) == [0, 1, 2, 3]
        assert halves(config, passage) == ([], [0, 1, 2, 3])
        assert halves(gated, replace(passage, questions=passage.questions[:1])) == ([], [0])
    passage = drawn[0][1]
    hidden, kept = halves(gated, passage)
    answers = next(row for row in rows if row["method"] == "merge" and row["step"] == 2)["sittings"][passage.id]["answers"]
    for place in range(4):
        answers[place] = f"gold {place}" if place in hidden else f"no {place}"
    found = table(gated, drawn, [], rows[:3], ExactMatchGrader())
    assert found["counted"] == 4 and found["matrix"]["merge"][2][1]["mean"] == 0, (hidden, kept)


def test_a_passage_that_nothing_can_be_learnt_of_is_not_accepted(lm: Any, tmp_path: Path) -> None:
    config = ContinualConfig(model=lm.name, methods=("merge",), sequences=1, passages=2, settings=SETTINGS)
    passages = tuple(one.passage for one in LESSONS[:2])
    broken = {passage.id: ['{"notes" is broken'] for passage in passages}
    row = commit(lm, Commit(config, "merge", 0, 1, passages, (), str(tmp_path / "states"), broken))
    assert (
        not row["accepted"] and "edits=2" in row["reason"] and row["state_bytes"] == 0 and list(row["sittings"]) == [passages[0].id]
    )
    again = commit(lm, Commit(config, "merge", 0, 2, passages, (), str(tmp_path / "states"), broken))
    assert len(again["sittings"]) == len(again["bare"]) == 2


def test_with_rare_exams_the_newest_passage_is_still_examined(lm: Any, tmp_path: Path) -> None:
    config = ContinualConfig(model=lm.name, methods=("context",), sequences=1, passages=3, exam_every=3)
    passages = tuple(one.passage for one in LESSONS)
    broken = {passage.id: [""] for passage in passages}
    rows = [commit(lm, Commit(config, "context", 0, n, passages, (), str(tmp_path), broken)) for n in (1, 2, 3)]
    assert [list(row["sittings"]) for row in rows] == [[passages[0].id], [passages[1].id], [one.id for one in passages]]


def test_what_trains_nothing_needs_no_self_edit(lm: Any, tmp_path: Path) -> None:
    config = ContinualConfig(model=lm.name, methods=("retrieve", "context"), sequences=1, passages=2)
    *passages, other = (one.passage for one in LESSONS)
    broken = {passage.id: ['{"notes" is broken'] for passage in passages}
    rows = {
        name: [commit(lm, Commit(config, name, 0, n, tuple(passages), (other,), str(tmp_path / name), broken)) for n in (1, 2)]
        for name in config.methods
    }
    assert all(row["accepted"] and not row["reason"] and not row["tokens"] for of in rows.values() for row in of)
    assert rows["retrieve"][1]["answering"] == {"found": 1.0}, "both passages are there to be found, over a state on the disk"
    assert rows["retrieve"][1]["elsewhere"] is not None and rows["context"][1]["elsewhere"] is None


def test_before_a_consolidation_the_newest_passage_is_examined(lm: Any, tmp_path: Path) -> None:
    config = ContinualConfig(
        model=lm.name, methods=("merge", "consolidate"), sequences=1, passages=2, settings=SETTINGS, keep=KeepConfig(every=2),
        edit=EditConfig(form="plain"),
    )  # fmt: skip
    passages = tuple(one.passage for one in LESSONS[:2])
    written = {passage.id: [f"{passage.text} It grows there."] for passage in passages}
    rows = {
        name: [commit(lm, Commit(config, name, 0, n, passages, (), str(tmp_path / name), written)) for n in (1, 2)]
        for name in config.methods
    }
    assert [("own" in row) for of in rows.values() for row in of] == [False, False, False, True]
    merged, slept = rows["merge"][1], rows["consolidate"][1]
    newest = passages[1].id
    assert slept["happened"] == ["consolidated"] and list(slept["own"]["sittings"]) == [newest]
    for form in ("sittings", "bare"):
        assert slept["own"][form][newest] == merged[form][newest] != slept[form][newest], "as if nothing had been consolidated"


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
    assert "retention" in done.stdout and "over one of merge" in done.stdout
    assert table["methods"]["retrieve"]["tokens_to_merge"]["mean"] == 0 and not list((run / "states").iterdir()), (
        "finished sequences leave no state behind"
    )
    page = command("report", run, "--out", tmp_path / "page.html")
    assert page.returncode == 0, page.stderr
    assert (tmp_path / "page.html").read_text().count("<figure>") == 3 and "What was kept" in (tmp_path / "page.html").read_text()
    again = command("continual", "--run", run, "--resume", "--workers", 0, "--json", tmp_path / "again.json")
    assert again.returncode == 0 and (tmp_path / "again.json").read_text() == (tmp_path / "t.json").read_text(), again.stderr
    rows = (run / "trials.jsonl").read_text()
    assert rows.count("\n") == 2 + 3 * 2 * 2
    other = command(*flags, "--run", run, "--resume", "--set", "keep.every=3")
    assert other.returncode == 1 and "keep.every=2, now 3" in other.stderr
    asked = json.loads((run / "sequences.json").read_text())
    next(iter(asked["questions"].values()))[0][0] = "another gold"
    (run / "sequences.json").write_text(json.dumps(asked))
    other = command("continual", "--run", run, "--resume")
    assert other.returncode == 1 and "other questions" in other.stderr, "answers would be marked by golds of now"


def test_kill_and_resume_end_in_the_same_rows(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    flags = [str(flag) for flag in (*FLAGS, "--passages", 3, "--methods", "retention", "--set", "edits=2", "--model", tiny_model)]
    whole = command(*flags, "--run", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    start = [sys.executable, "-m", "selfedit", *flags, "--run", str(tmp_path / "killed")]
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    file, deadline = tmp_path / "killed" / "trials.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and (not file.exists() or b'"step": 1' not in file.read_bytes()):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = command(*flags, "--run", tmp_path / "killed", "--resume")
    assert again.returncode == 0, again.stderr
    whole_rows = rows_of(tmp_path / "whole" / "trials.jsonl")
    assert rows_of(file) == whole_rows
    # What a kill and a lost disk leave: a commit is written down whose state is gone.
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if '"step": 3' not in line))
    again = command(*flags, "--run", tmp_path / "killed", "--resume")
    assert again.returncode == 0 and rows_of(file) == whole_rows, again.stderr


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    plain = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return sorted(plain, key=lambda row: (row["method"], row["sequence"], row["step"]))


def test_too_few_passages_are_an_error(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    done = command("continual", "--split", "dev", "--sequences", 9, "--model", tiny_model, "--run", tmp_path / "run")
    assert done.returncode == 1 and "9 sequences of 8 need 72 passages" in done.stderr
    done = command("continual", "--methods", "magic", "--model", tiny_model, "--run", tmp_path / "run")
    assert done.returncode == 1 and "magic" in done.stderr and not (tmp_path / "run").exists()
    done = command("continual", "--methods", "magic", "--model", tiny_model, "--dry-run")
    assert done.returncode == 1 and "magic" in done.stderr
    done = command("continual", "--style", "notes+settings", "--model", tiny_model, "--dry-run")
    assert done.returncode == 1 and "fixed-settings" in done.stderr


def test_adapters_from_a_folder_meet_one_that_was_just_trained(lm: Any) -> None:
    """The former are on the CPU, the latter on the model's device, here one of no memory."""
    read = new_adapter(lm, SETTINGS, 1)
    name, (down, up) = next(iter(read.weights.items()))
    device = torch.device("meta")
    trained = replace(read, weights={name: (down.to(device), up.to(device))})
    found = FrozenSum.of([read, trained], name, SimpleNamespace(device=device, dtype=torch.float32))  # type: ignore[arg-type]
    assert found.down.device == found.up.device == device and len(found.down) == 2 * len(down)
