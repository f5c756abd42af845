from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import CHAT_TEMPLATE, make_tiny_model
from selfedit.config import EditConfig, Sampling
from selfedit.contexts import Passage
from selfedit.edits import Message, SelfEdit
from selfedit.errors import ModelError
from selfedit.lm.batch import encode_prompt
from selfedit.lm.generate import generate
from selfedit.lm.load import load_model
from selfedit.samplers import base, local
from selfedit.samplers.base import Written
from selfedit.samplers.local import write_all_edits, write_edits
from selfedit.tasks.knowledge.data import almanac
from selfedit.tasks.knowledge.prompts import edit_prompts, exam_prompt
from selfedit.tasks.knowledge.task import KnowledgeTask

QUESTIONS = ["Who?", "When was the long bridge over the river built, and by whom?", "Why is that so?", "Who?"]


generation = sys.modules["selfedit.lm.generate"]


def prompts(lm: Any, prefix: str = "") -> list[tuple[int, ...]]:
    return [encode_prompt(lm, (Message("user", prefix + text),)) for text in QUESTIONS]


def test_batched_equals_one_by_one_equals_transformers(lm: Any) -> None:
    import torch

    for prefix in ("", "A long beginning that all of the prompts share, word for word. "):
        ids = prompts(lm, prefix)
        batched = generate(lm, ids, 12)
        assert batched == [generate(lm, [one], 12)[0] for one in ids]
        for text, one in zip(batched, ids, strict=True):
            out = lm.model.generate(torch.tensor([one]), max_new_tokens=12, do_sample=False, pad_token_id=1)
            assert text == lm.tokenizer.decode(out[0, len(one) :], skip_special_tokens=True).strip()
    assert batched[0] == batched[3]


def test_a_row_s_draws_do_not_depend_on_its_neighbours(lm: Any) -> None:
    ids = prompts(lm)
    together = generate(lm, ids, 20, 1.0, 0.95, [1, 2, 3, 4])
    assert together == [generate(lm, [one], 20, 1.0, 0.95, [seed])[0] for seed, one in enumerate(ids, start=1)]
    assert together[0] != together[3], "the same prompt with another seed"


def test_stop_and_end_leave_the_others_alone(lm: Any) -> None:
    ids = prompts(lm)
    free = generate(lm, ids, 16, 1.0, 1.0, [1, 2, 3, 4])
    stopped = generate(lm, ids, 16, 1.0, 1.0, [1, 2, 3, 4], stop=lambda text: text.startswith(free[0][:3]))
    assert stopped[1:3] == free[1:3]
    assert len(stopped[0]) < len(free[0])


def test_nucleus_keeps_the_likeliest(lm: Any) -> None:
    ids = prompts(lm)
    assert generate(lm, ids, 8, 1.0, 1e-6, [1, 2, 3, 4]) == generate(lm, ids, 8)


def test_candidates_differ_and_are_reproducible(lm: Any) -> None:
    passage = almanac("dev")[0]
    config = EditConfig(styles=("self-qa", "rewrite"), sampling=Sampling(max_new_tokens=12, temperature=1.0))
    task = KnowledgeTask(config)
    first = write_edits(lm, task, passage, 4, config.sampling, 7)
    assert first == write_edits(lm, task, passage, 4, config.sampling, 7) != write_edits(lm, task, passage, 4, config.sampling, 8)
    assert [one.edit.style for one in first] == ["self-qa", "rewrite", "self-qa", "rewrite"]
    assert len({one.edit.text for one in first}) == 4
    assert all(one.edit.text == "\n".join(one.texts) and one.texts for one in first)
    assert write_edits(lm, task, passage, 2, config.sampling, 7) == first[:2], "more candidates don't change the first ones"


def test_duplicates_are_resampled_a_bounded_number_of_times(lm: Any, monkeypatch: Any) -> None:
    calls: list[list[tuple[str, int]]] = []

    def fake(_sampler: Any, _task: Any, candidates: Any, _sampling: Any, _seed: int, attempt: int) -> list[Written]:
        calls.append([(context.title, index) for context, index in candidates])
        texts = [
            f"{index}" if context.title == "U" else "same" if index < 2 or attempt == 0 else f"new {index}"
            for context, index in candidates
        ]
        return [Written(SelfEdit("x", "s", text), ()) for text in texts]

    monkeypatch.setattr(base, "_batch", fake)
    contexts = [Passage("T", "x"), Passage("U", "y")]
    first, second = write_all_edits(lm, KnowledgeTask(EditConfig()), contexts, 3, Sampling(), 0)
    assert calls == [[(title, index) for title in "TU" for index in range(3)], [("T", 1), ("T", 2)], [("T", 1)]]
    assert [one.edit.text for one in first] == ["same", "same", "new 2"]
    assert [one.edit.text for one in second] == ["0", "1", "2"]


def test_what_is_written_about_a_context_does_not_depend_on_the_others(lm: Any) -> None:
    contexts = [Passage("T", "One sentence. Another."), Passage("U", "Something else stands here.")]
    task, sampling = KnowledgeTask(EditConfig()), Sampling(max_new_tokens=12)
    together = write_all_edits(lm, task, contexts, 2, sampling, 3)
    assert together == [write_edits(lm, task, context, 2, sampling, 3) for context in contexts]


def test_base_models_too(base_lm: Any, tiny_base_model: Path) -> None:
    passage = Passage("Topic", "One sentence. Another.")
    task = KnowledgeTask(EditConfig(styles=("implications-cot", "no-prompt")))
    edits = write_edits(base_lm, task, passage, 2, Sampling(max_new_tokens=8), 0)
    assert len(edits) == 2 and not base_lm.chat


def test_what_asks_about_a_whole_passage_gets_more_room_and_is_asked_once(lm: Any, monkeypatch: Any) -> None:
    seen: list[list[int]] = []
    monkeypatch.setattr(local, "generate", lambda _lm, prompts, limits, *more, **named: seen.append(limits) or [""] * len(prompts))
    passage = Passage("T", "One sentence. Another.")
    for style in ("self-qa", "no-prompt", "Read {passage}"):
        write_edits(lm, KnowledgeTask(EditConfig(styles=(style,))), passage, 1, Sampling(temperature=0), 0)
    write_edits(lm, KnowledgeTask(EditConfig(styles=("self-qa",), unit="passage")), passage, 1, Sampling(max_new_tokens=9), 0)
    assert seen == [[80] * 4, [512], [512], [9]]


def test_a_base_model_gets_the_paper_s_prompts() -> None:
    def asked(style: str) -> str:
        return edit_prompts(style, "T", ["X."], "X.", chat=False, shots=0, unit="passage")[0][0].content

    assert asked("implications").endswith("from the content.\nPassage: T X.\nImplications:")
    assert asked("self-qa").endswith("\nQuestion 1:") and asked("rewrite").endswith("\nRewritten passages:")
    exam = exam_prompt("Who?", "T", chat=False)[0].content
    assert exam == "Let's answer a question directly and concisely.\nQuestion: T Who?\nAnswer:"


def test_rows_beyond_the_cache_wait_for_the_next_batch(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompts(lm)
    together = generate(lm, ids, 12, 1.0, 0.95, [1, 2, 3, 4])
    monkeypatch.setattr(generation, "CACHE_BYTES", 1)
    assert generate(lm, ids, 12, 1.0, 0.95, [1, 2, 3, 4]) == together


@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_a_sliding_window_does_not_slide_over_padding(tmp_path: Path, family: str) -> None:
    lm = load_model(str(make_tiny_model(tmp_path / family, family=family)), dtype="float32")
    lm.model.config.sliding_window = 48
    for layer in lm.model.base_model.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 48
    for weight in lm.model.parameters():
        weight.mul_(2)
    shared = "All of these begin with the same forty characters and more. "
    ids = [encode_prompt(lm, (Message("user", shared + text),)) for text in ("Why?", "Because " * 15, "When was it?")]
    assert generate(lm, ids, 12) == [generate(lm, [one], 12)[0] for one in ids]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_many_rows_of_a_prompt_are_as_each_alone(tmp_path: Path, family: str) -> None:
    """Rows leave one by one, prompts with them; Gemma 2's scores are capped, Gemma 3's windows slide."""
    import torch

    lm = load_model(str(make_tiny_model(tmp_path / family, family=family)), dtype="float32")
    for layer in lm.model.base_model.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = lm.model.config.sliding_window = 48
    for name, weight in lm.model.named_parameters():
        weight.data.mul_(4 if "proj" in name else 1)
    ids = [one for one in prompts(lm, "Say. ")[1:3] for _ in range(4)]
    limits = [3, 14, 6, 30, 5, 4, 2, 7]
    together = generate(lm, ids, limits, 1.0, 0.95, list(range(8)))
    assert together == [
        generate(lm, [one], limit, 1.0, 0.95, [seed])[0] for seed, (one, limit) in enumerate(zip(ids, limits, strict=True))
    ]
    assert len(set(together)) == 8
    (greedy,) = generate(lm, ids[3:4], 30)
    out = lm.model.generate(torch.tensor(ids[3:4]), max_new_tokens=30, do_sample=False, pad_token_id=1)
    assert greedy == lm.tokenizer.decode(out[0, len(ids[3]) :], skip_special_tokens=True).strip()


def test_a_long_neighbour_does_not_cut_an_answer_and_no_room_is_an_error(lm: Any) -> None:
    short, long = prompts(lm)[0], tuple([5] * (lm.window - 4))
    (alone,) = generate(lm, [short], 24)
    assert generate(lm, [short, long], 24)[0] == alone
    with pytest.raises(ModelError, match="no room"):
        generate(lm, [short, (*long, 5, 5, 5, 5)], 24)


def test_the_nucleus_is_the_same_whether_found_at_the_top_or_by_sorting(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompts(lm)
    found = generate(lm, ids, 16, 1.5, 0.9, [1, 2, 3, 4])
    monkeypatch.setattr(generation, "NUCLEUS", 2)
    assert generate(lm, ids, 16, 1.5, 0.9, [1, 2, 3, 4]) == found


def test_a_template_without_system_messages_gets_the_text_in_the_turn(lm: Any) -> None:
    prompt = (Message("system", "Be brief."), Message("user", "Who?"))
    lm.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
    )
    text = lm.tokenizer.decode(encode_prompt(lm, prompt))
    assert "Be brief.\n\nWho?" in text and "system" not in text


def test_bare_text_is_continued_without_a_template(lm: Any) -> None:
    assert lm.tokenizer.decode(encode_prompt(lm, (Message("text", "Bridge\nIt was"),))) == "Bridge\nIt was"
