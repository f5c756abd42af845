"""A policy and a memory on one base."""

from __future__ import annotations

from typing import Any

import torch

from selfedit.config import Settings
from selfedit.lm.adapter import install, install_stack, new_adapter, standing


def test_the_base_writes_whatever_the_memory_holds_and_a_policy_is_added(lm: Any) -> None:
    def logits() -> Any:
        with torch.no_grad():
            return lm.model(input_ids=torch.tensor([[5, 6, 7]])).logits

    settings = Settings(rank=4, layers="all")
    learnt, policy = new_adapter(lm, settings, 1), new_adapter(lm, settings, 2)
    for adapter in (learnt, policy):
        for _, up in adapter.weights.values():
            up.normal_(0, 0.1)
    plain = logits()
    with standing(lm, [policy]):
        as_policy = logits()
    install(lm, policy)
    assert torch.allclose(logits(), as_policy, atol=1e-5)
    install(lm, None)
    install_stack(lm, [learnt])
    stacked = logits()
    assert not torch.allclose(stacked, plain, atol=1e-4)
    with standing(lm, [], alone=True):
        assert torch.equal(logits(), plain)
    with standing(lm, [policy], alone=True):
        assert torch.equal(logits(), as_policy)
    assert torch.equal(logits(), stacked)
