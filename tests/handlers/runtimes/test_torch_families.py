"""Text on torch, by families that number, mask or cache differently: what transformers continues with."""

from __future__ import annotations

from typing import Any

import pytest
from any_models import tiny
from greedy import continue_greedily

from handlers.generation.backend import Load
from handlers.protocols.continuation import Sampling
from handlers.runtimes.torch_generation import TorchBackend

PROMPTS = ([5, 9, 20, 31, 7], [77], [30, 30, 30, 11, 12, 13, 14, 60, 61, 62])
# no positions but slopes, positions moved by two, a window in one layer of two, experts, one key for all heads
CASES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32},
    "opt": {},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2_moe": {},
    "gpt_bigcode": {},
}


def texts(backend: TorchBackend, keys: range) -> list[list[int]]:
    found: dict[int, list[int]] = {key: [] for key in keys}
    while backend.load() != Load(0, 0):
        for step in backend.step():
            found[step.key] += step.ids
    return list(found.values())


@pytest.mark.parametrize("family", CASES)
def test_alone_and_among_others(family: str) -> None:
    model = tiny(family, "AutoModelForCausalLM", **CASES[family])
    expected = [continue_greedily(model, ids, 8, ()) for ids in PROMPTS]
    assert len({tuple(ids) for ids in expected}) > 1
    backend = TorchBackend.of_model(model, [], 3, prefill_tokens=4)
    for key, ids in enumerate(PROMPTS):
        backend.add(key, ids, Sampling(max_new_tokens=8))
        assert texts(backend, range(key, key + 1)) == [expected[key]]
    for key, ids in enumerate(PROMPTS):
        backend.add(key, ids, Sampling(max_new_tokens=8))
    assert texts(backend, range(3)) == expected
