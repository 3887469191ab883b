"""Sharing layers: one Parameter under many names, through training, storage and reloading."""

from __future__ import annotations

import pytest
import torch
import transformers
from cut_models import SIZES, examples, run, tiny

from archiver.architecture import layer_list
from archiver.compression.prune.structured_options import ShareLayers, parse_groups
from archiver.compression.share.layers import check, groups_of, share_layers
from archiver.export.torch_packed import export_packed
from handlers.architecture.structure import describe, shared_names


def test_groups_by_hand():
    assert groups_of(3, 6) == [[0, 1], [2, 3], [4, 5]]
    assert groups_of(2, 5) == [[0, 1, 2], [3, 4]]
    assert groups_of(((0, 4), (1,)), 5) == [[0, 4], [1]]


@pytest.mark.parametrize("init", ["mean", "first"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_shared_layers_are_one_tensor(kind, init):
    model = tiny(kind)
    layers = layer_list(model)[1]
    name = "output.dense" if kind == "bert" else "mlp.down_proj"
    before = [layer.get_submodule(name).weight.detach().clone() for layer in layers]
    parameters = sum(p.numel() for p in model.parameters())
    one_layer = sum(p.numel() for p in layers[0].parameters())
    report = share_layers(model, ShareLayers(groups=((0, 1), (2,)), init=init), examples(model, kind))
    wanted = (before[0] + before[1]) / 2 if init == "mean" else before[0]
    assert torch.allclose(layers[0].get_submodule(name).weight, wanted)
    assert layers[0].get_submodule(name).weight is layers[1].get_submodule(name).weight
    assert torch.equal(layers[2].get_submodule(name).weight, before[2])
    assert report.parameters == parameters - one_layer
    assert "makes nothing faster" in report.notes[1]
    assert torch.isfinite(run(model)).all()


def test_the_file_holds_each_set_once(tmp_path):
    model = tiny("bert")
    export_packed(model, None, tmp_path)
    whole = (tmp_path / "model.safetensors").stat().st_size
    one_layer = 4 * sum(p.numel() for p in layer_list(model)[1][0].parameters())
    share_layers(model, ShareLayers(groups=1), examples(model, "bert"))
    export_packed(model, None, tmp_path)
    saved = whole - (tmp_path / "model.safetensors").stat().st_size
    assert saved > 1.9 * one_layer
    assert len(shared_names(model)) == 2 * len(list(layer_list(model)[1][0].parameters()))
    assert describe(model)["shared"] == shared_names(model)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (4, "4 sets of weights for 3 layers"),
        (((0, 1), (1, 2)), "1 stands more than once"),
        (((0, 1),), "2 is in no group"),
        (((0, 1), (2, 5)), "5: the model has layers 0 to 2"),
    ],
)
def test_groups_that_cannot_be(groups, message):
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(
            transformers.AutoConfig.for_model("bert", vocab_size=40, **SIZES["bert"])
        )
    assert message in check(model, ShareLayers(groups=groups))[0]


@pytest.mark.parametrize("value", [0, True, "3", [], [[]], [[0], 1], [[-1]], 1.5])
def test_what_is_no_groups(value):
    with pytest.raises(ValueError, match="no groups"):
        parse_groups(value)
