"""Roles in `targets` say the same of every family."""

from __future__ import annotations

import pytest
import torch
import transformers

from archiver.compression.modules import choose_modules, linear_names, weighted_names
from archiver.compression.roles import ROLES, roles_of
from archiver.errors import RecipeError
from handlers.architecture.linear_layers import to_linear_layers

SMALL = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "dim": 8, "n_layers": 1,
    "n_heads": 2, "hidden_dim": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "embedding_size": 8,
    "num_key_value_heads": 1, "d_model": 8, "pad_token_id": 0, "num_hidden_groups": 1, "inner_group_num": 1,
    "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
# family → linear layers and tables that are (attention, feed-forward, embeddings, head)
COUNTS = {
    "bert": (4, 2, 3, 1),
    "distilbert": (4, 2, 2, 2),
    "albert": (4, 2, 3, 1),
    "deberta-v2": (4, 2, 2, 2),
    "llama": (4, 3, 1, 1),
    "gpt2": (2, 2, 2, 1),
    "gpt_neox": (2, 2, 1, 1),
    "mpt": (2, 2, 1, 1),
    "falcon": (2, 2, 1, 1),
}
DECODERS = ("llama", "gpt2", "gpt_neox", "mpt", "falcon")


def tiny(kind: str) -> torch.nn.Module:
    base = transformers.AutoConfig.for_model(kind)
    sizes = {name: value for name, value in SMALL.items() if hasattr(base, name)}
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(kind, vocab_size=20, **sizes)
        auto = transformers.AutoModelForSequenceClassification
        if kind in DECODERS:
            auto = transformers.AutoModelForCausalLM
        return to_linear_layers(auto.from_config(config))


@pytest.mark.parametrize("kind", COUNTS)
def test_roles(kind):
    model = tiny(kind)
    roles = roles_of(model)
    found = {role: choose_modules(model, (role,)) for role in ROLES}
    assert tuple(len(found[role]) for role in ROLES[1:]) == COUNTS[kind]
    assert found["@layers"] == [
        name for name in weighted_names(model) if name in roles["@attention"] | roles["@feed-forward"]
    ]
    assert choose_modules(model, ("@layers",), ("@attention",)) == found["@feed-forward"]
    assert not set(found["@embeddings"]) & set(found["@head"])
    assert not set(linear_names(model)) & set(found["@head"])


def test_heads_of_what_is_no_model_of_transformers():
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "classifier": torch.nn.Linear(2, 2)})
    assert roles_of(model)["@head"] == {"classifier"}
    assert linear_names(model) == ["body"]


def test_an_unknown_role_matches_nothing():
    with pytest.raises(RecipeError, match="do not fit this model") as caught:
        choose_modules(tiny("bert"), ("@heads",))
    assert caught.value.problems == ["targets: '@heads' matches no module"]
