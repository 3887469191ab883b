"""What is found in each family's layers, and why the rest cannot be cut."""

from __future__ import annotations

import pytest
import torch
from tiny_families import FAMILIES, LAYERS, make

from archiver.architecture import kv_shapes, layer_list, layer_parts
from archiver.architecture.folds import norm_offset
from archiver.errors import UnsupportedModelError


@pytest.mark.parametrize("name", FAMILIES)
def test_what_can_be_cut_and_folded(name):
    family = FAMILIES[name]
    model = make(name)
    found = layer_parts(model)
    assert len(found) == (1 if name == "albert" else LAYERS)
    for parts in found:
        assert {kind: tuple(cut.blocks for cut in parts.of_kind(kind)) for kind in ("heads", "neurons")} == {
            "heads": family.heads, "neurons": family.neurons
        }  # fmt: skip
        # ModernBERT's first layer has no norm in front of its attention.
        assert len(parts.folds) == family.folds - (name == "modernbert" and parts.name.endswith(".0"))
        assert parts.refused.keys() == {kind for kind in ("heads", "neurons") if not parts.of_kind(kind)}
        for cut in parts.cuts:
            consumer = model.get_submodule(cut.consumer)
            assert cut.columns.shape == (consumer.in_features,)
            assert cut.columns.unique().tolist() == list(range(cut.blocks))
            assert cut.grouped == (cut.kind == "heads" and family.heads == (2,))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "phi3", "deberta", "mixtral"])
def test_the_meta_device_shows_the_same(name):
    real = layer_parts(make(name))
    with torch.device("meta"):
        other = layer_parts(make(name, layer_norm_eps=1e-4, rms_norm_eps=1e-4))  # of another config: not remembered
    for one, two in zip(real, other, strict=True):
        assert [(cut.consumer, cut.settings) for cut in one.cuts] == [(cut.consumer, cut.settings) for cut in two.cuts]
        for a, b in zip(one.cuts, two.cuts, strict=True):
            assert torch.equal(a.columns, b.columns)
            assert all(torch.equal(rows, b.producers[key]) for key, rows in a.producers.items())
        assert [(fold.before, fold.after) for fold in one.folds] == [(fold.before, fold.after) for fold in two.folds]


def test_fused_rows_by_hand():
    """GPT-NeoX has queries, keys and values head by head, Phi-3 all queries first: two query heads to a key."""
    cut = layer_parts(make("gpt_neox"))[0].of_kind("heads")[0]
    assert cut.producers["gpt_neox.layers.0.attention.query_key_value"].tolist() == [
        i for i in range(4) for _ in range(24)
    ]
    cut = layer_parts(make("phi3"))[1].of_kind("heads")[0]
    assert cut.producers["model.layers.1.self_attn.qkv_proj"].tolist() == [0] * 16 + [1] * 16 + ([0] * 8 + [1] * 8) * 2
    assert cut.settings == {"model.layers.1.self_attn": {"config.num_attention_heads": 2, "num_key_value_heads": 1}}
    cut = layer_parts(make("phi3"))[0].of_kind("neurons")[0]
    assert cut.producers["model.layers.0.mlp.gate_up_proj"].tolist() == [*range(48), *range(48)]
    cut = layer_parts(make("falcon"))[0].of_kind("heads")[0]  # one key and one value for all: they stay
    rows = cut.producers["transformer.h.0.self_attention.query_key_value"].tolist()
    assert rows == [i for i in range(4) for _ in range(8)] + [-1] * 16


REASONS = {
    "mpnet": ("heads", r"shape \[5, 4, 11, 11\], with a part for each of them"),
    "bloom": ("heads", r"given alibi of shape \[20, 1, 11\], with a part for each of them"),
    "convbert": ("heads", "the outputs of attention.self.query feed more than attention.output.dense"),
    "olmo2": (
        "heads",
        "all inputs of self_attn.o_proj belong together: one head, or an operation over all heads",
    ),
    "mixtral": ("neurons", "experts, held as tensors without linear layers"),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name):
    kind, reason = REASONS[name]
    for parts in layer_parts(make(name)):
        pytest.raises(LookupError, _raise, parts.refused[kind]).match(reason)


def _raise(text: str) -> None:
    raise LookupError(text)


class RoutedExperts(torch.nn.Module):
    """Experts as linear layers, each of which takes the tokens whose largest feature is its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = torch.nn.ModuleList(torch.nn.Linear(width, 24) for _ in range(2))
        self.down = torch.nn.ModuleList(torch.nn.Linear(24, width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        chosen = (flat[:, 0] > flat[:, 1]).long()
        y = torch.zeros_like(flat)
        for index, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            y[chosen == index] = down(torch.relu(up(flat[chosen == index])))
        return y.view_as(x)


def test_routed_experts_are_neither_cut_nor_folded():
    model = make("llama")
    for layer in layer_list(model)[1]:
        layer.mlp = RoutedExperts(32)
    for parts in layer_parts(model):
        assert [cut.kind for cut in parts.cuts] == ["heads"]
        assert "experts, and each sees only the tokens that are routed to it" in parts.refused["neurons"]
        assert not any("mlp" in name for fold in parts.folds for name in fold.after)


def test_a_model_without_layers_has_no_parts():
    model = make("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="no list of repeated layers"):
        layer_list(model)
    assert layer_parts(model) == []


def test_a_layer_that_cannot_be_run_is_refused_with_the_reason():
    model = make("gpt2")
    for layer in model.transformer.h:
        layer.attn.split_size = 31
    for parts in layer_parts(model):
        assert "could not be traced" in parts.refused["heads"]
        assert not parts.cuts and not parts.folds


@pytest.mark.parametrize(("name", "shape"), [("llama", (2, 8)), ("gpt2", (4, 8)), ("phi3", (2, 8)), ("falcon", (1, 8))])
def test_shapes_of_keys_and_values(name, shape):
    assert kv_shapes(make(name)) == [shape] * LAYERS


def test_an_encoder_keeps_no_keys():
    with pytest.raises(UnsupportedModelError, match="keeps no keys and values"):
        kv_shapes(make("distilbert"))


@pytest.mark.parametrize(("weight", "expected"), [("w", 0.0), ("1 + w", 1.0), ("exp(w)", None)])
def test_offset_of_a_norm(weight, expected):
    class Norm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(6) + 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = self.weight
            factor = {"w": w, "1 + w": 1 + w, "exp(w)": w.exp()}[weight]
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * factor

    norm = Norm()
    before = norm.weight.detach().clone()
    assert norm_offset(norm, torch.randn(4, 6)) == expected
    assert torch.equal(norm.weight, before)
