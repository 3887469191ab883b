"""Recordings to a tiny model of Whisper's form: windows, times, parameters and refusals, and that a batch is as alone."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
import pytest
from tiny_whisper import wav
from torchserve_side import Told, ask

from handlers.inputs.media.audio_file import Recording
from handlers.tasks.speech.whisper import WhisperHandler


def one(handler: WhisperHandler, body: Any) -> Told:
    return asyncio.run(ask(handler, {"body": body}, {"host": "localhost"}))


def answered(handler: WhisperHandler, body: Any, **parameters: Any) -> Any:
    if parameters:
        text = base64.b64encode(body).decode()
        body = json.dumps({"inputs": text, "parameters": parameters}).encode()
    told = one(handler, body)
    assert told.status == 200, told.body
    return json.loads(told.body)


def test_bytes_and_base64_say_the_same(handler) -> None:
    alone = answered(handler, wav(1.5))
    assert list(alone) == ["text"] and alone["text"]
    assert answered(handler, wav(1.5), return_timestamps=False) == alone


def test_a_long_recording_comes_back_whole_and_in_order(handler) -> None:
    for times in (True, "word"):
        found = answered(handler, wav(15.0, 3), return_timestamps=times)
        stamps = [when for chunk in found["chunks"] for when in chunk["timestamp"]]
        assert stamps == sorted(stamps) and stamps[-1] <= 15.0 and stamps[-1] > 13.0
        assert found["text"] == "".join(chunk["text"] for chunk in found["chunks"]).strip()


def test_many_at_once_are_as_alone(handler) -> None:
    bodies = [wav(seconds, seed) for seed, seconds in enumerate((1.0, 7.0, 2.0, 3.5, 0.5))]
    alone = [answered(handler, body) for body in bodies]

    async def together() -> list[Told]:
        return await asyncio.gather(*(ask(handler, {"body": body}, {"host": "localhost"}) for body in bodies))

    assert [json.loads(told.body) for told in asyncio.run(together())] == alone
    assert handler.respond([Recording(body) for body in bodies]) == alone


def test_language_and_task_change_what_is_written(handler) -> None:
    found = {
        (language, task): answered(handler, wav(1.0), language=language, task=task)["text"]
        for language in ("en", "German")
        for task in ("transcribe", "translate")
    }
    assert len(set(found.values())) > 1
    inner = answered(handler, wav(1.0), generation_parameters={"language": "de", "num_beams": 2})
    assert inner == answered(handler, wav(1.0), language="german", num_beams=2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"language": "xx"}, "'language' is 'xx'; allowed: 'de', 'en', or their English names"),
        ({"task": "sing"}, 'parameter \'task\' is "sing"; allowed: "transcribe" or "translate"'),
        ({"return_timestamps": "char"}, 'allowed: true, false or "word"'),
        ({"return_timestamps": "word", "num_beams": 2}, "choose one"),
        ({"temperature": 1}, "unknown parameter 'temperature'"),
        ({"generate_kwargs": {"task": "translate"}, "task": "transcribe"}, "send it once"),
    ],
)
def test_parameters_that_cannot_be_are_refused(handler, parameters, message) -> None:
    text = base64.b64encode(wav(0.5)).decode()
    told = one(handler, json.dumps({"inputs": text, "parameters": parameters}).encode())
    assert told.status == 400
    assert message in json.loads(told.body)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"RIFFnothing", "cannot be read|no sound file|shorter"), (wav(21.0), "at most 20"), (b"", "empty")],
)
def test_sound_that_cannot_be_read_is_refused(handler, body, message) -> None:
    told = one(handler, body)
    assert told.status == 400
    assert any(part in json.loads(told.body)["error"]["message"] for part in message.split("|"))


def test_answers_are_compared_by_their_words(handler) -> None:
    assert handler.compare({"text": "a b c d"}, {"text": "a b c d"}) == 0
    assert handler.compare({"text": "a b c d"}, {"text": "a x c d"}) == pytest.approx(0.25)
    assert handler.compare({"text": "a"}, {"label": "a"}) == float("inf")
    assert handler.compare({"text": ""}, {"text": ""}) == 0


def test_spectrograms_are_the_model_s_inputs(handler) -> None:
    sounds = handler.input.encode([Recording(wav(1.0))], {})
    arrays = handler.input.collate(sounds, 1, 1)
    assert arrays["input_features"].shape == (1, 80, 200) and arrays["input_features"].dtype == np.float32
    assert handler.input.size(sounds[0]) == 1
