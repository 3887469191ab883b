"""Models that take pixels as one module: logits as the model gives them, features as transformers takes them."""

from __future__ import annotations

import pytest
import torch
import transformers
from image_models import FAMILIES, pixels, tiny_image_model

from handlers.architecture.outputs.image import ImageModel

CLASSIFIERS = [name for name in FAMILIES if name not in ("clip", "siglip")]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits(family):
    model = tiny_image_model(family)
    assert torch.equal(ImageModel(model)(pixels()), model(pixel_values=pixels()).logits)


@pytest.mark.parametrize("family", CLASSIFIERS)
@torch.no_grad()
def test_the_pooled_output(family):
    model = tiny_image_model(family, "AutoModel")
    found = ImageModel(model, features=True)(pixels())
    assert found.dim() == 2 and len(found) == 3
    assert torch.equal(found, model(pixel_values=pixels()).pooler_output.flatten(1))


@torch.no_grad()
def test_without_a_pooler_the_first_token_speaks():
    model = transformers.ViTModel(tiny_image_model("vit").config, add_pooling_layer=False).eval()
    expected = model(pixel_values=pixels()).last_hidden_state[:, 0]
    assert torch.equal(ImageModel(model, features=True)(pixels()), expected)


@pytest.mark.parametrize(
    ("family", "tower"), [("clip", "CLIPVisionModelWithProjection"), ("siglip", "SiglipVisionModel")]
)
@torch.no_grad()
def test_towers_give_the_features_of_the_whole_model(family, tower):
    whole = tiny_image_model(family, "AutoModel")
    config = whole.config.vision_config
    if family == "clip":
        config.projection_dim = whole.config.projection_dim
    part = getattr(transformers, tower)._from_config(config, attn_implementation="eager").eval()
    part.load_state_dict({name: value for name, value in whole.state_dict().items() if name in part.state_dict()})
    expected = whole.get_image_features(pixel_values=pixels())
    expected = getattr(expected, "pooler_output", expected)
    assert torch.allclose(ImageModel(part, features=True)(pixels()), expected, atol=1e-6)
