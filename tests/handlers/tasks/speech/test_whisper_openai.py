"""OpenAI's form to a tiny model of Whisper's form: the same text as Hugging Face's, in pieces too, behind a prompt."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny_whisper import FEATURES, GERMAN, NO_TIMES, TRANSCRIBE, noise, tiny_tokenizer, tiny_whisper, wav
from torchserve_side import Told, ask

from handlers.inputs.media.audio_file import Recording
from handlers.tasks.speech.telling import Pieces
from handlers.tasks.speech.whisper import WhisperHandler

VERBOSE = {"response_format": b"verbose_json"}


def asked(handler: WhisperHandler, sound: bytes, path: str = "audio/transcriptions", **given: bytes) -> Told:
    row = {"file": sound, **{name.replace("grains", "timestamp_granularities[]"): given[name] for name in given}}
    return asyncio.run(ask(handler, row, {"host": "localhost", "url_path": path}))


def heard(handler: WhisperHandler, sound: bytes, **parameters: Any) -> Any:
    return json.loads(json.dumps(handler.respond([Recording(sound)], parameters)[0]))


def events(told: Told) -> list[dict[str, Any]]:
    assert told.responses[0].content_type == "text/event-stream"
    return [json.loads(line.removeprefix(b"data: ")) for line in told.body.split(b"\n\n") if line]


@pytest.mark.parametrize("seconds", [1.5, 15.0])
def test_every_format_says_what_hugging_face_s_form_says(handler, seconds) -> None:
    sound = wav(seconds, 3)
    assert asked(handler, sound).json == {"text": heard(handler, sound)["text"]}
    timed = heard(handler, sound, return_timestamps=True)
    verbose = asked(handler, sound, **VERBOSE).json
    assert verbose["text"] == timed["text"] and verbose["duration"] == seconds
    assert [{"text": one["text"], "timestamp": [one["start"], one["end"]]} for one in verbose["segments"]] == timed[
        "chunks"
    ]
    spoken = heard(handler, sound, return_timestamps="word")
    both = asked(handler, sound, **VERBOSE, grains=b"segment,word").json
    assert both["segments"] == verbose["segments"]
    assert [one["word"] for one in both["words"]] == [chunk["text"].strip() for chunk in spoken["chunks"]]
    assert "segments" not in asked(handler, sound, **VERBOSE, grains=b"word").json
    subtitles = asked(handler, sound, response_format=b"srt")
    assert subtitles.responses[0].content_type.startswith("application/x-subrip")
    assert subtitles.body.count(b" --> ") == len(timed["chunks"])
    german = heard(handler, sound, language="de", task="translate")
    assert german["text"] != heard(handler, sound)["text"]
    translated = asked(handler, sound, "audio/translations", response_format=b"text")
    assert translated.body.decode() == heard(handler, sound, task="translate")["text"] + "\n"


def test_details_are_the_model_s_own(handler) -> None:
    """Log-probabilities and the chance of silence against a run of the model over the same tokens."""
    sound, model = wav(1.5, 3), tiny_whisper()
    for given in ({}, {"language": b"de"}):
        found = asked(handler, sound, **VERBOSE, **given).json
        language = {"english": GERMAN - 1, "german": GERMAN}[found["language"]]
        ids = [token for one in found["segments"] for token in one["tokens"]]
        features = torch.from_numpy(
            handler.input.features(handler.input.encode([Recording(sound)], {})[0].samples).T[None]
        )
        with torch.inference_mode():
            start = [handler.rules.start[0], language, TRANSCRIBE]
            logits = model(input_features=features, decoder_input_ids=torch.tensor([[*start, *ids]])).logits[0]
        silence = torch.softmax(logits[0], -1)[NO_TIMES - 1].item()
        assert found["segments"][0]["no_speech_prob"] == pytest.approx(silence, abs=1e-4)
        rules = handler._rules({"language": "german"}, times=True)
        expected = []
        for place, token in enumerate(ids):
            row = [*rules.start, *ids[:place]]
            scores = torch.from_numpy(rules.apply(logits[len(start) + place - 1].numpy(), row))
            expected.append(torch.log_softmax(scores, -1)[token].item())
        last = 0
        for one in found["segments"]:
            first, last = last, last + len(one["tokens"])
            assert one["avg_logprob"] == pytest.approx(np.mean(expected[first:last]), abs=1e-3)
        if given:
            assert found["language"] == "german"


def test_seek_is_where_a_segment_s_window_begins(handler) -> None:
    found = asked(handler, wav(7.0, 3), **VERBOSE).json["segments"]
    assert found[0]["seek"] == 0 and all(one["seek"] / 100 <= one["start"] + 1e-6 for one in found)
    assert len({one["seek"] for one in found}) > 1 and [one["id"] for one in found] == list(range(len(found)))


def test_a_prompt_stands_before_the_first_window_as_in_generate(handler) -> None:
    model, tokenizer = tiny_whisper(), tiny_tokenizer()
    prompt = tokenizer.encode(" abc", add_special_tokens=False).ids
    assert len(prompt) == 4
    sound = noise(2.0, 1)
    with torch.inference_mode():
        expected = model.generate(
            torch.from_numpy(FEATURES(sound).T[None].copy()),
            prompt_ids=torch.tensor([99, *prompt]),
            language="de",
            task="transcribe",
            max_new_tokens=14,
            do_sample=False,
        )[0].tolist()
    rules = handler._rules({"prompt": "abc ", "language": "de"}, times=False)
    assert rules.start == (99, *prompt, 101, GERMAN, TRANSCRIBE, NO_TIMES)
    text = asked(handler, wav(2.0, 1), prompt=b" abc ", language=b"de").json["text"]
    begun = [token for token in expected if token < 99 and token not in prompt]
    assert begun and text.startswith(tokenizer.decode(begun[:4]).strip())
    long = handler._rules({"prompt": "ab" * 30}, times=False)
    assert len(long.start) == 1 + 19 + 1 and long.most <= 40
    assert handler._rules({"prompt": "abc"}, times=False, first=False).start == (101,)


def test_a_temperature_draws_and_leaves_the_language_alone(handler) -> None:
    sound = wav(1.5, 3)
    texts = {asked(handler, sound, temperature=b"1").json["text"] for _ in range(6)}
    assert len(texts) > 1
    languages = {asked(handler, sound, temperature=b"1", **VERBOSE).json["language"] for _ in range(6)}
    assert languages == {asked(handler, sound, **VERBOSE).json["language"]}


@pytest.mark.parametrize("seconds", [1.5, 7.0])
def test_a_stream_is_the_text_in_pieces(handler, seconds) -> None:
    sound = wav(seconds, 3)
    text = asked(handler, sound).json["text"]
    *pieces, done = events(asked(handler, sound, stream=b"true"))
    assert {one["type"] for one in pieces} == {"transcript.text.delta"} and len(pieces) > 1
    assert "".join(one["delta"] for one in pieces) == text
    assert done == {"type": "transcript.text.done", "text": text}


def test_pieces_leave_the_blanks_around_a_text_out() -> None:
    pieces = Pieces()
    assert [pieces.new(text) for text in ("", " ", " a", " a ", " a b", " a b ")] == ["", "", "a", "", " b", ""]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"language": b"xx"}, "'language' is 'xx'; allowed: 'de', 'en'"),
        ({"prompt": b"a <|en|>"}, "'prompt' has '<|en|>' in it, which is no text"),
        ({"num_beams": b"2"}, "unknown field 'num_beams'"),
    ],
)
def test_mistakes_are_told_in_openai_s_form(handler, given, message) -> None:
    told = asked(handler, wav(0.5), **given)
    assert told.status == 400 and message in told.json["error"]["message"]
    assert told.json["error"]["type"] == "invalid_request_error"


def test_a_model_that_knows_english_only_translates_nothing(handler, monkeypatch) -> None:
    english = handler.serving["speech"] | {"languages": {}, "names": {}, "tasks": {}, "previous": None}
    monkeypatch.setitem(handler.serving, "speech", english)
    sound = wav(0.5)
    for path, given, message in (
        ("audio/translations", {}, "does not translate"),
        ("audio/transcriptions", {"language": b"en"}, "'language' is given"),
        ("audio/transcriptions", {"prompt": b"a"}, "'prompt' is given"),
    ):
        told = asked(handler, sound, path, **given)
        assert told.status == 400 and message in told.json["error"]["message"]
    assert asked(handler, sound, **VERBOSE).json["language"] == "english"
