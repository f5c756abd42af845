from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfedit.cli.common import check_writable
from selfedit.config import EvalConfig, TrainConfig
from selfedit.errors import DataError
from selfedit.runs import Log, Run, check_data, keep_data, policy_of, write_json

CONFIG = EvalConfig(model="m", dtype="float32")


def passage(title: str, answer: str = "a") -> dict[str, Any]:
    return {"title": title, "context": f"about {title}", "questions": [{"question": "q?", "answer": answer}]}


@pytest.mark.parametrize("name", ["data.json", "trials.jsonl", "merged/weights", "round-01/edits.jsonl"])
def test_a_folder_with_somebody_s_files_is_no_new_run(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(DataError, match="is there already, and no run is"):
        Run(tmp_path / "mine", CONFIG, resume=False)
    assert file.read_text() == "precious" and not (tmp_path / "mine" / "run.json").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "log.txt").write_text("what a queue system put there")
    assert Run(tmp_path / "other", CONFIG, resume=False).rows == []


def test_a_run_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    first = Run(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(DataError, match="somebody works on this run"):
        Run(tmp_path / "run", CONFIG, resume=True)
    first.append({"passage": "one"})
    del first
    again = Run(tmp_path / "run", CONFIG, resume=True)
    again.close()
    assert Run(tmp_path / "run", CONFIG, resume=True).rows == [{"passage": "one"}]


def test_what_can_t_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        Run(tmp_path / "file" / "run", CONFIG, resume=False)
    with pytest.raises(DataError, match="can't be written"):
        Run(tmp_path / "file", CONFIG, resume=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="can't be written"):
        write_json(tmp_path / "folder", {})
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
    log = Log(tmp_path / "rows.jsonl")
    log.file = tmp_path / "folder"
    with pytest.raises(DataError, match="can't be written"):
        log.append({"a": 1})
    assert log.rows == []


def test_a_damaged_row_of_a_run_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"trials\.jsonl: can't be read as rows"):
        Log(tmp_path / "trials.jsonl")


@pytest.mark.parametrize(
    ("now", "growing", "reason"),
    [
        ([passage("x", "b"), passage("y")], False, "1 contexts, 'x: about x'"),
        ([passage("x", "b"), passage("y")], True, "1 contexts, 'x: about x'"),
        ([passage("x"), passage("y"), passage("z")], False, "1 contexts, 'z: about z'"),
        ([passage("x")], False, "1 contexts, 'y: about y'"),
        ([passage("y"), passage("x")], False, "another order"),
        ([passage("x"), passage("y"), passage("z")], True, None),
        ([passage("x"), passage("y")], False, None),
    ],
)
def test_a_run_keeps_what_it_is_about(tmp_path: Path, now: list[Any], growing: bool, reason: str | None) -> None:
    keep_data(tmp_path, [passage("x"), passage("y")])
    before = (tmp_path / "data.json").read_bytes()
    if reason is None:
        check_data(tmp_path, now, growing)
        return
    with pytest.raises(DataError, match=reason):
        check_data(tmp_path, now, growing)
    if not growing:
        with pytest.raises(DataError, match=reason):
            keep_data(tmp_path, now)
    assert (tmp_path / "data.json").read_bytes() == before


def test_the_last_policy_of_a_hundred_rounds(tmp_path: Path) -> None:
    for number in (9, 99, 100):
        folder = tmp_path / f"round-{number:02d}" / "policy"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(str(number))
    assert Path(policy_of(str(tmp_path), "base").folder or "").parent.name == "round-100"


def test_asking_whether_a_file_can_be_written_makes_no_folder(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b" / "table.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't be written"):
        check_writable(tmp_path / "file" / "table.json")


def test_more_is_written_down_only_after_the_check(tmp_path: Path) -> None:
    config = TrainConfig(model="m", dtype="float32", rounds=2)
    Run(tmp_path / "run", config, resume=False)

    def refuse() -> None:
        raise DataError("other data")

    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(DataError, match="other data"):
        Run(tmp_path / "run", config.model_copy(update={"rounds": 3}), resume=True, check=refuse)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    with pytest.raises(DataError, match="seed"):
        Run(tmp_path / "run", config.model_copy(update={"seed": 3}), resume=True, check=refuse)


def test_damaged_data_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[{")
    with pytest.raises(DataError, match=r"data\.json: can't be read as the data"):
        keep_data(tmp_path, [])
