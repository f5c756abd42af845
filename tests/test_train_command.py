"""``selfedit train`` and what uses a trained policy, as processes on a tiny model: what is left on disk, kill and resume."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from selfedit.contexts import Passage
from selfedit.runs import policy_at
from selfedit.tasks.knowledge.data import load_dataset

Command = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    "--workers", 0, "--set", "edit.sampling.max_new_tokens=12", "--set", "edit.sampling.temperature=1", "--set", "edit.passes=1",
    "--set", "edit.shots=0",
    "--set", "edit.form=plain", "--set", "settings.epochs=1", "--set", "settings.rank=4", "--set", "settings.layers=all",
)  # fmt: skip
TRAIN = (
    "train", "knowledge", "--rounds", 2, "--passages", 2, "--edits", 2, "--rule", "best", "--student", "base",
    "--set", "noise_contexts=1", "--set", "outer.epochs=1", "--set", "outer.rank=4", *SMALL,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(command: Command, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two rounds."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = command(*TRAIN, "--model", tiny_model, "--run", folder, "--json", folder.parent / "out.json")
    assert done.returncode == 0, done.stderr
    assert "policy:" in done.stdout and "reliability" in done.stdout
    return folder


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["round"], row["context"], row["candidate"], row["repeat"]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(({k: v for k, v in row.items() if k != "seconds"} for row in rows), key=key)


def test_a_run_leaves_all_its_files(trained: Path) -> None:
    assert {"version", "commit", "config"} == set(json.loads((trained / "run.json").read_text()))
    rows = rows_of(trained / "trials.jsonl")
    assert len({key(row) for row in rows}) == len(rows) == 2 * (2 * 2 + 1 * 2), "the noise passage's edits are tried twice"
    metrics = rows_of(trained / "metrics.jsonl")
    assert [row["round"] for row in metrics] == [1, 2]
    assert metrics[1]["policy_before"] == metrics[0]["policy_after"] != metrics[1]["policy_after"]
    assert set(metrics[0]["reliability"]) == {"accuracy", "likelihood", "mixed"}
    for number in (1, 2):
        folder = trained / f"round-{number:02d}"
        assert {"edits.jsonl", "rows.jsonl", "selected.json", "policy"} <= {file.name for file in folder.iterdir()}
        assert len(json.loads((folder / "policy" / "training.json").read_text())["losses"]) >= 1
    assert json.loads((trained.parent / "out.json").read_text())["policy"].endswith("round-02/policy")


def test_passages_of_rounds_differ_and_no_other_policy_is_taken(command: Command, trained: Path, tiny_model: Path) -> None:
    drawn = [{row["context"] for row in rows_of(trained / f"round-0{n}" / "edits.jsonl")} for n in (1, 2)]
    assert not drawn[0] & drawn[1]
    again = command(*TRAIN, "--model", tiny_model, "--run", trained)
    assert again.returncode == 1 and "run is there already" in again.stderr


def test_rows_of_another_policy_are_refused(command: Command, trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    stale = tmp_path / "stale"
    shutil.copytree(trained, stale)
    shutil.rmtree(stale / "round-02" / "policy")
    edits = (stale / "round-02" / "edits.jsonl").read_text()
    (stale / "round-02" / "edits.jsonl").write_text(edits.replace('"policy": "', '"policy": "0', 1))
    done = command("train", "knowledge", "--run", stale, "--resume", "--workers", 0)
    assert done.returncode == 1 and "what it found doesn't hold" in done.stderr, done.stderr


def test_kill_and_resume_end_in_the_same_policy(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Two moments here; ten with the mark slow."""
    kill_many(2, trained, tiny_model, tmp_path / "run")


@pytest.mark.slow
def test_kill_at_ten_moments(trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    kill_many(10, trained, tiny_model, tmp_path / "run")


def kill_many(times: int, whole: Path, model: Path, folder: Path) -> None:
    """Starts the run anew and kills it at random moments until it comes through; everything as in the run ``whole``."""
    chance = random.Random(1)
    start = [sys.executable, "-m", "selfedit", *map(str, TRAIN), "--model", str(model), "--run", str(folder)]
    kills = 0
    while True:
        resume = ["--resume"] if (folder / "run.json").exists() else []
        process = subprocess.Popen([*start, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        if kills < times:
            before = progress_of(folder)
            while process.poll() is None and progress_of(folder) == before:
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.5))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                continue
        assert process.communicate(timeout=300) and process.returncode == 0
        rows = rows_of(folder / "trials.jsonl")
        assert len({key(row) for row in rows}) == len(rows), "no trial twice"
        assert without_times(rows) == without_times(rows_of(whole / "trials.jsonl"))
        for number in (1, 2):
            policies = [run / f"round-{number:02d}" / "policy" / "adapter_model.safetensors" for run in (folder, whole)]
            assert policies[0].read_bytes() == policies[1].read_bytes()
        if kills == times:
            break
        # It came through before all kills: once more from the beginning.
        shutil.rmtree(folder)


def progress_of(folder: Path) -> int:
    """Bytes of the run's rows, edits and policies so far."""
    return sum(file.stat().st_size for file in folder.rglob("*.jsonl")) if folder.exists() else 0


def test_the_random_control_follows_its_run(command: Command, trained: Path, tiny_model: Path, tmp_path: Path) -> None:
    flags = [flag if flag != "best" else "random" for flag in TRAIN]
    done = command(*flags, "--model", tiny_model, "--run", tmp_path / "control", "--control-of", trained)
    assert done.returncode == 0, done.stderr
    for number in (1, 2):
        ours, theirs = (
            json.loads((run / f"round-0{number}" / "selected.json").read_text()) for run in (tmp_path / "control", trained)
        )
        assert [row["context"] for row in ours] == [row["context"] for row in theirs]
        trainings = [
            json.loads((run / f"round-0{number}" / "policy" / "training.json").read_text())
            for run in (tmp_path / "control", trained)
        ]
        assert trainings[0]["rows"] == trainings[1]["rows"] and len(trainings[0]["losses"]) == len(trainings[1]["losses"])
    assert not (tmp_path / "control" / "trials.jsonl").exists(), "nothing is tried, since nothing is weighed"
    other = command("train", "knowledge", "--control-of", trained, "--seed", 5, "--run", tmp_path / "other")
    assert other.returncode == 1 and "only the rule may differ" in other.stderr and "seed=0" in other.stderr
    named = command("train", "knowledge", "--control-of", trained, "--config", trained / "run.json", "--run", tmp_path / "other")
    assert named.returncode == 1 and "leave out --config" in named.stderr and not (tmp_path / "other").exists()
    rows = command("select", tmp_path / "control", "--out", tmp_path / "rows.jsonl")
    assert rows.returncode == 1 and "a control at random weighs nothing" in rows.stderr
    scored = rows_of(tmp_path / "control" / "round-01" / "scored.jsonl")
    assert scored and not any(row["tried"] for row in scored), "its zeros are no rewards"
    shutil.copytree(tmp_path / "control", tmp_path / "drawn")
    plain = json.loads((tmp_path / "drawn" / "run.json").read_text())
    plain["config"]["control_of"] = ""
    (tmp_path / "drawn" / "run.json").write_text(json.dumps(plain))
    ranked = command("select", tmp_path / "drawn", "--rule", "best", "--out", tmp_path / "rows.jsonl")
    assert ranked.returncode == 1 and "nothing in it can be selected by best" in ranked.stderr
    (tmp_path / "drawn" / "round-01" / "edits.jsonl").unlink()
    lost = command("select", tmp_path / "drawn", "--out", tmp_path / "rows.jsonl")
    assert lost.returncode == 1 and "has no self-edits of" in lost.stderr


def test_without_a_line_that_taught_the_policy_stays_the_base(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    """A random model writes nothing that can be credited: no rows, and its control has none either."""
    flags = (*TRAIN, "--rounds", 1, "--model", tiny_model, "--credit", "lines", "--reward", "likelihood")
    done = command(*flags, "--rule", "positive", "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    scored = rows_of(tmp_path / "run" / "round-01" / "scored.jsonl")
    assert all(len(one["gains"]) == len(one["baseline_verdicts"]) > 0 for one in scored if one["usable"])
    assert rows_of(tmp_path / "run" / "round-01" / "rows.jsonl") == []
    done = command(*flags, "--rule", "random", "--control-of", tmp_path / "run", "--run", tmp_path / "control")
    assert done.returncode == 0, done.stderr
    done = command(*flags, "--set", "algorithm=dpo", "--run", tmp_path / "dpo")
    assert done.returncode != 0 and "give credit edit" in done.stderr
    for wrong, said in (("rule=random", "no best and no worst"), ("outer.dropout=0.1", "without dropout")):
        done = command(*TRAIN, "--model", tiny_model, "--set", "algorithm=dpo", "--set", wrong, "--run", tmp_path / "dpo")
        assert done.returncode != 0 and said in done.stderr and not (tmp_path / "dpo").exists()
    done = command(*flags, "--set", "halving=true", "--repeats", 1, "--run", tmp_path / "halved")
    assert done.returncode != 0 and "give repeats of 2 or more" in done.stderr
    done = command(*flags, "--rule", "random", "--run", tmp_path / "random")
    assert done.returncode != 0 and "give --control-of or credit edit" in done.stderr


def test_dpo_halving_and_a_merged_policy(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    from selfedit.lm.load import load_model

    flags = [*TRAIN, "--set", "algorithm=dpo", "--reward", "likelihood", "--repeats", 2, "--set", "halving=true"]
    flags += ["--set", "noise_contexts=0", "--set", "merge=true", "--edits", 4, "--rounds", 1, "--model", tiny_model]
    done = command(*flags, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    repeats = [row["repeat"] for row in rows_of(tmp_path / "run" / "trials.jsonl")]
    assert repeats.count(0) == 8 and repeats.count(1) == 4, "the better half of 4, for 2 passages"
    assert json.loads((tmp_path / "run" / "round-01" / "policy" / "training.json").read_text())["rows"] > 0
    assert load_model(str(tmp_path / "run" / "merged")).model.config.num_hidden_layers == 4


def test_what_the_outer_loop_learnt_reaches_learn(
    command: Command, trained: Path, tiny_model: Path, tmp_path: Path, passage_file: Path, quiz_file: Path
) -> None:
    results = []
    for writer in ((), ("--writer", trained)):
        file = tmp_path / f"{len(results)}.json"
        flags = (passage_file, "--quiz", quiz_file, "--model", tiny_model, "--memory", tmp_path / "memory", *SMALL, *writer)
        done = command("learn", *flags, "--edits", 2, "--json", file)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(file.read_text()))
    base, policy = results
    assert (base["writer"], len(policy["writer"])) == ("base", 16)
    assert [one["edit"] for one in base["candidates"]] != [one["edit"] for one in policy["candidates"]]
    assert base["baseline"] == policy["baseline"], "the base is the student of both"
    missing = command("learn", passage_file, "--quiz", quiz_file, "--model", tiny_model, "--writer", tmp_path, *SMALL)
    assert missing.returncode == 1 and "no policy there" in missing.stderr


class Writer(BaseHTTPRequestHandler):
    """An OpenAI-compatible server whose model always writes the same pair; ``busy`` times it says that it is busy."""

    asked: ClassVar[list[dict[str, Any]]] = []
    busy: ClassVar[int] = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Writer.busy:
            Writer.busy -= 1
            self.send_response(429)
            self.send_header("retry-after", "0")
            self.end_headers()
            return
        Writer.asked.append(body)
        reply = {"choices": [{"message": {"content": f"Q: What is it?\nA: thing {len(Writer.asked)}"}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    Writer.asked.clear()
    Writer.busy = 2
    httpd = HTTPServer(("127.0.0.1", 0), Writer)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()


def test_every_method_of_a_policy_and_an_external_writer(
    command: Command, trained: Path, tiny_model: Path, tmp_path: Path, server: str
) -> None:
    methods = "none,passage,self,self:rewrite,external:self-qa,seal-writer,policy-none,policy-passage,seal"
    flags = ("eval", "knowledge", "--split", "dev", "--limit", 2, "--model", tiny_model, "--methods", methods, *SMALL)
    done = command(*flags, "--run", tmp_path / "run", "--writer", trained, "--external", server)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    assert list(table["methods"]) == methods.split(",")
    policy = trained / "round-02" / "policy"
    assert table["config"]["writer"] == str(policy) and table["policy"] == policy_at(policy).digest, "this one, whatever RUN gets"
    assert len(Writer.asked) > 0 and all("Write questions" in body["messages"][-1]["content"] for body in Writer.asked)
    rows = rows_of(tmp_path / "run" / "trials.jsonl")
    trials = rows[0]["trials"]
    count = {method: sum(trial["method"] == method for trial in trials) for method in table["methods"]}
    assert count["self"] == count["seal"] == count["seal-writer"] == 2 and count["policy-passage"] == 1
    texts = {method: [trial["edit"] for trial in trials if trial["method"] == method] for method in ("self", "seal", "seal-writer")}
    assert texts["seal"] == texts["seal-writer"] != texts["self"], "the same self-edits for both students"
    answers = {t["method"]: t["sittings"][0]["log_probabilities"] for t in trials if t["method"] in ("none", "policy-none")}
    assert answers["none"] != answers["policy-none"]
    held = {(row["method"], row["control"]) for row in table["differences"]}
    assert {("seal-writer", "self"), ("seal", "policy-passage"), ("policy-none", "none"), ("external:self-qa", "self")} <= held
    assert all(len(trial["sittings"]) == 3 for trial in trials if trial["status"] == "ok"), "titled, bare, elsewhere"
    assert table["methods"]["self"]["locality_logprob"]["n"] == 2
    before = len(Writer.asked)
    again = command(*flags, "--run", tmp_path / "run", "--resume", "--writer", trained, "--external", server)
    assert again.returncode == 0 and len(Writer.asked) == before, "nothing is asked for twice"
    (passage, _) = load_dataset("almanac", "dev")[:2]
    named = {
        "title": passage.title.replace(" ", "_"),
        "context": f"{passage.text}\n",
        "completions": ["Q: What is it?\nA: a peat bog", ""],
    }
    (tmp_path / "notes.json").write_text(json.dumps([named]))
    flat = [flag if flag != methods else "external" for flag in flags]
    flat[flat.index("--limit") + 1] = 1
    ours = command(*flat, "--external", tmp_path / "notes.json", "--run", tmp_path / "file")
    assert ours.returncode == 0, ours.stderr
    (row,) = rows_of(tmp_path / "file" / "trials.jsonl")
    assert [(t["status"], t["edit"] == "") for t in row["trials"]] == [("ok", False), ("ok", True)], "empty: the passage alone"
    assert row["trials"][0]["steps"] > row["trials"][1]["steps"] > 0
    (tmp_path / "file" / "trials.jsonl").unlink()
    (tmp_path / "notes.json").write_text(json.dumps([named | {"completions": ["Others.", ""]}]))
    changed = command(*flat, "--external", tmp_path / "notes.json", "--run", tmp_path / "file", "--resume")
    assert changed.returncode == 1 and "when the run began" in changed.stderr
    other = command(*flags, "--run", tmp_path / "new", "--writer", tmp_path, "--external", server)
    assert other.returncode == 1 and "no policy there" in other.stderr
    missing = command(*flags, "--run", tmp_path / "new", "--external", server)
    assert missing.returncode == 1 and "--writer" in missing.stderr


def test_many_passages_at_once(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    flags = ["eval", "knowledge", "--split", "dev", "--setting", "corpus", "--n", 3, "--model", tiny_model, *SMALL]
    flags += [
        "--methods",
        "none,passage,passage-matched,self,context",
        "--set",
        "corpus.variants=[{epochs: 1}, {epochs: 2, learning_rate: 0.01}]",
    ]
    done = command(*flags, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    labels = [
        f"{method} {variant}"
        for method in ("passage", "passage-matched", "self")
        for variant in ("epochs=1", "epochs=2 learning_rate=0.01")
    ]
    assert sorted(table["methods"]) == sorted(["none", "context", *labels])
    rows = {row["method"]: row for row in rows_of(tmp_path / "run" / "trials.jsonl") if row["kind"] == "corpus"}
    assert rows["passage epochs=1"]["documents"] == 3 and rows["passage epochs=2 learning_rate=0.01"]["steps"] == 6
    steps = {method: rows[f"{method} epochs=1"]["steps"] for method in ("self", "passage-matched")}
    assert 0.7 * steps["self"] <= steps["passage-matched"] <= 1.3 * steps["self"], "as many as all self-edits together"
    held = {(row["method"], row["control"]) for row in table["differences"]}
    assert {("self epochs=1", "passage epochs=1"), ("self epochs=2 learning_rate=0.01", "self epochs=1")} <= held
    assert table["methods"]["self epochs=1"]["locality_logprob"]["n"] == 3, "asked about passages that are not among the three"
    assert table["cost"]["trainings"] == 6 and table["cost"]["tokens"] > 0
    alone = command("eval", "knowledge", "--split", "dev", "--model", tiny_model, "--full", "--run", tmp_path / "alone")
    assert alone.returncode == 1 and "--setting corpus" in alone.stderr and not (tmp_path / "alone").exists()
    done = command(*flags[:-1], "corpus.variants=[{epochs: 2}]", "--full", "--run", tmp_path / "full")
    assert done.returncode == 0, done.stderr
    full = {row["method"]: row for row in rows_of(tmp_path / "full" / "trials.jsonl") if row["kind"] == "corpus"}
    assert full["passage epochs=2"]["losses"][-1] < full["passage epochs=2"]["losses"][0]
    nothing = next(row for row in rows_of(tmp_path / "full" / "trials.jsonl") if row["kind"] == "passage")["trials"][0]
    after = full["passage epochs=2"]["sittings"][rows_of(tmp_path / "full" / "trials.jsonl")[0]["passage"]]
    assert after[0]["log_probabilities"] != nothing["sittings"][0]["log_probabilities"]


def test_report_and_select_of_our_own_runs(command: Command, trained: Path, tmp_path: Path) -> None:
    done = command("report", trained, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().count("<figure>") == 4
    assert command("select", trained, "--rule", "best", "--round", 2, "--out", tmp_path / "rows.jsonl").returncode == 0
    ours = [row["completion"][0]["content"] for row in rows_of(tmp_path / "rows.jsonl")]
    assert ours == [row["completion"] for row in rows_of(trained / "round-02" / "rows.jsonl")], "what the policy was trained on"


def test_select_lets_go_what_halving_let_go_and_takes_lines(command: Command, trained: Path, tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "rows.jsonl"
    shutil.copytree(trained, run)
    scored = rows_of(run / "round-01" / "scored.jsonl")
    context = scored[0]["context"]
    title, gold = "", ""
    for passage in json.loads((run / "data.json").read_text()):
        if Passage(passage["title"], passage["context"]).id == context:
            title, gold = passage["title"], passage["questions"][0]["answer"]
    verdicts = [False] * len(scored[0]["baseline_verdicts"] or [0])
    for row in scored:
        runs = [{"accuracy": 0.4}, {"accuracy": 0.4}] if row["candidate"] else [{"accuracy": 0.9}]
        won = [[True, *verdicts[1:]]] * len(runs)
        row |= {"usable": True, "runs": runs, "reward": 0.9 - 0.5 * row["candidate"], "value": 0.9 - 0.5 * row["candidate"]}
        row |= {"verdicts": won, "baseline_verdicts": verdicts, "gains": [0.5, *(0.0 for _ in verdicts[1:])]}
    (run / "round-01" / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    written = rows_of(run / "round-01" / "edits.jsonl")
    edits = next(row for row in written if row["context"] == context)["edits"]
    edits[1]["texts"][:3] = [f"Q: Which?\nA: {gold}", "nothing", f"Q: Which?\nA: {gold}"][: len(edits[1]["texts"])]
    (run / "round-01" / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))

    def completions(*more: object) -> list[str]:
        done = command("select", run, "--rule", "best", "--round", 1, "--out", file, *more)
        assert done.returncode == 0, done.stderr
        return [row["completion"][0]["content"] for row in rows_of(file) if title in row["prompt"][-1]["content"]]

    assert completions()[:2] == [f"Q: Which?\nA: {gold}", "nothing"], "the one with fewer runs was let go"
    lines = completions("--credit", "lines")
    assert lines and all(f"Q: Which?\nA: {gold}" in line for line in lines) and "nothing" not in lines


def test_a_corpus_says_what_its_training_had_to_do_without() -> None:
    from selfedit.corpus import _failed

    plans = [{"method": "self", "edit": "Notes."}, {"method": "external", "edit": None}]
    lost = [{"method": method, "status": "invalid"} for method in ("self", "external", "external")]
    written = {"trials": [*lost, {"method": "none", "status": "ok"}], "plans": plans}
    assert _failed({"method": "self epochs=3", "status": "ok"}, written) == 0.5
    assert _failed({"method": "external", "status": "ok"}, written) == 1.0, "the passage stands in for what was lost"
    assert _failed({"method": "self", "status": "diverged"}, written) == 1.0
    assert _failed({"method": "passage", "status": "ok"}, written) == 0.0


def test_variants_that_full_training_has_not_are_refused() -> None:
    from selfedit.config import CorpusConfig

    assert CorpusConfig(full=True, variants=({"epochs": 3},)) and CorpusConfig(variants=({"rank": 8},))
    with pytest.raises(ValueError, match="variants of layers, rank would be equal rows"):
        CorpusConfig(full=True, variants=({"rank": 8, "layers": "last:2"},))
