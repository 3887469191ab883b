"""Dropping layers: the config follows, and what no config can build is refused before anything is changed."""

from __future__ import annotations

import pytest
import torch
from tiny_families import FAMILIES, answers, difference, make, reloaded

from archiver.architecture import keep_layers, layer_list, layer_parts, removable, without_layers
from archiver.errors import UnsupportedModelError
from handlers.architecture.factored import factored_like, put


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("albert", "modernbert")])
def test_fewer_layers_answer_as_if_the_others_were_skipped(name):
    model = make(name)
    original = answers(model)
    assert removable(model) == [0, 1]
    with without_layers(model, [0]):
        skipped = answers(model)
    assert torch.equal(answers(model), original)
    keep_layers(model, (1,))
    assert len(layer_list(model)[1]) == model.config.num_hidden_layers == 1
    assert difference(answers(model), skipped) < 1e-6
    assert difference(skipped, original) > 1e-3
    assert difference(answers(reloaded(model)), skipped) < 1e-6


def test_a_first_layer_of_another_kind_stays():
    """ModernBERT's first layer has no norm before attention: no config builds another one there."""
    model = make("modernbert", num_hidden_layers=3)
    assert removable(model) == [1, 2]
    with pytest.raises(
        UnsupportedModelError, match="layer 1 of .* cannot become layer 0: .* attn_norm there as Identity"
    ):
        keep_layers(model, (1, 2))
    assert len(layer_list(model)[1]) == 3
    keep_layers(model, (0, 2))
    assert difference(answers(reloaded(model)), answers(model)) < 1e-6


def test_a_layer_that_is_run_several_times_stays():
    model = make("albert")
    assert len(layer_list(model)[1]) == 1
    with pytest.raises(UnsupportedModelError, match="the same weights are run several times, so that no layer can be"):
        removable(model)
    with pytest.raises(UnsupportedModelError, match="runs 2 layers"):
        keep_layers(model, (0,))


def test_lists_of_the_config_follow_and_others_of_that_length_do_not():
    model = make("deberta-v2")
    keep_layers(model, (0,))
    assert model.config.pos_att_type == ["c2p", "p2c"]
    model = make("smollm3", num_hidden_layers=4, no_rope_layers=[1, 1, 0, 1])
    keep_layers(model, (2, 3))
    assert model.config.no_rope_layers == [0, 1]
    assert [layer.self_attn.use_rope for layer in layer_list(model)[1]] == [0, 1]


def test_factored_layers_are_layers_and_are_not_cut():
    model = make("llama")
    name = "model.layers.0.mlp.down_proj"
    put(model, name, factored_like(model.get_submodule(name), 4, name))
    assert layer_list(model)[0] == "model.layers"
    first, second = layer_parts(model)
    assert ([cut.kind for cut in first.cuts], [cut.kind for cut in second.cuts]) == (["heads"], ["heads", "neurons"])
    up = "model.layers.1.mlp.up_proj"
    put(model, up, factored_like(model.get_submodule(up), 4, up))
    assert layer_parts(model)[1].refused["neurons"] == "mlp.up_proj is factored: cut first, then factorize"


def test_two_stacks_are_no_list_of_layers():
    model = make("bert")
    model.other = torch.nn.ModuleList([model.bert.encoder.layer[0]])
    with pytest.raises(UnsupportedModelError, match=r"several stacks of layers: bert\.encoder\.layer and other"):
        layer_list(model)
