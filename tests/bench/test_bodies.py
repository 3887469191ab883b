"""What bench sends is what the task's requests are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from built import recipe_of
from image_files import encoded, picture
from text_spans import write_recipe

from archiver.bench.bodies import _written, bodies_of
from archiver.errors import RecipeError
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from handlers.inputs.media.image import Image, Preprocessing


def test_objects_go_as_json_and_texts_as_they_are(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path, "question-answering", tiny_model("bert", "question-answering"), [], runtime="torch")
    )
    answers = pipeline.build(recipe, tmp_path, Progress(quiet=True)).path
    bodies, content_type = bodies_of(answers, recipe)
    assert content_type == "application/json" and len(bodies) == 14
    first = {"question": "what film?", "context": "this film is very good"}
    assert json.loads(bodies[0]) == {"inputs": first}
    stored, content_type = bodies_of(answers, None)
    assert content_type == "application/json" and list(map(json.loads, stored)) == list(map(json.loads, bodies[:2]))

    labels = recipe_of(
        tmp_path / "labels", tiny_model("bert"), serve={"max_length": 32, "runtime": "torch", "examples": 3}
    )
    with pytest.raises(RecipeError, match="answers.mar is for question-answering, the recipe tiny for text-class"):
        bodies_of(answers, labels)
    built = pipeline.build(labels, tmp_path, Progress(quiet=True)).path
    texts, content_type = bodies_of(built, labels)
    assert content_type == "text/plain" and texts[0].decode() in (tmp_path / "labels" / "data.tsv").read_text()


def test_images_go_as_json_although_base64_is_a_text() -> None:
    preprocessing = Preprocessing(8, 8, None, (8, 8), 2, (1.0,) * 3, (0.0,) * 3)
    kind = Image(preprocessing, 10_000)
    request = kind.to_request(kind.decode(encoded(picture()), "inputs"))
    bodies, content_type = _written(kind, [request, request])
    assert content_type == "application/json" and json.loads(bodies[1]) == {"inputs": request[0]}
