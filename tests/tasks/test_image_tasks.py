"""Images from recipe to answers: archives of tiny models, equal to transformers on every runtime, cut, trained and int8."""

from __future__ import annotations

import importlib
import json
from io import BytesIO

import numpy as np
import pytest
import torch
import yaml
from built import build
from image_files import encoded, picture, turned
from image_models import LABELS, processor_settings, tiny_image_model, write_image_model
from PIL import Image, ImageOps

from archiver.errors import RecipeError
from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.recipe.load import load_recipe
from archiver.recipe.starter import write_recipe
from archiver.tasks import default_task

CLASSIFY, EXTRACT = "image-classification", "image-feature-extraction"
AUTO = importlib.import_module("transformers.models.auto.image_processing_auto")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of many sizes and kinds, one folder a label."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(12):
        image = picture(30 + 11 * index, 90 - 5 * index, seed=index)
        body = [encoded(image), turned(image, 1 + index % 8), encoded(image, "webp"), encoded(image.convert("L"))][
            index % 4
        ]
        place = folder / LABELS[index % 3]
        place.mkdir(exist_ok=True)
        (place / f"{index}{('.png', '.jpg', '.webp', '.png')[index % 4]}").write_bytes(body)
    return folder


def recipe(folder, model, files, task=CLASSIFY, **more):
    data = {"train": str(files), "validation": str(files)}
    body = {"name": "tiny", "task": task, "model": str(model), "data": data, **more}
    body["serve"] = {"examples": 2, "runtime": "onnxruntime", **more.get("serve", {})}
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(body))
    return load_recipe(folder / "recipe.yaml")


def opened(path, folder):
    """The handler of an archive, alone in a folder."""
    handler = handler_of(folder)
    handler.open(folder, threads=1)
    return handler


def answers(built, bodies, parameters=None):
    with extracted(built.path) as (folder, _):
        handler = opened(built.path, folder)
        values = [handler.input.decode(body, "inputs") for body in bodies]
        return handler, handler.respond(values, parameters)


def expected_rows(family, auto, bodies, call):
    """By transformers alone: its processor's PIL backend, its model."""
    settings = processor_settings(family)
    made = AUTO.get_image_processor_class_from_name(f"{settings['image_processor_type']}Pil").from_dict(settings)
    images = [ImageOps.exif_transpose(Image.open(BytesIO(body))).convert("RGB") for body in bodies]
    pixels = torch.from_numpy(np.concatenate([made(image, return_tensors="np")["pixel_values"] for image in images]))
    with torch.no_grad():
        return call(tiny_image_model(family, auto), pixels).numpy()


@pytest.mark.parametrize(
    ("family", "runtime"),
    [
        ("vit", "onnxruntime"),
        ("vit", "openvino"),
        ("vit", "torch"),
        ("resnet", "openvino"),
        ("convnext", "onnxruntime"),
    ],
)
def test_labels_are_those_of_transformers(family, runtime, files, tmp_path):
    model = write_image_model(tmp_path / family, family)
    built = build(recipe(tmp_path / "r", model, files, serve={"runtime": runtime}), tmp_path / "store")
    bodies = [path.read_bytes() for path in sorted(files.rglob("*.*"))]
    _, found = answers(built, bodies)
    logits = expected_rows(family, "AutoModelForImageClassification", bodies, lambda model, x: model(x).logits)
    shares = torch.tensor(logits).softmax(-1).numpy()
    for answer, row in zip(found, shares, strict=True):
        order = np.argsort(-row)
        assert [item["label"] for item in answer] == [LABELS[i] for i in order]
        assert np.allclose([item["score"] for item in answer], row[order], atol=1e-4)
    assert built.manifest["metrics"]["compressed"]["agreement"] == 1.0
    assert built.manifest["task"] == CLASSIFY


@pytest.mark.parametrize(("family", "runtime"), [("clip", "torch"), ("siglip", "openvino")])
def test_vectors_are_those_of_transformers(family, runtime, files, tmp_path):
    model = write_image_model(tmp_path / family, family, "AutoModel")
    built = build(recipe(tmp_path / "r", model, files, EXTRACT, serve={"runtime": runtime}), tmp_path / "store")
    bodies = [path.read_bytes() for path in sorted(files.rglob("*.*"))]

    def features(model, x):
        found = model.get_image_features(pixel_values=x)
        return getattr(found, "pooler_output", found)

    expected = expected_rows(family, "AutoModel", bodies, features)
    _, found = answers(built, bodies)
    assert np.allclose(found, expected, atol=1e-4)
    _, unit = answers(built, bodies[:1], {"normalize": True})
    assert np.allclose(unit, expected[:1] / np.linalg.norm(expected[:1]), atol=1e-4)
    assert built.manifest["metrics"]["compressed"] == {"cosine": 1.0, "recall@10": 1.0}


def test_parameters(files, tmp_path):
    model = write_image_model(tmp_path / "vit", "vit")
    built = build(recipe(tmp_path / "r", model, files), tmp_path / "store")
    bodies = [encoded(picture())]
    _, (best,) = answers(built, bodies, {"top_k": 1})
    assert len(best) == 1
    _, (raw,) = answers(built, bodies, {"function_to_apply": "none"})
    _, (each,) = answers(built, bodies, {"function_to_apply": "sigmoid"})
    logits = {item["label"]: item["score"] for item in raw}
    assert all(abs(1 / (1 + np.exp(-logits[item["label"]])) - item["score"]) < 1e-4 for item in each)


STAGES = {
    "static": [{"quantize": {"method": "static-int8"}}],
    "weights": [{"quantize": {"method": "weight-only", "bits": 8}}],
    "cut": [
        {"prune": {"method": "structured", "heads": 0.5, "neurons": 0.5}},
        {"retrain": {"epochs": 1, "distill": {"logits": 1.0, "hidden": 1.0}}},
        {"quantize": {"method": "static-int8"}},
    ],
    "svd": [{"factorize": {"method": "svd", "ratio": 0.5}}],
    "gptq": [{"quantize": {"method": "weight-only", "algorithm": "gptq", "bits": 4, "group_size": 16}}],
}


@pytest.mark.parametrize("stages", STAGES)
def test_a_vision_transformer_is_compressed(stages, files, tmp_path):
    model = write_image_model(tmp_path / "vit", "vit")
    built = build(recipe(tmp_path / "r", model, files, compress=STAGES[stages]), tmp_path / "store")
    assert built.manifest["size"]["weight_bytes"] < 0.85 * built.manifest["size"]["original_bytes"]
    assert set(built.manifest["metrics"]["compressed"]) == {"accuracy", "agreement", "cross_entropy", "f1"}
    _, found = answers(built, [encoded(picture())])
    assert len(found[0]) == 3


def test_init_writes_a_recipe_that_builds_as_it_stands(tmp_path):
    """Without data: speed and examples come from pictures that are made."""
    for family, auto, task in (("vit", "AutoModelForImageClassification", CLASSIFY), ("clip", "AutoModel", EXTRACT)):
        model = write_image_model(tmp_path / family, family, auto)
        assert default_task(model) == task
        (tmp_path / f"{family}.yaml").write_text(write_recipe(model))
        made = load_recipe(tmp_path / f"{family}.yaml", ["serve.runtime=onnxruntime"])
        built = build(made, tmp_path / "store")
        assert built.manifest["measured_on"]["source"] == "embedded:pictures"
        assert built.manifest["task"] == task


@pytest.mark.parametrize(
    ("family", "auto", "task"),
    [
        ("siglip", "AutoModel", EXTRACT),
        ("dinov2", "AutoModel", EXTRACT),
        ("resnet", "AutoModelForImageClassification", CLASSIFY),
        ("siglip", "AutoModelForImageClassification", CLASSIFY),
    ],
)
def test_the_task_by_the_architecture(family, auto, task, tmp_path):
    assert default_task(write_image_model(tmp_path, family, auto)) == task


def test_what_cannot_work_is_said_before_any_work(files, tmp_path):
    model = write_image_model(tmp_path / "vit", "vit")
    made = {"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 48}}
    (model / "preprocessor_config.json").write_text(json.dumps(made))
    with pytest.raises(
        RecipeError, match="the image processor makes images of 48 × 48 pixels, and the model fails: Input image"
    ):
        build(recipe(tmp_path / "r", model, files), tmp_path / "store")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(RecipeError, match="it has no preprocessor_config.json"):
        build(recipe(tmp_path / "r", model, files), tmp_path / "store")
    with pytest.raises(RecipeError, match="serve.max_length is for .*, the task is image-classification: remove it"):
        recipe(tmp_path / "r", model, files, serve={"max_length": 64})
    with pytest.raises(RecipeError, match="serve.max_pixels is for image-.*, the task is text-classification"):
        recipe(tmp_path / "r", model, files / LABELS[0], "text-classification", data={}, serve={"max_pixels": 64})
