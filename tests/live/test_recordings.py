"""Recordings sent to a live TorchServe: as bodies, in base64, over gRPC, by Hugging Face's client; and bad ones."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from audio_models import CLASSES, CTC, LABELS, build_audio_model, sounds
from hearing import wav
from live_client import Grpc, Reply, Rest
from places import ROOT
from side_by_side import Right, Wrong, answered_wrongly

from archiver.packaging.entry import handler_of
from archiver.packaging.mar import extract
from archiver.pipeline import build as pipeline
from archiver.progress import Progress
from archiver.recipe.load import load_recipe
from archiver.torchserve.server import TorchServe
from handlers.inputs.media.audio_file import Recording

RECOGNITION, CLASSIFICATION = "automatic-speech-recognition", "audio-classification"
KINDS = {
    "words": (RECOGNITION, "wav2vec2", CTC, "static-int8", "onnxruntime"),
    "kinds": (CLASSIFICATION, "hubert", CLASSES, "weight-only", "openvino"),
    "scenes": (CLASSIFICATION, "audio-spectrogram-transformer", CLASSES, "weight-only", "torch"),
}
LENGTHS = (16_000, 4_000, 9_111, 30_000, 2_000, 700)


@pytest.fixture(scope="module")
def handlers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name → the handler of an archive, opened in this process."""
    folder = tmp_path_factory.mktemp("recordings")
    for place, samples in enumerate(sounds(*LENGTHS)):
        (folder / f"{place}.wav").write_bytes(wav(samples))
    opened = {}
    for name, (task, kind, auto_class, method, runtime) in KINDS.items():
        last = "transcript" if task == RECOGNITION else "label"
        rows = [f"{place}.wav\t{'AB C' if task == RECOGNITION else LABELS[place % 5]}" for place in range(len(LENGTHS))]
        (folder / f"{name}.tsv").write_text(f"audio\t{last}\n" + "\n".join(rows) + "\n")
        (folder / name).mkdir()
        recipe = {
            "name": name,
            "task": task,
            "model": str(build_audio_model(folder / name, kind, auto_class, num_hidden_layers=1)),
            "data": {"train": f"{name}.tsv", "validation": f"{name}.tsv"},
            "compress": [{"quantize": {"method": method}}],
            "serve": {"workers": 1, "runtime": runtime, "max_seconds": 20, "batch_size": 8, "max_batch_delay_ms": 20},
        }
        if task == RECOGNITION:
            recipe["serve"] |= {"chunk_seconds": 2}  # type: ignore[operator]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        built = pipeline.build(load_recipe(folder / f"{name}.yaml"), folder / "store", Progress(quiet=True))
        extract(built.path, folder / f"{name}-extracted")
        opened[name] = handler_of(folder / f"{name}-extracted")
        opened[name].open(folder / f"{name}-extracted", threads=1)
        opened[name].archive = built.path
    return opened


@pytest.fixture(scope="module")
def hearing(handlers: dict[str, Any]) -> Iterator[TorchServe]:
    with TorchServe([handler.archive for handler in handlers.values()], config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


def check(reply: Reply, handler: Any, bodies: list[bytes], single: bool, **parameters: Any) -> None:
    """A 200 with the answers that the handler gives in this process."""
    assert reply.status == 200, reply.body
    found = [reply.value] if single else reply.value
    expected = handler.respond([Recording(body) for body in bodies], parameters)
    assert len(found) == len(expected)
    for answer, right in zip(found, expected, strict=True):
        if isinstance(right, dict):
            assert answer == json.loads(json.dumps(right))
        else:
            assert handler.compare(right, answer) <= handler.serving["tolerance"]


def text_of(body: bytes) -> str:
    return base64.b64encode(body).decode()


def packed(samples: np.ndarray, form: str, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize("name", KINDS)
def test_a_body_is_a_recording_whatever_its_content_type(hearing, handlers, name):
    body = wav(sounds(9_000)[0])
    with Rest(hearing) as rest, Grpc(hearing) as grpc:
        for content_type in ("audio/wav", "audio/x-flac", "application/octet-stream", None):
            check(rest.post(name, body, content_type), handlers[name], [body], True)
        check(grpc.predict(name, body), handlers[name], [body], True)


@pytest.mark.parametrize("name", KINDS)
def test_recordings_in_base64(hearing, handlers, name):
    bodies = [packed(item, form) for item, form in zip(sounds(9_000, 24_000), ("FLAC", "WAV"), strict=True)]
    stereo = packed(np.stack([sounds(8_000)[0]] * 2, axis=1), "WAV", 44_100)
    with Rest(hearing) as rest, Grpc(hearing) as grpc:
        check(rest.post(name, {"inputs": text_of(bodies[0])}), handlers[name], bodies[:1], True)
        check(rest.post(name, {"inputs": [text_of(body) for body in bodies]}), handlers[name], bodies, False)
        check(rest.post(name, {"inputs": f"data:audio/wav;base64,{text_of(stereo)}"}), handlers[name], [stereo], True)
        several = json.dumps({"inputs": [text_of(body) for body in bodies]}).encode()
        check(grpc.predict(name, several), handlers[name], bodies, False)


def test_parameters(hearing, handlers):
    body = wav(sounds(60_000)[0])
    with Rest(hearing) as rest:
        for parameters in ({"return_timestamps": "word"}, {"return_timestamps": "char", "chunk_length_s": 1.5}):
            reply = rest.post("words", {"inputs": text_of(body), "parameters": parameters})
            check(reply, handlers["words"], [body], True, **parameters)
            assert reply.value["chunks"][0].keys() == {"text", "timestamp"}
        assert len(rest.post("kinds", {"inputs": text_of(body), "parameters": {"top_k": 2}}).value) == 2


def test_the_client_of_hugging_face(hearing, handlers):
    from huggingface_hub import InferenceClient

    body = wav(sounds(9_000)[0])
    key = hearing.inference_key
    address = f"{hearing.inference_url}/predictions"
    heard = InferenceClient(model=f"{address}/words", token=key).automatic_speech_recognition(body)
    assert heard.text == handlers["words"].respond([Recording(body)])[0]["text"]
    labels = InferenceClient(model=f"{address}/kinds", token=key).audio_classification(body, top_k=3)
    expected = handlers["kinds"].respond([Recording(body)], {"top_k": 3})[0]
    assert [item.label for item in labels] == [item["label"] for item in expected]


def bad_bodies() -> list[tuple[bytes, str]]:
    """Bodies that are wrong, with what the answer says."""
    right = wav(sounds(9_000)[0])
    length = right.index(b"data") + 4
    hours = io.BytesIO()
    with soundfile.SoundFile(hours, "w", 16_000, 1, format="FLAC") as file:
        for _ in range(60):
            file.write(np.zeros(16_000 * 10, np.float32))
    quiet = hours.getvalue()  # ten minutes of silence in some 30 kB
    long = text_of(packed(sounds(160_000)[0], "FLAC"))
    return [
        (b"", "empty"),
        (json.dumps({"inputs": ""}).encode(), "inputs is a file of 0 bytes"),
        (right[:2000], "is damaged or cut off: its header declares"),
        (right[:length] + (0x7FFFFFFF).to_bytes(4, "little") + right[length + 4 :], "is damaged or cut off"),
        (quiet, "holds 600.0 seconds of sound; at most 20 are allowed"),
        (json.dumps({"inputs": [long] * 3}).encode(), "one request may hold 20 seconds"),
        (b"fLaC" + bytes(300), "cannot be read as a sound file"),
        (b"OggS" + bytes(300), "cannot be read as a sound file"),
        (b"plain text", "is no sound file that can be read"),
        (wav(sounds(20)[0]), "seconds of sound; at least"),
        (json.dumps({"inputs": "no base64!"}).encode(), "is a text that is not base64"),
        (json.dumps({"inputs": "https://example.org/a.wav"}).encode(), "is an address, and none is fetched"),
        (json.dumps({"inputs": [text_of(right), 7]}).encode(), "inputs[1] is a number"),
        (json.dumps({"inputs": {"array": [0.1], "sampling_rate": 16_000}}).encode(), "inputs is an object"),
        (json.dumps({"inputs": text_of(right), "parameters": {"language": "en"}}).encode(), "unknown parameter 'language'"),
    ]  # fmt: skip


def test_bad_recordings_among_right_ones(hearing, handlers):
    """Each mistake is told in its own sentence, over REST and gRPC, and its neighbours are answered."""
    right = wav(sounds(5_000)[0])
    expected = {name: handler.respond([Recording(right)])[0] for name, handler in handlers.items()}
    wrong = [Wrong(name, body, re.escape(said), None) for body, said in bad_bodies() for name in KINDS]
    good = [
        Right(name, right, lambda value, known=known: type(value) is type(known), "audio/wav")
        for name, known in expected.items()
    ]
    lines = answered_wrongly(hearing, wrong, good)
    assert not lines, f"{len(lines)} wrong: " + "\n".join(lines[:10])
