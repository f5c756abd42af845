"""Report, convert and select: on a run of ours and on a result file in the reference code's form."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from selfedit.convert import convert
from selfedit.errors import DataError
from selfedit.report.page import write_report
from selfedit.report.read import RunData
from selfedit.report.tables import comparison

Command = Callable[..., subprocess.CompletedProcess[str]]
# right[article][completion][run][question], and the baseline's marks by article.
RIGHT = (
    (((1, 0, 0), (1, 1, 0)), ((1, 1, 1), (0, 1, 0)), ((1, 1, 0), (1, 0, 1))),
    (((0, 0), (0, 0)), ((1, 0), (0, 0)), ((0, 0), (1, 0))),
    (((0, 0), (0, 0)), ((0, 0), (0, 0)), ((0, 0), (0, 0))),
)
BEFORE = ((1, 0, 0), (0, 0), (1, 0))


@pytest.fixture
def result_file(tmp_path: Path) -> Path:
    articles = []
    for a, completions in enumerate(RIGHT):
        listed = []
        for c, runs in enumerate(completions):
            questions = [
                {
                    "rep": rep, "question": f"Question {a} {q}?", "answer": f"gold {q}", "baseline_answer": "?",
                    "adapter_answer": "!", "baseline_correct": bool(BEFORE[a][q]), "adapter_correct": bool(right),
                }
                for rep, run in enumerate(runs)
                for q, right in enumerate(run)
            ]  # fmt: skip
            mean = round(fmean(fmean(run) for run in runs), 4)
            stats = {"adapter_mean": mean, "baseline_mean": round(fmean(BEFORE[a]), 4)}
            listed.append({"text": f" Notes {a} {c}.\nA gold 0 line. ", "stats": stats, "questions": questions})
        stats = {"adapter_mean": 0.7 if a == 1 else round(fmean(one["stats"]["adapter_mean"] for one in listed), 4)}
        articles.append(
            {"title": f"T{a}", "context": f"Passage {a}.", "prompt": f"Read {a}:", "stats": stats, "completions": listed}
        )
    articles[0]["completions"][2]["stats"]["gain_mean"] = 0.5
    data: dict[str, Any] = {"exp_name": "iter0", "split_newlines": True, "k_completions": 3, "eval_times": 2, "articles": articles}
    data["overall"] = {"adapter_mean_accuracy": 0.9, "baseline_mean_accuracy": round(fmean(fmean(marks) for marks in BEFORE), 4)}
    file = tmp_path / "result.json"
    file.write_text(json.dumps(data))
    return file


def test_aggregates_are_computed_again(result_file: Path, tmp_path: Path) -> None:
    found = convert(result_file, tmp_path / "run")
    means = [[fmean(fmean(run) for run in runs) for runs in completions] for completions in RIGHT]
    overall = found["overall"]
    assert overall["adapter_mean_accuracy"] == round(fmean(map(fmean, means)), 4)
    assert overall["adapter_std_of_article_means"] == round(stdev(map(fmean, means)), 4)
    assert overall["mean_adapter_std_over_completions"] == round(fmean(map(stdev, means)), 4)
    within = [fmean(stdev([fmean(run) for run in runs]) for runs in completions) for completions in RIGHT]
    assert overall["mean_adapter_std_within_completions"] == round(fmean(within), 4)
    assert overall["mean_gain"] == pytest.approx(overall["adapter_mean_accuracy"] - overall["baseline_mean_accuracy"], abs=1e-4)
    assert found["differs"] == ["adapter_mean_accuracy"], "the file says 0.9"
    gain = means[0][2] - fmean(BEFORE[0])
    second = f"article 2: adapter_mean 0.7, computed {fmean(means[1]):.4f}"
    assert found["below"] == [f"article 1, completion 3: gain_mean 0.5, computed {gain:.4f}", second]
    with pytest.raises(DataError, match="exists"):
        convert(result_file, tmp_path / "run")


def test_select_on_a_converted_run(command: Command, result_file: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "rows.jsonl"
    done = command("convert", result_file, run)
    assert done.returncode == 0 and "differs" in done.stdout, done.stderr

    def rows(rule: str, *more: object) -> list[str]:
        assert command("select", run, "--rule", rule, "--out", out, *more).returncode == 0
        return [json.loads(line)["completion"][6:9] for line in out.read_text().splitlines()]

    assert rows("best") == ["0 1", "1 1", "2 0"], "the first of equals"
    assert rows("positive") == ["0 0", "0 1", "0 2", "1 1", "1 2"]
    assert rows("best-positive") == ["0 1", "1 1"]
    assert len(rows("random", "--seed", 3)) == 3 and len(rows("top-fraction", "--fraction", 0.5)) == 4
    assert json.loads(out.read_text().splitlines()[0])["prompt"] == "Read 0:"
    missing = command("select", run, "--round", 2, "--out", out)
    assert missing.returncode == 1 and "round 2" in missing.stderr


def test_report_is_one_page_with_pictures_and_tables(command: Command, result_file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert command("convert", result_file, tmp_path / name).returncode == 0
    done = command("report", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert 'src="http' not in page and "<script" not in page and page.count("data:image/png;base64,") == 4
    assert "two - one" in page and "Best and worst self-edits" in page
    beside = {file.name for file in (tmp_path / "page-files").iterdir()}
    assert {"reward-by-round.png", "texts.png", "one-self-edits.csv", "one-noise-of-the-reward.csv"} <= beside
    with (tmp_path / "page-files" / "one-self-edits.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 9 and float(table[1]["after"]) == pytest.approx(fmean((1, 1 / 3))) and table[0]["coverage"] != ""
    before = {file: file.read_bytes() for file in (tmp_path / "page-files").iterdir()}
    assert command("report", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "page.html").returncode == 0
    assert before == {file: file.read_bytes() for file in (tmp_path / "page-files").iterdir()}, "same runs, same bytes"
    missing = command("report", tmp_path / "nowhere")
    assert missing.returncode == 1 and "no run there" in missing.stderr and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("articles"), "neither articles nor"),
        (lambda d: d["articles"][1].pop("title"), "article 2: field title"),
        (lambda d: d["articles"][1].update(context=" "), "article 2: field context is missing, empty"),
        (lambda d: d["articles"][0]["completions"][1].pop("text"), "completion 2: field text"),
        (lambda d: d["articles"][0]["completions"][0]["questions"][2].pop("adapter_correct"), "question 3: field adapter_correct"),
        (lambda d: d["articles"].clear(), "no articles"),
    ],
)
def test_bad_results_name_the_field(result_file: Path, tmp_path: Path, change: Callable[[Any], Any], said: str) -> None:
    data = json.loads(result_file.read_text())
    change(data)
    result_file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=said):
        convert(result_file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_result_of_many_passages_becomes_a_table(command: Command, tmp_path: Path) -> None:
    before, after = [True, False, False, False, True, False], [True, True, False, True, False, False]
    data = {"overall": {"baseline_accuracy": 0.3333, "adapter_accuracy": 0.6, "gain": 0.1667}, "lora_params": {"rank": 32}}
    reply = {"baseline_texts": ["?"] * 6, "adapter_texts": ["!"] * 6, "baseline_correct": before, "adapter_correct": after}
    file = tmp_path / "cpt.json"
    file.write_text(json.dumps(data | {"per_article": [], "server_reply": reply}))
    done = command("convert", file, tmp_path / "run", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["overall"] == {"baseline_accuracy": 0.3333, "adapter_accuracy": 0.5, "gain": 0.1667}
    assert found["differs"] == ["adapter_accuracy"]
    done = command("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "adapter - baseline" in page and "50.0" in page
    file.write_text(json.dumps(data | {"server_reply": reply | {"adapter_correct": after[:-1]}}))
    done = command("convert", file, tmp_path / "other")
    assert done.returncode == 1 and "6 verdicts of the baseline and 5" in done.stderr and not (tmp_path / "other").exists()


def test_a_summary_of_sequences_becomes_a_matrix(command: Command, tmp_path: Path) -> None:
    means = [[0.3, 0.2], [0.5, 0.0], [0.4, 0.6]]
    spreads = [[0.1, 0.1], [0.2, 0.0], [0.1, 0.2]]
    file = tmp_path / "summary.json"
    data = {"mean_over_sequences": means, "std_over_sequences": spreads, "n_sequences": 4, "n_datapoints": 2}
    file.write_text(json.dumps(data))
    done = command("convert", file, tmp_path / "run", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["overall"] == {
        "before": 0.25, "all_own": 0.55, "all_after": 0.5, "forgetting": 0.1,
    }  # fmt: skip
    matrix = json.loads((tmp_path / "run" / "table.json").read_text())["matrix"]["merge"]
    assert matrix[1][1] is None and matrix[2][1] == {"n": 4, "mean": 0.6, "se": 0.1}
    done = command("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    kept = (tmp_path / "page-files" / "run-what-was-kept.csv").read_text().splitlines()
    assert "What was kept" in page and "55.0" in kept[1].split(",")[kept[0].split(",").index("all at the own commit %")]
    assert (tmp_path / "page-files" / "matrix-run-merge.png").is_file()
    file.write_text(json.dumps(data | {"std_over_sequences": spreads[:2]}))
    done = command("convert", file, tmp_path / "other")
    assert done.returncode == 1 and "std_over_sequences" in done.stderr


def test_runs_of_one_name_have_pictures_of_their_own(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "benchmarks" / "results" / "keep"
    folders = [tmp_path / name / "keep" for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        for file in ("run.json", "table.json"):
            shutil.copy(source / file, folder / file)
    written = write_report(folders, tmp_path / "page.html")
    assert len(set(written)) == len(written) and all(file.is_file() for file in written)
    assert {"matrix-keep-1-merge.png", "matrix-keep-2-merge.png"} <= {file.name for file in written}


def test_a_method_that_only_a_later_run_has_is_held_against_the_first_run_s(tmp_path: Path) -> None:
    def run(name: str, **accuracy: tuple[float, ...]) -> RunData:
        passages = [
            {"id": str(at), "title": str(at), "methods": {method: {"accuracy": of[at]} for method, of in accuracy.items()}}
            for at in range(3)
        ]
        return RunData(name, tmp_path, "puzzles", {}, table={"methods": {method: {} for method in accuracy}, "passages": passages})

    found = comparison([run("first", icl=(0.0, 0.0, 0.0), ttt=(0.2, 0.4, 0.0)), run("later", seal=(0.6, 0.8, 0.1))])
    assert found is not None
    listed = {row[1]: row for row in found.rows}
    assert list(listed) == ["seal - icl, solved", "seal - ttt, solved"]
    assert listed["seal - icl, solved"][0] == "later - first" and listed["seal - icl, solved"][2] == 3
    assert listed["seal - ttt, solved"][3].startswith("+30.0 ["), "0.4, 0.4 and 0.1"


def test_a_second_policy_s_share_of_the_first_one_s_gain(tmp_path: Path) -> None:
    """Its writer gains .1 where the first one's gains .2: half, over passages."""
    runs = []
    for name, gains in (("labelled", (0.3, 0.1, 0.2, 0.2)), ("free", (0.2, 0.0, 0.1, 0.1))):
        passages = [
            {"id": str(at), "title": str(at), "methods": {"self": {"accuracy": 0.2}, "seal-writer": {"accuracy": 0.2 + gain}}}
            for at, gain in enumerate(gains)
        ]
        table: dict[str, Any] = {"methods": {"self": {}, "seal-writer": {}}, "passages": passages}
        runs.append(RunData(name, tmp_path, "eval", {}, table=table))
    # A run of another kind before them has nothing to be compared with.
    found = comparison([RunData("trained", tmp_path, "train", {}), *runs])
    assert found is not None
    listed = {row[1]: row for row in found.rows}
    assert listed["seal-writer, correct"][0] == "free - labelled" and listed["seal-writer, correct"][2] == 4
    (row,) = [row for row in found.rows if "share of the gain" in row[1]]
    value, low, high = (float(part) for part in re.findall(r"-?\d+\.\d+", row[3]))
    assert row[2] == 4 and value == 0.5 and 0 < low < 0.5 < high < 1
