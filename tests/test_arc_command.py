"""``selfedit train arc``, ``eval arc`` and ``solve`` as processes on a tiny model, and what they leave on disk."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfedit import estimate
from selfedit.config import ArcEvalConfig, ArcTrainConfig, RecipeConfig
from selfedit.errors import DataError
from selfedit.lm.load import identify
from selfedit.puzzles import evaluate
from selfedit.puzzles.evaluate import Lease, _independent, best_fixed, fixed_recipes, numbered, write_recipes
from selfedit.report import puzzles as pictures
from selfedit.tasks.arc.data import load_puzzles, parse_puzzle
from selfedit.tasks.arc.recipe import HAND_MADE, parse_recipe

Command = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    "--workers", 0, "--set", "settings.rank=4", "--set", "settings.alpha=8", "--set", "edit.sampling.max_new_tokens=400",
    "--set", "edit.most_tokens=4000", "--set", "edit.orders=1",
)  # fmt: skip


def one(number: int) -> dict[str, Any]:
    """Whatever comes in, the answer is 3."""
    pairs = [{"input": [[n]], "output": [[3]]} for n in (1, 2, 4)]
    return {"train": pairs, "test": [{"input": [[number]], "output": [[3]]}]}


@pytest.fixture(scope="module")
def puzzles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("puzzles") / "tasks"
    folder.mkdir()
    for number in range(5, 9):
        (folder / f"task{number}.json").write_text(json.dumps(one(number)))
    return folder


@pytest.fixture(scope="module")
def trained(command: Command, tiny_model: Path, puzzles: Path) -> Path:
    """A finished run of one round; a random model solves nothing, so likelihood rewards."""
    run = puzzles.parent / "run"
    flags = ("--data", puzzles, "--puzzles", 2, "--edits", 3, "--reward", "likelihood", "--rule", "best", *SMALL)
    done = command(
        "train", "arc", "--model", tiny_model, *flags, "--set", "noise_contexts=1", "--set", "outer.epochs=1", "--run", run
    )
    assert done.returncode == 0, done.stderr
    return run


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def test_a_run_tries_recipes_and_trains_the_writer(command: Command, trained: Path, tmp_path: Path) -> None:
    edits = rows_of(trained / "round-01" / "edits.jsonl")
    assert len(edits) == 2 and all(parse_recipe(edit["text"]) for row in edits for edit in row["edits"])
    trials = rows_of(trained / "trials.jsonl")
    assert len(trials) == 2 * 3 + 1 * 3 and {row["status"] for row in trials} == {"ok"}
    assert all(row["tokens"] > 0 or "same_as" in row for row in trials)
    assert json.loads((trained / "round-01" / "policy" / "training.json").read_text())["rows"] == 2
    assert set(json.loads((trained / "data.json").read_text())) == {row["context"] for row in edits}
    done = command("report", trained, "--out", tmp_path / "report.html")
    assert done.returncode == 0 and "recipes by round" in (tmp_path / "report.html").read_text(), done.stderr
    done = command("select", trained, "--rule", "best", "--out", tmp_path / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    assert all(parse_recipe(row["completion"][0]["content"]) for row in rows_of(tmp_path / "rows.jsonl"))


def test_equal_recipes_are_tried_once_and_counted_often(command: Command, tiny_model: Path, puzzles: Path, tmp_path: Path) -> None:
    flags = ("--data", puzzles, "--puzzles", 1, "--edits", 3, "--rule", "positive", "--set", "edit.sampling.temperature=0", *SMALL)
    done = command("train", "arc", "--model", tiny_model, *flags, "--set", "noise_contexts=0", "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "run" / "trials.jsonl")
    assert [row.get("same_as") for row in rows] == [None, 0, 0]
    assert rows[0]["sitting"] == rows[1]["sitting"] and rows[0]["tokens"] > 0 == rows[1]["tokens"]


def test_all_methods_side_by_side(command: Command, tiny_model: Path, puzzles: Path, trained: Path, tmp_path: Path) -> None:
    # A solved trial in the run, so that there is a best recipe.
    rows = rows_of(trained / "trials.jsonl")
    rows[0]["sitting"]["answers"] = ["[[[3]]]"]
    run = tmp_path / "trained"
    shutil.copytree(trained, run)
    (run / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    methods = "icl,random,ttt,best-fixed,seal-writer,seal,oracle"
    flags = ("--data", puzzles, "--limit", 2, "--methods", methods, "--edits", 2, "--writer", run, "--model", tiny_model, *SMALL)
    done = command("eval", "arc", *flags, "--run", tmp_path / "eval", "--json", tmp_path / "t.json")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "t.json").read_text())
    assert list(table["methods"]) == methods.split(",") and table["n"] == 2
    assert (
        table["intervals"]["ttt"]["runs"] == 4 >= table["intervals"]["ttt"]["trained"] and table["intervals"]["oracle"]["runs"] == 2
    )
    low, high = table["intervals"]["icl"]["wilson"]
    assert 0 <= low < high < 1
    held = {(row["method"], row["control"]) for row in table["differences"]}
    assert {("ttt", "icl"), ("seal", "ttt"), ("seal-writer", "best-fixed")} <= held
    assert set(table["seen"]) <= {"task5", "task6"}, "the run's own puzzles are named"
    assert table["methods"]["ttt"]["readable"]["mean"] == 1.0 and table["methods"]["oracle"]["read"]["mean"] > 0
    listed = rows_of(tmp_path / "eval" / "trials.jsonl")
    assert listed[0]["kind"] == "recipes" and listed[0]["written"]["seal"] == listed[0]["written"]["seal-writer"]
    text = listed[0]["written"]["seal"][0][0]
    students = {
        row["on_policy"]: row["sitting"] for row in listed[2:] if row["puzzle"] == listed[0]["puzzle"] and row["recipe"] == text
    }
    assert students[False] != students[True], "another student"
    distinct = {(row["puzzle"], row["on_policy"], row["recipe"], row["run"]) for row in listed[2:]}
    assert len(distinct) == len(listed) - 2 == table["cost"]["trainings"]
    written = {row["method"]: row["recipe"] for row in table["recipes"]}
    assert written["oracle"] == HAND_MADE.text() and written["best-fixed"] == table["fixed"]
    before = (tmp_path / "eval" / "trials.jsonl").read_text()
    (tmp_path / "eval" / "trials.jsonl").write_text("\n".join(before.split("\n")[:4]) + "\n")
    again = command("eval", "arc", *flags, "--run", tmp_path / "eval", "--resume")
    assert again.returncode == 0, again.stderr
    assert [without_times(row) for row in rows_of(tmp_path / "eval" / "trials.jsonl")] == [without_times(row) for row in listed]
    page = tmp_path / "page.html"
    done = command("report", tmp_path / "eval", trained, "--out", page)
    assert done.returncode == 0, done.stderr
    assert "<svg" in page.read_text() and f"Puzzles solved, {puzzles}<" in page.read_text(), "own data have no split"
    assert {"recipes-eval.png", "eval-recipes.csv"} <= {file.name for file in (tmp_path / "page-files").iterdir()}


def test_equal_recipes_get_trainings_of_their_own(command: Command, tiny_model: Path, puzzles: Path, tmp_path: Path) -> None:
    flags = (
        "--data",
        puzzles,
        "--limit",
        1,
        "--methods",
        "ttt,oracle",
        "--edits",
        3,
        "--set",
        "trainings=2",
        "--model",
        tiny_model,
    )
    done = command("eval", "arc", *flags, "--set", "edit.sampling.temperature=0", *SMALL, "--run", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    recipes, *trials = rows_of(tmp_path / "eval" / "trials.jsonl")
    assert len({text for text, _ in recipes["written"]["ttt"]}) == 1 and len(recipes["written"]["oracle"]) == 2
    own = [row for row in trials if row["recipe"] == recipes["written"]["ttt"][0][0]]
    assert [row["run"] for row in own] == [0, 1] and own[0]["sitting"] != own[1]["sitting"], "another seed"
    table = json.loads((tmp_path / "eval" / "table.json").read_text())
    assert table["intervals"]["ttt"]["runs"] == 3 and table["intervals"]["ttt"]["trained"] == 2
    assert numbered([("a", 1), ("b", 1), ("a", 1), ("a", 2)], 2) == [("a", 0), ("b", 0), ("a", 1), ("a", 0)]


def test_of_recipes_that_solved_as_much_the_fields_decide(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    puzzles = {puzzle.id: puzzle for puzzle in load_puzzles(str(run / "data.json"), "")}
    (first, second) = list(puzzles)[:2]
    plain, slow, fast = (json.loads(HAND_MADE.text()) for _ in range(3))
    plain["training"] |= {"learning_rate": 0.0001, "strategy": "train_using_all_tokens"}
    slow["training"] |= {"learning_rate": 0.0001}
    fast["training"] |= {"learning_rate": 0.001, "num_train_epochs": 3}
    texts = [json.dumps(slow), json.dumps(fast), json.dumps(plain)]
    shutil.rmtree(run / "round-01")
    (run / "round-01").mkdir()
    written = [{"context": one, "edits": [{"text": text} for text in texts]} for one in (first, second)]
    (run / "round-01" / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))

    def trial(context: str, candidate: int, right: bool) -> dict[str, Any]:
        answers = [json.dumps([[list(row) for row in wanted]]) if right else "[]" for _, wanted in puzzles[context].test]
        return {"context": context, "candidate": candidate, "sitting": {"answers": answers}}

    rows = [trial(first, 0, True), trial(second, 1, True), trial(second, 0, False), trial(first, 1, False), trial(second, 2, False)]
    (run / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert json.loads(best_fixed(run)) == fast, "both solved one of two; at the other rate a third is solved, at this one half"
    rows[4] = trial(second, 2, True)
    (run / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert json.loads(best_fixed(run)) == plain, "all of its trials"


def made_run(folder: Path, trials: list[tuple[str, dict[str, Any], bool, int | None]]) -> Path:
    """A run of (puzzle, recipe, whether it solved, the candidate that it shares a training with)."""
    names = list(dict.fromkeys(name for name, *_ in trials))
    of = {name: [trial for trial in trials if trial[0] == name] for name in names}
    (folder / "round-01").mkdir(parents=True)
    (folder / "data.json").write_text(json.dumps({name: one(5) for name in names}))
    edits = [{"context": name, "edits": [{"text": json.dumps(recipe)} for _, recipe, *_ in own]} for name, own in of.items()]
    rows = [
        {"context": name, "candidate": at, "sitting": {"answers": ["[[[3]]]" if right else "[]"]}}
        | ({} if twin is None else {"same_as": twin})
        for name, own in of.items()
        for at, (_, _, right, twin) in enumerate(own)
    ]
    for file, listed in ((folder / "round-01" / "edits.jsonl", edits), (folder / "trials.jsonl", rows)):
        file.write_text("".join(json.dumps(row) + "\n" for row in listed))
    return folder


def hand_made(**training: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(HAND_MADE.text())
    return made | {"training": made["training"] | training}


def test_recipes_that_share_a_training_are_one_trial(tmp_path: Path) -> None:
    better, worse = hand_made(num_train_epochs=2), hand_made(num_train_epochs=3)
    alike = [("b", better, False, None), ("b", better, False, 0), ("b", better, False, 0)]
    others = [(name, worse, name == "a", None) for name in "abc"]
    assert json.loads(best_fixed(made_run(tmp_path / "run", [("a", better, True, None), *alike, *others]))) == better, (
        "1/2, not 1/4"
    )


def test_a_recipe_that_can_t_be_read_here_is_refused_before_anything_starts(
    command: Command, tiny_model: Path, puzzles: Path, tmp_path: Path
) -> None:
    flags = ("--data", puzzles, "--methods", "icl,oracle", "--model", tiny_model, *SMALL, "--run", tmp_path / "eval")
    done = command("eval", "arc", *flags, "--set", "oracle=nonsense")
    assert done.returncode == 1 and "oracle: " in done.stderr and "--set oracle=" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "eval").exists()
    run = made_run(tmp_path / "run", [("a", hand_made(learning_rate=0.004), True, None)])
    config = ArcEvalConfig(methods=("best-fixed", "oracle"), fixed_of=str(run), oracle=json.dumps(hand_made(), indent=2))
    with pytest.raises(DataError, match=r"best-fixed, of .*0.004 is none of .*--unconstrained"):
        fixed_recipes(config)
    fixed, by_hand = fixed_recipes(config.model_copy(update={"edit": RecipeConfig(constrained=False)}))
    assert by_hand == {"others": HAND_MADE.text()} and json.loads(fixed or "") == hand_made(learning_rate=0.004)


def test_the_oracle_may_have_a_recipe_for_each_puzzle(command: Command, tiny_model: Path, puzzles: Path, tmp_path: Path) -> None:
    own, other = hand_made(num_train_epochs=2), hand_made(num_train_epochs=3)
    config = tmp_path / "eval.yaml"
    config.write_text(json.dumps({"oracle": {"task6": own, "others": other}}))
    flags = ("--data", puzzles, "--limit", 2, "--methods", "oracle", "--model", tiny_model, *SMALL)
    done = command("eval", "arc", *flags, "--config", config, "--run", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "eval" / "table.json").read_text())["recipes"]
    assert {row["puzzle"]: json.loads(row["recipe"]) for row in rows} == {"task5": other, "task6": own}
    config.write_text(json.dumps({"oracle": {"task6": "nonsense"}}))
    done = command("eval", "arc", *flags, "--config", config, "--run", tmp_path / "again")
    assert done.returncode == 1 and "oracle, of task task6:" in done.stderr


def test_a_run_that_tried_no_recipes_is_no_source_of_a_fixed_one(
    command: Command, tiny_model: Path, puzzles: Path, tmp_path: Path
) -> None:
    flags = ("--data", puzzles, "--limit", 1, "--model", tiny_model, *SMALL)
    done = command("eval", "arc", *flags, "--methods", "icl", "--run", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    done = command("eval", "arc", *flags, "--methods", "best-fixed", "--fixed-of", tmp_path / "eval", "--run", tmp_path / "again")
    assert done.returncode == 1 and "no run of selfedit train arc" in done.stderr and "Extra inputs" not in done.stderr
    (tmp_path / "eval" / "run.json").unlink()
    with pytest.raises(DataError, match=r"no run of selfedit train arc"):
        best_fixed(tmp_path / "eval")


def test_a_trial_that_failed_counts_against_its_recipe_s_fields(tmp_path: Path) -> None:
    better, worse, failing = hand_made(num_train_epochs=2), hand_made(num_train_epochs=3), hand_made(num_train_epochs=3)
    failing["data_generation"] = failing["data_generation"] | {"use_size_augmentations": True}
    run = made_run(tmp_path / "run", [("a", better, True, None), ("b", worse, True, None), ("c", failing, False, None)])
    rows = rows_of(run / "trials.jsonl")
    rows[2]["sitting"] = None
    (run / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert json.loads(best_fixed(run)) == better


def test_an_invalid_recipe_is_one_outcome_however_often_it_stands() -> None:
    invalid = [{"recipe": "?", "run": number, "status": "invalid"} for number in (0, 1, 2)]
    assert len({_independent(trial) for trial in invalid}) == 1
    trained = [{"recipe": "{}", "run": number, "status": "ok"} for number in (0, 1, 0)]
    assert len({_independent(trial) for trial in trained}) == 2
    assert _independent({"recipe": None, "status": "too long"}) == (None, None)


def test_solve_trains_as_eval_does(command: Command, tiny_model: Path, puzzles: Path, tmp_path: Path) -> None:
    flags = ("--model", tiny_model, "--edits", 2, *SMALL)
    done = command("eval", "arc", "--data", puzzles / "task5.json", "--methods", "icl,ttt", *flags, "--run", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    recipes, *trials = rows_of(tmp_path / "eval" / "trials.jsonl")
    done = command("solve", puzzles / "task5.json", "--json", tmp_path / "s.json", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "s.json").read_text())
    assert [json.dumps(answer) for answer in result["before"]] == recipes["icl"]["sitting"]["answers"]
    theirs = {row["recipe"]: row["sitting"]["answers"] for row in trials}
    assert {row["recipe"]: [json.dumps(answer) for answer in row["after"]] for row in result["recipes"]} == theirs
    unknown = json.loads((puzzles / "task5.json").read_text())
    del unknown["test"][0]["output"]
    (tmp_path / "task5.json").write_text(json.dumps(unknown))
    done = command("solve", tmp_path / "task5.json", "--json", tmp_path / "u.json", *flags)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "u.json").read_text())
    assert [row["after"] for row in again["recipes"]] == [row["after"] for row in result["recipes"]]


def test_a_run_of_the_outer_loop_goes_on_with_its_own_puzzles_only(
    command: Command, trained: Path, tiny_model: Path, puzzles: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "tasks"
    shutil.copytree(puzzles, changed)
    shutil.copytree(trained, tmp_path / "run")
    for number in range(5, 9):
        task = one(number)
        task["test"][0]["output"] = [[4]]
        (changed / f"task{number}.json").write_text(json.dumps(task))
    settings = tmp_path / "run" / "run.json"
    settings.write_text(settings.read_text().replace(str(puzzles), str(changed)))
    before = (tmp_path / "run" / "data.json").read_text()
    done = command("train", "arc", "--run", tmp_path / "run", "--resume", "--rounds", 9, "--workers", 0)
    assert done.returncode == 1, "there are too few for so many rounds"
    done = command("train", "arc", "--run", tmp_path / "run", "--resume", "--workers", 0)
    assert done.returncode == 1 and "aren't what they were" in done.stderr and "data.json" in done.stderr
    assert (tmp_path / "run" / "data.json").read_text() == before


def test_the_policy_writes_once_for_both_of_its_methods(lm: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    really = evaluate.recipes_of
    monkeypatch.setattr(evaluate, "recipes_of", lambda lm, lease, method: written.append(method) or really(lm, lease, method))
    config = ArcEvalConfig(methods=("ttt", "seal-writer", "seal"), edits=1, edit=RecipeConfig(orders=1))
    row = write_recipes(lm, Lease(config, parse_puzzle(one(5), "a", "a"), None, {}))
    assert written == ["ttt", "seal-writer"] and row["written"]["seal"] == row["written"]["seal-writer"]
    monkeypatch.setattr(estimate, "_speed", lambda device: 1e9)
    monkeypatch.setattr(estimate, "default_workers", lambda device: 1)

    def seconds(*methods: str) -> float:
        return estimate.estimate_puzzles(ArcEvalConfig(methods=methods), identify(str(tiny_model)), 8).seconds

    assert seconds("seal-writer") == seconds("seal") > seconds("random")
    assert seconds("random", "seal") == seconds("seal-writer", "seal"), "random writes nothing, but is tried as often"


def test_a_run_goes_on_with_its_own_puzzles_only(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(json.dumps(one(5)))
    flags = ("eval", "arc", "--data", tmp_path / "own.json", "--methods", "icl", "--model", tiny_model, *SMALL, "--run")
    done = command(*flags, tmp_path / "eval")
    assert done.returncode == 0 and "own.json: 1 puzzles" in done.stdout and "paper-eval-run" not in done.stdout, done.stderr
    before = (tmp_path / "eval" / "data.json").read_text()
    assert command(*flags, tmp_path / "eval", "--resume").returncode == 0
    (tmp_path / "own.json").write_text(json.dumps(one(6)))
    done = command(*flags, tmp_path / "eval", "--resume")
    assert done.returncode == 1 and "'own' among them" in done.stderr and "give --data as it was" in done.stderr
    assert (tmp_path / "eval" / "data.json").read_text() == before


def test_free_recipes_are_all_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    texts = [json.dumps(hand_made(learning_rate=rate, num_train_epochs=epochs)) for rate, epochs in ((0.1, 2), (1e-6, 50))]
    monkeypatch.setattr(
        pictures, "written_recipes", lambda run: [(name, text, True) for name, text in zip("ab", texts, strict=True)]
    )
    monkeypatch.setattr(pictures, "picture_of", lambda figure, *more: shown.append(figure))
    pictures.recipes_picture(SimpleNamespace(name="run", kind="puzzles"))  # type: ignore[arg-type]
    for axes in shown[0].axes[:2]:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for rate, epochs in axes.collections[0].get_offsets():
            assert left < rate < right and low < epochs < high
        assert left < 1e-5 < 2e-3 < right and low < 1 < 5 < high, "the grids at least"


def test_halving_one_run_is_refused_for_puzzles_too() -> None:
    with pytest.raises(ValueError, match="give repeats of 2 or more"):
        ArcTrainConfig(halving=True, repeats=1)


def without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key != "seconds"}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def test_unreadable_recipes_are_asked_for_again(command: Command, tiny_model: Path, puzzles: Path, tmp_path: Path) -> None:
    flags = ("--data", puzzles, "--limit", 1, "--methods", "ttt", "--edits", 2, "--unconstrained", "--model", tiny_model, *SMALL)
    done = command("eval", "arc", *flags, "--run", tmp_path / "eval", "--set", "edit.sampling.resamples=3")
    assert done.returncode == 0, done.stderr
    recipes, *trials = rows_of(tmp_path / "eval" / "trials.jsonl")
    assert [attempts for _, attempts in recipes["written"]["ttt"]] == [4, 4] and {row["status"] for row in trials} == {"invalid"}
    assert json.loads((tmp_path / "eval" / "table.json").read_text())["methods"]["ttt"]["readable"]["mean"] == 0.0


def test_a_puzzle_that_is_too_long_is_unsolved(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    pair = {"input": [[1] * 30] * 30, "output": [[1] * 30] * 30}
    (tmp_path / "long.json").write_text(json.dumps({"train": [pair] * 3, "test": [pair]}))
    done = command("eval", "arc", "--data", tmp_path / "long.json", "--model", tiny_model, "--run", tmp_path / "eval", *SMALL)
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "eval" / "trials.jsonl")
    assert "long:" in row["reason"] and not row["written"]
    table = json.loads((tmp_path / "eval" / "table.json").read_text())
    assert table["intervals"]["ttt"]["runs"] == 5 and table["intervals"]["icl"]["runs"] == 1, "as many as would have been"
    done = command("solve", tmp_path / "long.json", "--model", tiny_model)
    assert done.returncode == 1 and "window" in done.stderr


def test_solve_shows_before_and_after(command: Command, tiny_model: Path, puzzles: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(HAND_MADE.text())
    done = command(
        "solve", puzzles / "task5.json", "--model", tiny_model, "--recipe", recipe, "--json", tmp_path / "s.json", *SMALL
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["solved"] in (True, False) and len(result["before"]) == len(result["after"]) == 1
    assert result["recipes"][0]["status"] == "ok" and result["recipes"][0]["tokens"] > 0
    assert "after training:" in done.stdout and "example 1" in done.stdout
    recipe.write_text("{}")
    done = command("solve", puzzles / "task5.json", "--model", tiny_model, "--recipe", recipe)
    assert done.returncode == 1 and "recipe.json" in done.stderr and "data_generation" in done.stderr


BAD = {
    "no demonstration": ({"train": [], "test": [{"input": [[1]], "output": [[1]]}]}, "no demonstration pair"),
    "ragged": ({"train": [{"input": [[1, 2], [1]], "output": [[1]]}], "test": [{"input": [[1]]}]}, "train 1, input"),
    "colour": ({"train": [{"input": [[10]], "output": [[1]]}], "test": [{"input": [[1]]}]}, "train 1, input"),
    "large": ({"train": [{"input": [[1]], "output": [[1] * 31]}], "test": [{"input": [[1]]}]}, "train 1, output"),
    "no solution": ({"train": [{"input": [[1]], "output": [[1]]}], "test": [{"input": [[1]]}]}, "test 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_puzzles_name_the_task_and_the_field(command: Command, tiny_model: Path, tmp_path: Path, case: str) -> None:
    task, told = BAD[case]
    (tmp_path / "bad.json").write_text(json.dumps(task))
    done = command("eval", "arc", "--data", tmp_path / "bad.json", "--model", tiny_model, "--run", tmp_path / "run")
    assert done.returncode == 1 and "bad" in done.stderr and told in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
