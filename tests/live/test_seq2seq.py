"""A tiny T5 in a real TorchServe: answers, beams, streams and refusals over REST and gRPC, and huggingface_hub's client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_client import Grpc, Rest
from places import ROOT
from tiny_models import SENTENCES
from tiny_seq2seq import build_tiny_seq2seq

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe
from handlers.inputs.text import TextInput

NAME = "translator"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seq2seq")
    build_tiny_seq2seq(folder / "t5")
    (folder / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a in SENTENCES for b in SENTENCES[:2]))
    recipe = {
        "name": NAME,
        "task": "translation",
        "model": "t5",
        "data": {"validation": "pairs.tsv", "columns": {"source": 0, "target": 1}},
        "compress": [{"quantize": {"method": "weight-only", "bits": 8}}],
        "serve": {"max_length": 24, "max_inputs": 8, "runtime": "openvino", "examples": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return pipeline.build(load_recipe(folder / "recipe.yaml"), folder / "store", Progress(quiet=True)).path


@pytest.fixture(scope="module")
def server(archive: Path) -> Iterator[TorchServe]:
    with TorchServe([archive], config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


@pytest.fixture(scope="module")
def expected(archive: Path) -> dict[tuple[str, int], str]:
    """{(text, beams): its translation}, by the archive's handler in this process."""
    with extracted(archive) as (folder, _):
        handler: Any = handler_of(folder)
        handler.open(folder, threads=1)
        try:
            return {
                (text, beams): handler.respond([TextInput(text)], {"num_beams": beams, "max_new_tokens": 10})[0][
                    "translation_text"
                ]
                for text in SENTENCES
                for beams in (1, 3)
            }
        finally:
            handler.engine.close()


def asked(text: Any, beams: int = 1, **more: Any) -> dict[str, Any]:
    return {"inputs": text, "parameters": {"num_beams": beams, "max_new_tokens": 10, **more}}


def test_many_at_once_are_answered_as_alone(server, expected) -> None:
    def one(place: int) -> tuple[tuple[str, int], Any]:
        text, beams = SENTENCES[place % len(SENTENCES)], (1, 3)[place % 2]
        with Rest(server) as rest, Grpc(server) as grpc:
            reply = rest.post(NAME, asked(text, beams)) if place % 3 else grpc.predict(NAME, asked(text, beams))
        return (text, beams), reply.value

    with ThreadPoolExecutor(8) as pool:
        for key, answer in pool.map(one, range(24)):
            assert answer == [{"translation_text": expected[key]}]


def test_a_list_is_a_list(server, expected) -> None:
    with Rest(server) as rest:
        reply = rest.post(NAME, asked(list(SENTENCES), 3))
    assert reply.value == [{"translation_text": expected[text, 3]} for text in SENTENCES]


def test_a_stream_over_both_ways(server, expected) -> None:
    with Rest(server) as rest, Grpc(server) as grpc:
        body = asked(SENTENCES[0]) | {"stream": True}
        for stream in (rest.stream(NAME, body), grpc.stream(NAME, body, stream=b"true")):
            assert stream.text == expected[SENTENCES[0], 1] == stream.events[-1]["translation_text"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"inputs": 3}', "inputs is a number"),
        (b'{"inputs": "a", "parameters": {"num_beams": 0}}', "from 1 to 16"),
        (b'{"inputs": "a", "parameters": {"beams": 2}}', "unknown parameter 'beams'"),
        (b"{", "not valid JSON"),
    ],
)
def test_mistakes_are_answered(server, body, message) -> None:
    with Rest(server) as rest, Grpc(server) as grpc:
        for reply in (rest.post(NAME, body), grpc.predict(NAME, body)):
            assert reply.status == 400 and message in reply.message


def test_hugging_face_s_client(server, expected) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=f"{server.inference_url}/predictions/{NAME}", token=server.inference_key)
    found = client.translation(SENTENCES[1], generate_parameters={"num_beams": 3, "max_new_tokens": 10})
    assert found.translation_text == expected[SENTENCES[1], 3]
