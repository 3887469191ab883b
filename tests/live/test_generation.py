"""A tiny language model in a real TorchServe: one input, a list, a bad parameter among good requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from live_client import Grpc, Reply, Rest
from served import ROOT

from archiver import pipeline
from archiver.packaging.mar import extracted
from archiver.progress import Progress
from archiver.recipe import load_recipe
from archiver.serving.server import TorchServe
from handlers.encoding import TextInput
from handlers.text_generation import TextGenerationHandler

NAME = "writer"


@pytest.fixture(scope="module")
def archive(
    tiny_model: Callable[..., Path], sentences: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    (folder / "text.txt").write_text("\n".join(sentences) * 4)
    recipe = {
        "name": NAME,
        "task": "text-generation",
        "model": str(tiny_model("llama", "text-generation")),
        "data": {"validation": "text.txt", "context": 16},
        "compress": [{"quantize": {"method": "weight-only", "bits": 8}}],
        "serve": {"workers": 1, "max_length": 48, "max_inputs": 8, "batch_size": 8, "max_batch_delay_ms": 100},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return pipeline.build(load_recipe(folder / "recipe.yaml"), folder / "store", Progress(quiet=True)).path


@pytest.fixture(scope="module")
def writer(archive: Path) -> Iterator[TorchServe]:
    with TorchServe([archive], config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


@pytest.fixture(scope="module")
def handler(archive: Path) -> Iterator[TextGenerationHandler]:
    """The archive's handler in this process, which says what is right."""
    with extracted(archive) as (folder, _):
        found = TextGenerationHandler()
        found.open(folder, threads=1)
        yield found


def test_single_and_list(writer: TorchServe, handler: TextGenerationHandler, sentences: tuple[str, ...]) -> None:
    parameters = {"max_new_tokens": 6}
    with Rest(writer) as rest, Grpc(writer) as grpc:
        single = rest.post(NAME, {"inputs": sentences[0], "parameters": parameters})
        several = rest.post(NAME, {"inputs": list(sentences), "parameters": parameters})
        plain = rest.post(NAME, sentences[0].encode(), "text/plain")
        over_grpc = grpc.predict(NAME, {"inputs": sentences[0], "parameters": parameters})
    assert single.status == several.status == plain.status == 200
    right = handler.respond([TextInput(text) for text in sentences], parameters)
    assert single.value == right[0] and several.value == right
    assert single.body == over_grpc.body
    assert plain.value[0]["generated_text"].startswith(sentences[0])


def test_a_bad_parameter_is_that_requests_alone_and_a_batch_equals_single(
    writer: TorchServe, sentences: tuple[str, ...]
) -> None:
    bodies = [
        json.dumps({"inputs": text, "parameters": {"max_new_tokens": 2 + index, "return_full_text": index % 2 == 0}})
        for index, text in enumerate(sentences)
    ]
    bodies[2] = json.dumps({"inputs": sentences[2], "parameters": {"max_new_tokens": "many"}})
    bodies[4] = json.dumps({"inputs": sentences[4], "parameters": {"max_new_tokens": 48}})

    def send(body: str) -> Reply:
        with Rest(writer) as rest:
            return rest.post(NAME, body)

    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(send, bodies))
    assert [reply.status for reply in together] == [200, 200, 400, 200, 400, 200]
    assert "'max_new_tokens' is \"many\"; allowed: a whole number from 1" in together[2].message
    assert "max_new_tokens is 48; together at most 48 are allowed" in together[4].message
    for body, reply in zip(bodies, together, strict=True):
        assert send(body).body == reply.body
