"""OpenAI's transcriptions over the wire: forms with a sound file to two archives, and forms that are wrong."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_client import Grpc, Rest, multipart
from mutated_forms import KIND, multipart_of, mutated_form
from once import once
from places import ROOT
from speech_archives import HEARS, LETTERS, archives_in, build_speech_archives
from tiny_whisper import wav

from archiver.torchserve.server import TorchServe

COUNT, CLIENTS = 1000, 8
SOUND = wav(1.5, 3)
TRANSCRIPTIONS = "v1/audio/transcriptions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = once(tmp_path_factory, "speech-archives", build_speech_archives)
    with TorchServe(archives_in(folder), config=ROOT / "config.properties") as running:
        running.wait_ready(180)
        yield running


def asked(server: TorchServe, name: str, path: str = TRANSCRIPTIONS, **given: str) -> Any:
    fields = {"file": SOUND, "model": b"m", **{key: value.encode() for key, value in given.items()}}
    with Rest(server) as rest:
        return rest.post(f"{name}/{path}", *multipart(fields))


@pytest.mark.parametrize("name", [HEARS, LETTERS])
def test_the_text_is_that_of_hugging_face_s_form(server, name) -> None:
    with Rest(server) as rest:
        known = rest.post(name, SOUND, "audio/wav").value
        assert known["text"] and rest.get(f"/predictions/{name}/v1/models").value["data"][0]["id"] == name
    assert asked(server, name).value == known
    found = asked(server, name, response_format="text")
    assert found.body.decode() == known["text"] + "\n" and found.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_list_of_a_form_arrives_whole(server) -> None:
    grains = b"timestamp_granularities[]"
    body = multipart_of(
        [(b"file", SOUND), (grains, b"segment"), (b"response_format", b"verbose_json"), (grains, b"word")]
    )
    with Rest(server) as rest:
        both = rest.post(f"{HEARS}/{TRANSCRIPTIONS}", body, KIND).value
        letters = asked(server, LETTERS, response_format="verbose_json", **{"timestamp_granularities[]": "word"}).value
        timed = rest.post(f"{LETTERS}", wav_in_json(return_timestamps="word")).value
    assert both["segments"] and both["words"] and both["language"] in ("english", "german")
    assert letters == {
        "task": "transcribe",
        "language": "unknown",
        "duration": 1.5,
        "text": timed["text"],
        "words": [
            {"word": one["text"], "start": one["timestamp"][0], "end": one["timestamp"][1]} for one in timed["chunks"]
        ],
    }


def wav_in_json(**parameters: Any) -> dict[str, Any]:
    return {"inputs": base64.b64encode(SOUND).decode(), "parameters": parameters}


def test_subtitles_and_streams_have_their_content_types(server) -> None:
    for kind, content_type in (("srt", "application/x-subrip; charset=utf-8"), ("vtt", "text/vtt; charset=utf-8")):
        reply = asked(server, HEARS, response_format=kind)
        assert reply.status == 200 and reply.headers["content-type"] == content_type and b" --> " in reply.body
    reply = asked(server, HEARS, stream="true")
    events = [json.loads(line.removeprefix(b"data: ")) for line in reply.body.split(b"\n\n") if line]
    assert reply.headers["content-type"] == "text/event-stream" and len(events) > 2
    text = asked(server, HEARS).value["text"]
    assert "".join(one["delta"] for one in events[:-1]) == text == events[-1]["text"]


@pytest.mark.parametrize(
    ("name", "path", "given", "status", "message"),
    [
        (LETTERS, "v1/audio/translations", {}, 400, "does not translate"),
        (LETTERS, TRANSCRIPTIONS, {"response_format": "vtt"}, 400, "does not tell when segments are said"),
        (HEARS, TRANSCRIPTIONS, {"file": "no sound"}, 400, "file is no sound file that can be read"),
        (HEARS, TRANSCRIPTIONS, {"chunking_strategy": "auto"}, 400, "unknown field 'chunking_strategy'"),
        (HEARS, "v1/audio/speech", {}, 404, "this model has 'models', 'audio/transcriptions', 'audio/translations'"),
    ],
)
def test_refusals_are_openai_s(server, name, path, given, status, message) -> None:
    reply = asked(server, name, path, **given)
    assert reply.status == status and message in reply.message
    assert reply.value["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", [HEARS, LETTERS])
def test_other_bodies_are_refused(server, name) -> None:
    with Rest(server) as rest, Grpc(server) as grpc:
        for body, kind in ((b'{"file": "a"}', "application/json"), (SOUND, "audio/wav"), (b"", KIND)):
            reply = rest.post(f"{name}/{TRANSCRIPTIONS}", body, kind)
            assert reply.status == 400 and "no field 'file'" in reply.message
        # gRPC has no paths: a call's inputs are those of Hugging Face's form.
        assert "no body: found 'file'" in grpc.call(name, {"file": SOUND}).message
        long = wav(41.0)
        reply = rest.post(f"{name}/{TRANSCRIPTIONS}", *multipart({"file": long}))
        assert reply.status == 400 and "41.0 seconds of sound; at most 40 are allowed" in reply.message


@pytest.mark.parametrize("name", [HEARS, LETTERS])
def test_a_thousand_forms_made_wrong(server, name) -> None:
    """Each is answered: by the worker, or by the frontend where it is no form at all; none costs a worker its life."""
    sound = wav(0.3)
    right = [
        (b"file", sound),
        (b"model", b"m"),
        (b"response_format", b"verbose_json"),
        (b"temperature", b"0"),
        (b"timestamp_granularities[]", b"word"),
    ]
    if name == HEARS:
        right += [(b"timestamp_granularities[]", b"segment"), (b"language", b"en"), (b"prompt", b"ab")]
    dice = random.Random(name)
    bodies = [mutated_form(right, dice) for _ in range(COUNT)]
    workers, processes = server.workers(name), {process.pid for process in server.processes()}

    def client(number: int) -> list[str]:
        wrong = []
        with Rest(server) as rest:
            for body in bodies[number::CLIENTS]:
                reply = rest.post(f"{name}/{TRANSCRIPTIONS}", body, KIND)
                if not _is_answer(reply.status, reply.body):
                    wrong.append(f"{body[:200]!r}: {reply.status} {reply.body[:200]!r}")
        return wrong

    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = [line for found in pool.map(client, range(CLIENTS)) for line in found]
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:10])
    assert server.workers(name) == workers
    assert {process.pid for process in server.processes()} == processes


def _is_answer(status: int, body: bytes) -> bool:
    """A transcript, a mistake in OpenAI's form, or what TorchServe's frontend says itself of what it cannot split."""
    if status == 200:
        return bool(body)
    value = json.loads(body)
    if "error" in value:
        return status == 400 and value["error"]["type"] == "invalid_request_error" and bool(value["error"]["message"])
    return status in (400, 500) and {"code", "type", "message"} == set(value)
