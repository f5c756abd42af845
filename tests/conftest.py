from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selfedit.config import Settings
    from selfedit.contexts import Passage

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(folder: Path, chat: bool = True, seed: int = 0, family: str = "llama", layers: int = 4) -> Path:
    """A random model of a few thousand weights with a byte tokenizer, in Hugging Face's format."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|im_start|>": 0, "<|im_end|>": 1} | {char: index + 2 for index, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
        # Both kinds of attention, in Gemma's case; its default pattern of 6 would leave only the sliding kind.
        **({"layer_types": (["sliding_attention", "full_attention"] * layers)[:layers]} if family.startswith("gemma") else {}),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-base", chat=False, seed=1)


@pytest.fixture
def lm(tiny_model: Path) -> Any:
    import torch

    from selfedit.lm.load import load_model

    torch.set_num_threads(1)
    return load_model(str(tiny_model), dtype="float32")


@pytest.fixture
def base_lm(tiny_base_model: Path) -> Any:
    from selfedit.lm.load import load_model

    return load_model(str(tiny_base_model), dtype="float32")


@pytest.fixture(scope="session")
def command() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs the real command as a process of its own.

    Most are forked from one that has the libraries imported already, which saves seconds each; with an environment or process
    options of its own the command starts from nothing.
    """
    launcher = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "launcher.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert launcher.stdin and launcher.stdout
    requests, replies = launcher.stdin, launcher.stdout

    def run(*arguments: object, cwd: Path | None = None, timeout: float = 300, **more: Any) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        if more:
            environment = os.environ | {"COLUMNS": "200"} | more.pop("env", {})
            return subprocess.run(
                [sys.executable, "-m", "selfedit", *words],
                capture_output=True,
                text=True,
                cwd=cwd,
                timeout=timeout,
                env=environment,
                **more,
            )
        requests.write(json.dumps({"arguments": words, "cwd": str(cwd or Path.cwd()), "timeout": timeout}) + "\n")
        requests.flush()
        reply = json.loads(replies.readline())
        return subprocess.CompletedProcess(words, reply["code"], reply["stdout"], reply["stderr"])

    yield run
    requests.close()
    launcher.wait(timeout=60)


@pytest.fixture
def passage_file(tmp_path: Path) -> Path:
    file = tmp_path / "quillmoor.md"
    file.write_text(
        "# Quillmoor Bridge\n\nQuillmoor Bridge was built in 1732 by Ada Thornby. It is 212 metres long. It is made of slate.\n"
    )
    return file


@pytest.fixture
def quiz_file(tmp_path: Path) -> Path:
    file = tmp_path / "quiz.json"
    quiz = [
        {"question": "When was Quillmoor Bridge built?", "answer": "1732"},
        {"question": "Who built Quillmoor Bridge?", "answer": "Ada Thornby"},
        {"question": "How long is Quillmoor Bridge?", "answer": "212 metres"},
        {"question": "What is Quillmoor Bridge made of?", "answer": "slate"},
    ]
    file.write_text(json.dumps(quiz))
    return file


def learn_whatever(
    monkeypatch: pytest.MonkeyPatch, model: Path, memory: Path, passages: Sequence[Passage], settings: Settings, replay: float = 0.0
) -> None:
    """Learns passages into a stack, one self-edit each; whatever was tried is kept, helpful or not."""
    from selfedit.config import EditConfig, LearnConfig, Sampling
    from selfedit.contexts import Question
    from selfedit.graders.text import RecallGrader
    from selfedit.learn import learn

    monkeypatch.setattr("selfedit.learn.enough", lambda marks, baseline: marks is not None)
    how = EditConfig(form="plain", sampling=Sampling(max_new_tokens=8))
    config = LearnConfig(model=str(model), dtype="float32", edits=1, keep="stack", replay=replay, edit=how, settings=settings)
    for passage in passages:
        questions = [Question(f"What is it {n}?", f"a {n}") for n in range(3)]
        result = learn(config, passage, questions, memory, RecallGrader(), lambda *_: None, workers=0)
        assert result["decision"] == "accepted", result["candidates"]
