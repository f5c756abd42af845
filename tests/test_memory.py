from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfedit.cli.memory import settings_from
from selfedit.errors import DataError, MemoryStoreError
from selfedit.memory import ledger
from selfedit.memory.ledger import Base, Memory, Slot
from selfedit.memory.rebuild import is_lost

BASE = Base("tiny", "0" * 16)


def adapter(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(content)
    return folder


def commit(memory: Memory, content: str) -> int:
    with memory.writing():
        return memory.commit({"title": content}, adapter(memory.scratch() / "a", content)).id


def test_commit_and_undo_give_the_same_bytes(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", BASE)
    empty = memory.digest()
    digests = [memory.digest() for number in range(3) if commit(memory, f"weights {number}")]
    assert len({empty, *digests}) == 4
    for before in (digests[1], digests[0], empty):
        with memory.writing():
            memory.undo_last()
        assert Memory.open(tmp_path / "m").digest() == before
    with pytest.raises(MemoryStoreError, match="nothing to undo"), memory.writing():
        memory.undo_last()
    assert commit(memory, "again") == 4
    assert [entry.record["title"] for entry in memory.entries()] == ["weights 0", "weights 1", "weights 2", "again"]
    assert memory.state.entries == (4,)


def test_undo_after_a_replaced_state_goes_to_what_was_there(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", BASE)
    for number in range(3):
        commit(memory, f"w{number}")
    with memory.writing():
        built = adapter(memory.scratch() / "r", "rebuilt")
        memory.replace("undo entry 2", [Slot((1,), "0001"), Slot((3,), "0003-r")], [(built, "0003-r")])
        assert [path.name for path in memory.adapter_folders()] == ["0001", "0003-r"]
        assert memory.undo_last() == 3
    assert memory.state.entries == (1,)


def test_a_folder_that_holds_something_else_becomes_no_memory(tmp_path: Path) -> None:
    weights = tmp_path / "project" / "adapters" / "my-lora" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text("precious")
    with pytest.raises(MemoryStoreError, match="no memory, but it holds adapters"):
        Memory.create(tmp_path / "project", BASE)
    assert weights.read_text() == "precious" and [file.name for file in (tmp_path / "project").iterdir()] == ["adapters"]


def test_an_empty_memory_may_become_another_base_s(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", BASE)
    other = Base("other", "1" * 16)
    again = Memory.create(tmp_path / "m", other)
    with again.writing():
        again.bind(other, "")
    assert memory.base == other
    commit(memory, "learnt")
    with pytest.raises(MemoryStoreError, match=r"other.*tiny"), memory.writing():
        memory.bind(BASE, "")


def test_another_base_is_refused_with_both_names(tmp_path: Path) -> None:
    commit(Memory.create(tmp_path / "m", BASE), "learnt")
    with pytest.raises(MemoryStoreError, match=r"tiny.*other"):
        Memory.create(tmp_path / "m", Base("other", "1" * 16))


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", BASE)
    commit(memory, "kept")
    adapter(tmp_path / "m" / "adapters" / "0002", "orphan")
    adapter(tmp_path / "m" / "adapters" / ".candidates-1" / "0-0", "candidate")
    with memory.writing():
        assert [path.name for path in (tmp_path / "m" / "adapters").iterdir()] == ["0001"]
    assert commit(memory, "next") == 2


def test_no_space_in_the_middle_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory.create(tmp_path / "m", BASE)
    commit(memory, "kept")
    before = memory.digest()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with memory.writing():
        made = adapter(memory.scratch() / "a", "lost")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(MemoryStoreError, match="No space left"):
                memory.commit({"title": "lost"}, made)
    assert memory.digest() == before and len(memory.entries()) == 1
    assert commit(memory, "fits") == 2


def test_a_second_writer_waits_and_is_told(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", BASE)
    script = (
        "import sys,time\nfrom pathlib import Path\nfrom selfedit.memory.ledger import Memory\n"
        "with Memory.open(Path(sys.argv[1])).writing():\n    print('held', flush=True)\n    time.sleep(1.5)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "m")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        told = []
        with pytest.raises(MemoryStoreError, match="in use by another process"), memory.writing(wait=0.1):
            pass
        start = time.monotonic()
        with memory.writing(told=lambda: told.append(True)):
            assert told == [True] and time.monotonic() - start > 0.5


def test_no_memory_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(MemoryStoreError, match="selfedit learn"):
        Memory.open(tmp_path)
    (tmp_path / "ledger.sqlite").write_text("not a database, just text that is long enough to look like one" * 20)
    with pytest.raises(MemoryStoreError, match="can't be read"):
        Memory.open(tmp_path)


def test_two_processes_make_one_memory(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom selfedit.memory.ledger import Base, Memory\n"
        "memory = Memory.create(Path(sys.argv[1]), Base('m', 'f'))\nwith memory.writing(): print(memory.state.id)"
    )
    for attempt in range(3):
        folder = str(tmp_path / str(attempt))
        made = [subprocess.Popen([sys.executable, "-c", code, folder], stdout=-1, stderr=-1, text=True) for _ in range(4)]
        assert [process.communicate()[0] for process in made] == ["1\n"] * 4


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", Base("m", "f"))
    commit(memory, "one")
    shutil.rmtree(memory.adapter_folders()[0])
    with pytest.raises(MemoryStoreError, match="0001"):
        memory.digest()


def test_a_fault_while_the_pointer_moves_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory.create(tmp_path / "m", Base("m", "f"))
    commit(memory, "one")
    commit(memory, "two")
    before = memory.digest()
    with memory.writing():
        monkeypatch.setattr(ledger, "_add_state", full_disk)
        monkeypatch.setattr(ledger, "_state", full_disk_after(1))
        with pytest.raises(MemoryStoreError, match="nothing was changed"):
            memory.undo_last()
    monkeypatch.undo()
    assert memory.digest() == before


def full_disk(*_: object) -> int:
    raise sqlite3.OperationalError("database or disk is full")


def full_disk_after(calls: int) -> object:
    original, left = ledger._state, [calls]

    def read(*arguments: object) -> object:
        if not left[0]:
            raise sqlite3.OperationalError("database or disk is full")
        left[0] -= 1
        return original(*arguments)  # type: ignore[arg-type]

    return read


def test_a_plan_replays_only_what_is_still_known() -> None:
    from selfedit.config import Settings
    from selfedit.memory.rebuild import plan_of

    def record(text: str, replayed: list[list[int]]) -> dict[str, Any]:
        documents = [{"text": f"{text} {n}", "request": None} for n in range(2)]
        own = {"title": text, "text": "Text."}
        return own | {"documents": documents, "replayed": replayed, "settings": Settings().model_dump(mode="json"), "seed": 1}

    records = {1: record("a", []), 2: record("b", [[1, 1]]), 3: record("c", [[1, 0], [2, 1]])}
    assert [d.text for d in plan_of(records[3], records).documents] == ["c 0", "c 1", "a 0", "b 1"]
    without = {number: one for number, one in records.items() if number != 1}
    assert [d.text for d in plan_of(records[3], without).documents] == ["c 0", "c 1", "b 1"], "the undone entry's are left out"


def test_undo_of_the_third_of_five_entries_leaves_the_others_where_they_were(lm: Any, tiny_model: Path, tmp_path: Path) -> None:
    from selfedit.config import Settings
    from selfedit.graders.text import RecallGrader
    from selfedit.lm.adapter import load_adapter, standing
    from selfedit.memory.compose import Kept, kept_by, passage_of, sit_kept
    from selfedit.memory.rebuild import plan_of, train_again, undo_earlier
    from selfedit.tasks.knowledge.prompts import exam_prompt
    from selfedit.tasks.knowledge.task import KnowledgeTask

    def record(number: int) -> dict[str, Any]:
        quiz = {"question": f"Which word is number {number}?", "answer": 6 * " a7@Z_"[number], "aliases": [], "paraphrases": []}
        request = [list(turn) for turn in exam_prompt(str(quiz["question"]), f"Topic {number}", chat=True)]
        settings = Settings(rank=4, alpha=8, layers="all", epochs=40, learning_rate=2e-2, clip=1e6)
        return {
            "title": f"Topic {number}",
            "text": "Text.",
            "quiz": [quiz | {"chose": True}],
            "documents": [{"text": quiz["answer"], "request": request}],
            "settings": settings.model_dump(mode="json"),
            "seed": number,
            "config": {"dtype": "float32"},
        }

    def known() -> list[float]:
        exams = [(KnowledgeTask(), passage_of(one)) for one in records.values()]
        with standing(lm, [load_adapter(Path(folder)) for folder in kept_by(memory).stack]):
            return [sitting.log_probabilities[0] for sitting in sit_kept(lm, exams, Kept("stack"))]

    records = {number: record(number) for number in range(1, 6)}
    memory = Memory.create(tmp_path / "m", Base(lm.name, lm.fingerprint), "stack")
    never = known()
    for number, one in records.items():
        with memory.writing(), standing(lm, [load_adapter(folder) for folder in memory.adapter_folders()]):
            folder = memory.scratch() / "a"
            train_again(lm, plan_of(one, {}), str(folder))
            assert memory.commit(one, folder).id == number
    before, folders = known(), memory.adapter_folders()
    with memory.writing():
        rows = undo_earlier(memory, 3, lambda record: RecallGrader(), lambda text: None)
    after = known()
    assert [(row["entry"], row["undone"]) for row in rows] == [(number, number == 3) for number in range(1, 6)]
    assert memory.state.entries == (1, 2, 4, 5) and memory.adapter_folders()[:2] == folders[:2]
    learnt = [now - then for now, then in zip(before, never, strict=True)]
    assert after[2] - never[2] < 0.5 * learnt[2], (never, before, after)
    # The newest two are trained again on another state; they know as much of it.
    assert learnt[4] > 0.5 and after[4] - never[4] > 0.8 * learnt[4], (never, before, after)


def test_settings_of_a_consolidation_go_with_those_of_the_newest_lesson() -> None:
    newest = {"null_space": 0.01, "dead_zone": 1.5, "epochs": 4}
    assert settings_from(["dead_zone=3"], newest) == {"dead_zone": 3.0}
    assert settings_from([], newest) == {}
    with pytest.raises(DataError, match="but A is trained"):
        settings_from(["null_space=0"], newest)


def test_what_counts_as_lost() -> None:
    assert is_lost(0.2, 0.0, 5), "all that it had"
    assert not is_lost(0.4, 0.2, 5) and is_lost(0.6, 0.2, 5), "one question may go, two may not"
    assert not is_lost(0.0, 0.0, 5)
