"""How images are prepared: equal to transformers' own processors (their PIL backend), or refused with the reason."""

from __future__ import annotations

import importlib
import json
from io import BytesIO

import numpy as np
import pytest
from image_files import encoded, picture, turned
from PIL import Image as Pillow
from PIL import ImageOps

from archiver.errors import UnsupportedModelError
from archiver.models.inputs.image_processor import read_preprocessing
from handlers.inputs.media.image import Image

AUTO = importlib.import_module("transformers.models.auto.image_processing_auto")

SETTINGS = {
    "vit": {"image_processor_type": "ViTImageProcessor"},
    "vit of old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 64, "resample": 3},
    "vit, nearest": {"image_processor_type": "ViTImageProcessorFast", "resample": 0, "size": {"height": 20, "width": 30}},
    "vit, raw": {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "do_rescale": False, "size": 24},
    "deit": {"image_processor_type": "DeiTImageProcessor"},
    "swin": {"image_processor_type": "ViTImageProcessor", "resample": 3, "image_mean": [0.485, 0.456, 0.406],
             "image_std": [0.229, 0.224, 0.225]},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
    "convnext, whole": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "resnet": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.95},
    "clip": {"image_processor_type": "CLIPImageProcessor"},
    "clip of old": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 96, "crop_size": 96},
    "siglip": {"image_processor_type": "SiglipImageProcessor"},
    "beit": {"image_processor_type": "BeitImageProcessor"},
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}},
    "mobilenet": {"image_processor_type": "MobileNetV2ImageProcessor"},
    "efficientnet": {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True, "size": 48},
    "levit": {"image_processor_type": "LevitImageProcessor"},
    "poolformer": {"image_processor_type": "PoolFormerImageProcessor"},
    "mobilevit": {"image_processor_type": "MobileViTImageProcessor"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    def write(settings, name="preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps(settings))
        return tmp_path

    return write


def processor_of(settings):
    name = settings.get("image_processor_type", settings.get("feature_extractor_type"))
    name = name.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor") + "Pil"
    return AUTO.get_image_processor_class_from_name(name).from_dict(dict(settings))


def files():
    for size in ((200, 133), (133, 200), (500, 40), (17, 31), (260, 260)):
        image = picture(*size, seed=sum(size))
        yield encoded(image, "png")
        yield encoded(image.convert("L"), "png")
        yield encoded(image, "webp", quality=80)
        yield turned(image, 6, "jpeg", quality=90)


@pytest.mark.parametrize("name", SETTINGS)
def test_values_are_those_of_transformers(name, folder):
    settings = SETTINGS[name]
    processor = processor_of(settings)
    inputs = Image(read_preprocessing(folder(settings)), 1_000_000)
    for body in files():
        item = inputs.encode([inputs.decode(body, "inputs")], {})[0]
        found = inputs.collate([item], 1, 1)["pixel_values"]
        # As transformers' pipelines load an image: image_utils.load_image.
        image = ImageOps.exif_transpose(Pillow.open(BytesIO(body))).convert("RGB")
        expected = processor(image, return_tensors="np")["pixel_values"]
        assert found.shape == expected.shape and found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-4


def test_a_trained_model_and_real_files(shared):
    model, data = shared / "models" / "vit-mnist", shared / "data" / "mnist"
    if not (model.is_dir() and data.is_dir()):
        pytest.skip("vit-mnist and mnist are not in the shared folder")
    processor = processor_of(json.loads((model / "preprocessor_config.json").read_text()))
    inputs = Image(read_preprocessing(model), 1_000_000)
    for path in sorted(data.glob("*.png"))[::10]:
        item = inputs.encode([inputs.decode(path.read_bytes(), path.name)], {})[0]
        expected = processor(Pillow.open(path), return_tensors="np")["pixel_values"]
        assert np.abs(inputs.collate([item], 1, 1)["pixel_values"] - expected).max() <= 1e-4


def test_where_the_settings_lie(folder):
    """Within processor_config.json, which goes before; the class by config.json's model type where none is named."""
    path = folder({"image_processor": {"image_processor_type": "CLIPImageProcessor"}}, "processor_config.json")
    folder({"image_processor_type": "ViTImageProcessor"})
    assert read_preprocessing(path).shortest_edge == 224
    (path / "processor_config.json").write_text("{}")
    assert read_preprocessing(path).resize_to == (224, 224)
    folder({"size": {"shortest_edge": 224}})
    folder({"model_type": "resnet"}, "config.json")
    assert read_preprocessing(path).shortest_edge == 256


REFUSED = {
    "nothing": (None, "it has no preprocessor_config.json, which says how images are prepared"),
    "NoseImageProcessor": ({}, "its image processor is NoseImageProcessor, and transformers has no PIL backend of it"),
    "ViTImageProcessor": ({"size": "big"}, "ViTImageProcessorPil cannot be made from preprocessor_config.json"),
    "ViTImageProcessorFast": ({"do_resize": False}, r"makes images of different sizes \(9×13 and 31×150\)"),
    "CLIPImageProcessor": ({"do_center_crop": False}, "makes images of different sizes"),
    "Siglip2ImageProcessor": ({}, "gives pixel_attention_mask, pixel_values, spatial_shapes; one that gives"),
    "DetrImageProcessor": ({}, "gives pixel_mask, pixel_values; one that gives pixel_values alone is expected"),
    "PerceiverImageProcessor": ({}, "in a way that serving does not know: .* at most 0.0001 is allowed"),
    "BitImageProcessor": ({"image_mean": [0.5]}, "fails on an image: mean must have 3 elements"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_serving_cannot_do_is_refused(name, folder, tmp_path):
    settings, reason = REFUSED[name]
    if settings is not None:
        folder({"image_processor_type": name, **settings})
    with pytest.raises(UnsupportedModelError, match=reason):
        read_preprocessing(tmp_path)
