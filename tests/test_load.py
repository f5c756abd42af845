from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selfedit.contexts import Question
from selfedit.errors import ModelError
from selfedit.graders import ExamItem
from selfedit.graders.text import RecallGrader
from selfedit.lm import load
from selfedit.lm.load import identify, load_model, resolve
from selfedit.tasks.knowledge.data import almanac
from selfedit.tasks.knowledge.exam import Paper, exam_questions, sit_exams

BUILTIN = "builtin:smollm2-135m"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("no/such-model", "hub"),
        ("builtin:other", "built in"),
        ("/nowhere/at/all", "no such model"),
        ("missing.gguf", "no such GGUF"),
    ],
)
def test_unknown_models_say_what_to_do(name: str, word: str) -> None:
    with pytest.raises(ModelError, match=word):
        load_model(name)


def test_a_folder_without_a_model_and_a_broken_one(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(str(tmp_path))
    (tmp_path / "broken.gguf").write_bytes(b"GGUFnonsense")
    with pytest.raises(ModelError, match="can't be read as a GGUF"):
        load_model(str(tmp_path / "broken.gguf"))


def test_the_fingerprint_tells_models_apart(tiny_model: Path, tiny_base_model: Path) -> None:
    assert identify(str(tiny_model)).fingerprint == load_model(str(tiny_model)).fingerprint
    assert identify(str(tiny_model)).fingerprint != identify(str(tiny_base_model)).fingerprint
    assert identify(str(tiny_model)).chat and not identify(str(tiny_base_model)).chat


def test_a_base_model_with_its_chat_model_s_template_is_asked_in_plain_text(tiny_model: Path, tmp_path: Path) -> None:
    """As Qwen 2.5's: turns end with a token after which the base model goes on."""
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 0}))
    assert not identify(str(folder)).chat and not load_model(str(folder)).chat
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 1]}))
    assert identify(str(folder)).chat, "one of several end tokens ends its turns"
    assert identify(BUILTIN).chat


def test_dtype_and_device(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert load_model(str(tiny_model), dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ModelError, match="unknown dtype"):
        load_model(str(tiny_model), dtype="int3")
    with pytest.raises(ModelError, match="unknown device"):
        load_model(str(tiny_model), device="abacus")
    with pytest.raises(ModelError, match=f"finds {torch.cuda.device_count()} CUDA devices"):
        load.resolve_device("cuda:99")
    monkeypatch.setenv("SELFEDIT_CACHE", str(tmp_path))
    timed = {torch.float32: 3.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(load, "_time_decoder_step", lambda folder, dtype: timed[dtype])
    assert load_model(str(tiny_model)).dtype == torch.bfloat16
    timed[torch.bfloat16] = 99.0
    assert load_model(str(tiny_model)).dtype == torch.bfloat16, "timed once, then kept"
    (note,) = (tmp_path / "dtypes").glob("*.json")
    note.unlink()
    assert load_model(str(tiny_model)).dtype == torch.float32


def test_half_written_conversion_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"12345")
    assert not load._is_whole(folder)
    (folder / "complete.json").write_text(json.dumps({"model.safetensors": 5}))
    assert load._is_whole(folder)
    (folder / "model.safetensors").write_bytes(b"123")
    assert not load._is_whole(folder)


def test_the_embedded_model_knows_nothing_of_almanac() -> None:
    """A sample here, all of it with the mark slow."""
    assert closed_book_share(1) < 0.05


@pytest.mark.slow
def test_the_embedded_model_knows_nothing_of_all_of_almanac() -> None:
    assert closed_book_share(40) < 0.05


def closed_book_share(passages: int) -> float:
    lm = load_model(BUILTIN, dtype="float32")
    right = []
    for passage in (p for split in ("train", "dev", "test") for p in almanac(split)[:passages]):
        asked = exam_questions(passage.questions)
        answers = sit_exams(lm, [Paper(passage, tuple(asked), "titled")])[0].answers
        exam = [
            ExamItem(Question(one.question.question, one.question.answer), answer, one.group)
            for one, answer in zip(asked, answers, strict=True)
        ]
        right += [verdict.correct for verdict in RecallGrader().mark(exam)]
    return sum(right) / len(right)


@pytest.mark.slow
def test_a_half_written_cache_is_made_again_by_the_real_command(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, passage_file: Path, quiz_file: Path
) -> None:
    whole = Path(resolve(BUILTIN))
    broken = tmp_path / "models" / whole.name
    broken.mkdir(parents=True)
    (broken / "complete.json").write_text((whole / "complete.json").read_text())
    (broken / "model.safetensors").write_bytes(b"half")
    done = command(
        "learn", passage_file, "--quiz", quiz_file, "--memory", tmp_path / "m", "--edits", 1, "--set", "settings.epochs=1",
        env={"SELFEDIT_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert load._is_whole(broken)


def test_a_cache_that_can_t_be_written_names_the_remedy(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SELFEDIT_CACHE", str(tmp_path / "file" / "cache"))
    for name in (str(tiny_model), "builtin:smollm2-135m"):
        with pytest.raises(ModelError, match="SELFEDIT_CACHE"):
            load_model(name)


def test_conversion_interrupted_leaves_no_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom selfedit.lm import load\n"
        "load._dequantise = lambda gguf, folder: (folder.mkdir(), (folder / 'a').write_text('x'), os._exit(9))\n"
        "load._converted(Path(sys.argv[1]))"
    )
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF" * 1000)
    done = subprocess.run([sys.executable, "-c", code, str(gguf)], env=os.environ | {"SELFEDIT_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 9
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.name.startswith("m-") and path.is_dir()]


def test_two_processes_on_an_empty_cache_choose_one_dtype(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("SELFEDIT_CACHE", str(tmp_path))
    seconds = iter([3.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(load, "_time_decoder_step", lambda folder, dtype: next(seconds))
    known, cpu = identify(str(tiny_model)), torch.device("cpu")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load._auto_dtype(known, cpu), range(2))
    assert first == second == torch.bfloat16


def test_a_model_that_would_give_wrong_losses_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scaled"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"logit_scale": 0.5}))
    with pytest.raises(ModelError, match="can't be adapted"):
        load_model(str(folder), dtype="float32")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_clone_without_its_large_files_is_an_error_that_names_the_remedy(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(tiny_model, folder)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match=r"can't be loaded.*git-lfs"):
        load_model(str(folder), dtype="float32")


def test_a_model_of_another_family_is_refused_before_anything_is_reckoned(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config

    folder = tmp_path / "gpt2"
    shutil.copytree(tiny_model, folder)
    GPT2Config(n_embd=32, n_layer=2, n_head=4).save_pretrained(folder)
    with pytest.raises(ModelError, match=r"gpt2 can't be adapted \(intermediate_size\)"):
        identify(str(folder))


def test_a_model_s_name_holds_wherever_the_command_is_called_from(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert load.lasting(tiny_model.name) == str(tiny_model.parent.resolve() / tiny_model.name)
    assert load.lasting("owner/name") == "owner/name" and load.lasting(BUILTIN) == BUILTIN


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="can't be loaded"):
        load_model(str(folder), dtype="float32")
