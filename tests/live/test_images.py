"""Image models in a real TorchServe: bytes and base64, REST and gRPC, many sizes at once, and what is broken among them."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import InferenceClient
from image_files import BROKEN, encoded, picture, turned
from image_models import LABELS, write_image_model
from live_client import Grpc, Reply, Rest, metrics
from places import ROOT

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extracted
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe

CLIENTS, BAD, RIGHT_EVERY = 8, 1000, 4


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """animals: labels by an int8 vision transformer on OpenVINO. likeness: vectors of CLIP's tower on ONNX Runtime."""
    folder = tmp_path_factory.mktemp("images")
    for index, label in enumerate(LABELS * 4):
        (folder / "train" / label).mkdir(parents=True, exist_ok=True)
        (folder / "train" / label / f"{index}.png").write_bytes(encoded(picture(40 + 9 * index, 50, seed=index)))
    built = {}
    kinds = (
        ("animals", "image-classification", "vit", "AutoModelForImageClassification", "static-int8", "openvino"),
        ("likeness", "image-feature-extraction", "clip", "AutoModel", "dynamic-int8", "onnxruntime"),
    )
    for name, task, family, auto, method, runtime in kinds:
        recipe = {
            "name": name,
            "task": task,
            "model": str(write_image_model(folder / family, family, auto)),
            "data": {"train": "train", "validation": "train"},
            "compress": [{"quantize": {"method": method}}],
            "serve": {"runtime": runtime, "workers": 1, "max_inputs": 8, "max_pixels": 1_000_000},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        built[name] = pipeline.build(load_recipe(folder / f"{name}.yaml"), folder / "store", Progress(quiet=True)).path
    return built


@pytest.fixture(scope="module")
def gallery(archives: dict[str, Path]) -> Iterator[TorchServe]:
    with TorchServe(list(archives.values()), config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


@pytest.fixture(scope="module")
def handlers(archives: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """The archives' handlers in this process, which say what is right."""
    with extracted(archives["animals"]) as (one, _), extracted(archives["likeness"]) as (two, _):
        found = {"animals": handler_of(one), "likeness": handler_of(two)}
        found["animals"].open(one, threads=1)
        found["likeness"].open(two, threads=1)
        yield found


def answer(handler: Any, body: bytes) -> Any:
    return handler.respond([handler.input.decode(body, "inputs")])[0]


def agrees(handler: Any, reply: Reply, body: bytes, expected: Any = None) -> bool:
    known = answer(handler, body) if expected is None else expected
    return reply.status == 200 and handler.compare(known, reply.value) <= handler.serving["tolerance"]


@pytest.mark.parametrize("name", ["animals", "likeness"])
def test_bytes_and_base64_over_rest_and_grpc(gallery: TorchServe, handlers: dict[str, Any], name: str) -> None:
    bodies = [
        encoded(picture(90, 60)),
        turned(picture(60, 90), 6),
        encoded(picture(), "webp"),
        encoded(picture(), "gif"),
    ]
    with Rest(gallery) as rest, Grpc(gallery) as grpc:
        for body, kind in zip(bodies, ("image/png", "image/jpeg", None, "application/octet-stream"), strict=True):
            text = base64.b64encode(body).decode()
            assert agrees(handlers[name], rest.post(name, body, kind), body)
            assert agrees(handlers[name], grpc.predict(name, body), body)
            for form in (text, f"data:image/png;base64,{text}"):
                assert agrees(handlers[name], rest.post(name, {"inputs": form}), body)
                assert agrees(handlers[name], grpc.predict(name, {"inputs": form}), body)
        both = rest.post(name, {"inputs": [base64.b64encode(body).decode() for body in bodies]})
        assert len(both.value) == 4
        for value, body in zip(both.value, bodies, strict=True):
            assert handlers[name].compare(answer(handlers[name], body), value) <= handlers[name].serving["tolerance"]


def test_parameters(gallery: TorchServe) -> None:
    text = base64.b64encode(encoded(picture())).decode()
    with Rest(gallery) as rest:
        best = rest.post("animals", {"inputs": text, "parameters": {"top_k": 1}}).value
        assert len(best) == 1 and best[0]["label"] in LABELS
        vector = rest.post("likeness", {"inputs": text, "parameters": {"normalize": True}}).value
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
        refused = rest.post("animals", {"inputs": text, "parameters": {"top_k": 0, "size": 3}})
        assert (refused.status, refused.message[:26]) == (400, "unknown parameter 'size'; ")


def test_the_inference_client_of_huggingface(gallery: TorchServe) -> None:
    client = InferenceClient(gallery.prediction_url("animals"), token=gallery.inference_key)
    body = encoded(picture(70, 50))
    found = client.image_classification(body)
    assert {item.label for item in found} == set(LABELS)
    assert abs(sum(item.score for item in found) - 1) < 1e-4
    assert [item.label for item in client.image_classification(body, top_k=2)] == [item.label for item in found[:2]]


def test_thirty_two_clients_with_images_of_different_sizes(gallery: TorchServe, handlers: dict[str, Any]) -> None:
    chance = random.Random(0)
    bodies = [
        encoded(picture(chance.randint(1, 700), chance.randint(1, 500), seed=index), ("png", "jpeg", "webp")[index % 3])
        for index in range(32)
    ]

    handler = handlers["animals"]
    expected = [answer(handler, body) for body in bodies]

    def ask(body: bytes, known: Any) -> list[bool]:
        with Rest(gallery) as rest:
            return [agrees(handler, rest.post("animals", body, "image/png"), body, known) for _ in range(3)]

    with ThreadPoolExecutor(32) as pool:
        assert all(all(found) for found in pool.map(ask, bodies, expected))


def test_a_thousand_broken_images_harm_no_neighbour(gallery: TorchServe, handlers: dict[str, Any]) -> None:
    """Each its own 400 with its reason, over REST and gRPC, right ones in between; workers live on, and keep their size."""
    made = {name: (make(), message) for name, (make, message) in BROKEN.items() if name != "a line"}
    right = [encoded(picture(50 + 7 * index, 40, seed=index)) for index in range(6)]
    known = {name: [answer(handler, body) for body in right] for name, handler in handlers.items()}
    before = {name: gallery.workers(name) for name in ("animals", "likeness")}
    processes = {process.pid for process in gallery.processes()}
    sizes = [size for name in before for size in gallery.memory_per_worker(name)]

    def client(number: int) -> list[str]:
        wrong, names = [], list(made)
        with Rest(gallery) as rest, Grpc(gallery) as grpc:
            for index in range(BAD // CLIENTS):
                kind, model = names[(index + number) % len(names)], ("animals", "likeness")[index % 2]
                body, message = made[kind]
                in_json = index % 3 == 0 and body
                sent: Any = {"inputs": base64.b64encode(body).decode()} if in_json else body
                over = (index + number) % 2
                reply = (
                    grpc.predict(model, sent)
                    if over
                    else rest.post(model, sent, None if not in_json else "application/json")
                )
                if reply.status != 400 or not re.search(message, reply.message):
                    wrong.append(f"{kind} {over}: {reply.status} {reply.body[:200]!r}")
                if index % RIGHT_EVERY == 0:
                    place = (index + number) % len(right)
                    reply = rest.post(model, right[place], "image/png")
                    if not agrees(handlers[model], reply, right[place], known[model][place]):
                        wrong.append(f"right image {place} to {model}: {reply.status} {reply.body[:200]!r}")
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = [line for found in pool.map(client, range(CLIENTS)) for line in found]
    assert not wrong, "\n".join(wrong[:10])
    assert {name: gallery.workers(name) for name in before} == before
    assert {process.pid for process in gallery.processes()} == processes
    after = [size for name in before for size in gallery.memory_per_worker(name)]
    assert max(b - a for a, b in zip(sizes, after, strict=True)) < 100_000_000


def test_what_is_refused_is_told_with_its_numbers(gallery: TorchServe) -> None:
    def body(image: bytes) -> str:
        return base64.b64encode(image).decode()

    small = body(encoded(picture()))
    large = body(encoded(picture(1_000, 900)))
    cases = [
        (
            {"inputs": [small, 3]},
            "inputs[1] is a number; an image (PNG, JPEG, WebP, GIF or BMP) is expected, as a text in base64",
        ),
        ({"inputs": [small] * 9}, "'inputs' has 9 elements; at most 8 are allowed in one request"),
        ({"inputs": [large] * 5}, "the 5 images have 4500000 pixels together; at most 4000000 are allowed"),
        ({"inputs": "https://example.org/cat.png"}, "inputs is an address, and none is fetched; send an image"),
        (
            {"inputs": body(encoded(picture(1_200, 900)))},
            "inputs has 1200 × 900 = 1080000 pixels; at most 1000000 are allowed",
        ),
        ({"inputs": []}, "'inputs' is an empty list; send 1 to 8 inputs"),
    ]
    with Rest(gallery) as rest, Grpc(gallery) as grpc:
        for document, message in cases:
            for reply in (rest.post("animals", document), grpc.predict("animals", document)):
                assert reply.status == 400 and reply.message.startswith(message)
        reply = rest.post("animals", b"", "image/png")
        assert reply.status == 400 and "send an image (PNG, JPEG, WebP, GIF or BMP) as the body" in reply.message
        huge = rest.post("animals", b"x" * 33_000_000, "image/png")
        assert huge.status == 400 and "no image that can be read" in huge.message  # below 32 MiB, whatever it is


def test_metrics_count_images(gallery: TorchServe) -> None:
    before = metrics(gallery, "animals")
    with Rest(gallery) as rest:
        rest.post("animals", {"inputs": [base64.b64encode(encoded(picture())).decode()] * 3})
    after = metrics(gallery, "animals")
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert any(value == 3 for name, value in grown.items() if "inputs" in name), grown
