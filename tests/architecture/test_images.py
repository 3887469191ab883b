"""What is found in the layers of models that take pixels."""

from __future__ import annotations

import pytest
import torch
from image_models import FAMILIES, pixels, tiny_image_model

from archiver.architecture import cut_layer, cuts_of, layer_parts
from archiver.architecture.random_inputs import image_shape, random_inputs
from archiver.compression.roles import roles_of

# (heads, neurons) that can be cut in one layer; Swin's layers are stages of two blocks.
FOUND = {
    **dict.fromkeys(("vit", "deit", "beit", "clip", "siglip"), ((4,), (48,))),
    "dinov2": ((4,), (128,)),
    "swin": ((), (64, 64)),
    "convnext": ((), ()),
    "resnet": (),
    "mobilenet_v2": (),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_can_be_cut(family):
    parts = layer_parts(tiny_image_model(family))
    found = [tuple(tuple(cut.blocks for cut in item.of_kind(kind)) for kind in ("heads", "neurons")) for item in parts]
    assert found[:1] == ([FOUND[family]] if FOUND[family] else [])


@pytest.mark.parametrize(
    ("family", "kind"), [("vit", "heads"), ("vit", "neurons"), ("clip", "heads"), ("swin", "neurons")]
)
def test_a_cut_model_computes_what_the_whole_one_does_without_those_structures(family, kind):
    whole, model = tiny_image_model(family), tiny_image_model(family)
    for cut in cuts_of(model, kind):
        kept = torch.arange(cut.blocks)[1::2]
        with torch.no_grad():
            whole.get_submodule(cut.consumer).weight[:, ~torch.isin(cut.columns, kept)] = 0
        cut_layer(model, cut, kept)
    with torch.no_grad():
        assert torch.allclose(model(pixels()).logits, whole(pixels()).logits, atol=1e-4)
    assert sum(map(torch.numel, model.parameters())) < sum(map(torch.numel, whole.parameters()))


def test_roles_and_the_head():
    roles = roles_of(tiny_image_model("vit"))
    assert {name: len(found) for name, found in roles.items()} == {
        "@layers": 12, "@attention": 8, "@feed-forward": 4, "@embeddings": 0, "@head": 1
    }  # fmt: skip
    assert roles["@head"] == {"classifier"}
    assert roles_of(tiny_image_model("resnet"))["@head"] == {"classifier.1"}


def test_random_images_have_the_size_of_the_config():
    made = random_inputs(tiny_image_model("siglip"), 5, 11, torch.Generator())
    assert made["pixel_values"].shape == (5, 3, 32, 32)
    assert image_shape(tiny_image_model("vit", image_size=[16, 24]).config) == (3, 16, 24)
    assert image_shape(tiny_image_model("resnet").config) == (3, 64, 64)  # any size would do


def test_an_unknown_kind_of_input_is_named():
    model = torch.nn.Module()
    model.main_input_name = "smells"
    with pytest.raises(LookupError, match="it takes smells, for which no random inputs can be made; known: input_ids"):
        random_inputs(model, 1, 1, torch.Generator())
