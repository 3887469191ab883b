"""Model directories whose models take pixels: the tower that is wanted, with its projection or pooler, or why not."""

from __future__ import annotations

import pytest
import torch
from image_models import FAMILIES, LABELS, pixels, tiny_image_model, write_image_model

from archiver.errors import UnsupportedModelError
from archiver.models.facts import inspect_model
from archiver.models.load import load_model, skeleton
from handlers.architecture.outputs.image import ImageModel

CLASSIFIER = "AutoModelForImageClassification"


@pytest.mark.parametrize("family", FAMILIES)
def test_classifiers(family, tmp_path):
    path = write_image_model(tmp_path, family)
    facts = inspect_model(path, CLASSIFIER, input_name="pixel_values")
    assert facts.id2label == dict(enumerate(LABELS)) and not facts.causal and facts.vocab_size == 0
    model = load_model(path, CLASSIFIER, input_name="pixel_values")
    with torch.no_grad():
        assert torch.allclose(ImageModel(model)(pixels()), tiny_image_model(family)(pixels()).logits, atol=1e-6)
    with torch.device("meta"):
        empty = skeleton(path, CLASSIFIER, input_name="pixel_values")
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


CLASSES = {
    "clip": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "vit": "ViTModel",
    "swin": "SwinModel",
    "convnext": "ConvNextModel",
    "resnet": "ResNetModel",
}


@pytest.mark.parametrize("saved_as", ["AutoModel", CLASSIFIER])
@pytest.mark.parametrize("family", CLASSES)
@torch.no_grad()
def test_features(family, saved_as, tmp_path):
    """Those of the whole model, of the part for images, or of a classifier whose head is left away."""
    path = write_image_model(tmp_path, family, saved_as)
    inspect_model(path, "AutoModel", input_name="pixel_values")
    model = load_model(path, "AutoModel", input_name="pixel_values")
    projected = family == "clip" and saved_as == "AutoModel"
    assert type(model).__name__ == (CLASSES[family] if family != "clip" or projected else "CLIPVisionModel")
    found = ImageModel(model, features=True)(pixels())
    whole = tiny_image_model(family, saved_as)
    if saved_as == "AutoModel" and family in ("clip", "siglip"):
        expected = whole.get_image_features(pixel_values=pixels())
        expected = getattr(expected, "pooler_output", expected)
    elif saved_as == "AutoModel":
        expected = whole(pixel_values=pixels()).pooler_output.flatten(1)
    elif family == "vit":  # its classifier has no pooler
        expected = whole.vit(pixels()).last_hidden_state[:, 0]
    elif family in ("clip", "siglip"):
        expected = whole.vision_model(pixels()).pooler_output
    else:
        expected = whole.base_model(pixels()).pooler_output.flatten(1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_model_of_another_input_is_refused(tmp_path, tiny_model):
    path = write_image_model(tmp_path, "vit")
    with pytest.raises(
        UnsupportedModelError, match="ViTModel takes pixel_values; feature-extraction needs a model that takes"
    ):
        inspect_model(path, "AutoModel", task="feature-extraction")
    text = tiny_model("bert", "feature-extraction")
    with pytest.raises(
        UnsupportedModelError, match="BertModel takes input_ids; image-feature-extraction needs a model that"
    ):
        inspect_model(text, "AutoModel", task="image-feature-extraction", input_name="pixel_values")


def test_a_base_model_has_no_head(tmp_path):
    path = write_image_model(tmp_path, "vit", "AutoModel")
    with pytest.raises(
        UnsupportedModelError, match=r"it has no head for image-classification \(classifier.bias, classifier"
    ):
        inspect_model(path, CLASSIFIER, task="image-classification", input_name="pixel_values")
