"""Roles in `targets` say the same of every family."""

from __future__ import annotations

import pytest
import torch
import transformers

from archiver.compression.modules import select_modules, weighted_names
from archiver.errors import RecipeError

SMALL = {
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "distilbert": {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16},
    "llama": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}
# (attention, feed-forward, embeddings, head)
COUNTS = {"bert": (4, 2, 3, 1), "distilbert": (4, 2, 2, 2), "llama": (4, 3, 1, 1)}


def names(kind: str) -> list[str]:
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(kind, vocab_size=20, **SMALL[kind])
        auto = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModelForSequenceClassification
        return weighted_names(auto.from_config(config))


@pytest.mark.parametrize("kind", SMALL)
def test_roles(kind):
    every = names(kind)
    roles = ("@attention", "@feed-forward", "@embeddings", "@head")
    found = [select_modules(every, (role,)) for role in roles]
    assert tuple(len(part) for part in found) == COUNTS[kind]
    assert select_modules(every, ("@layers",)) == [name for name in every if name in found[0] + found[1]]
    assert select_modules(every, ("@layers",), ("@attention",)) == found[1]
    assert not set(found[2]) & set(found[3])


def test_an_unknown_role_matches_nothing():
    with pytest.raises(RecipeError, match="do not fit this model") as caught:
        select_modules(names("bert"), ("@heads",))
    assert caught.value.problems == ["targets: '@heads' matches no module"]
