"""OpenAI's transcriptions: which fields a form may have, for which model, and what its answers look like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.errors import BadRequest
from handlers.protocols.openai.transcription import (
    DETAILS,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    Abilities,
    Transcribed,
    fields,
    parse,
)
from handlers.protocols.reply import Text
from handlers.protocols.request import Request, Spec

EVERYTHING = Abilities(segments=True, words=True, languages=True, translates=True, prompts=True, writes=True)
LETTERS = Abilities(words=True)
GRAINS = "timestamp_granularities[]"
SPEC = Spec(lambda value, where: (value, where), {}, 1, "a sound")


def asked(can: Abilities = EVERYTHING, path: str = TRANSCRIPTIONS, **given: bytes) -> Request:
    row = {"file": b"sound", **{name.replace("grains", GRAINS): value for name, value in given.items()}}
    return parse(fields(row, {}, 20_000), SPEC, can, path)


def test_a_file_alone_is_enough() -> None:
    found = asked()
    assert found.inputs == ((b"sound", "file"),) and found.single and found.parameters == {}
    assert found.form == Transcribed("json", False, False)


@pytest.mark.parametrize(
    ("given", "parameters", "form"),
    [
        ({"model": b"whisper-1", "prompt": b"", "language": b""}, {}, Transcribed("json", False, False)),
        (
            {"language": b"de", "prompt": "größe".encode(), "temperature": b"0.5", "stream": b"TRUE"},
            {"language": "de", "prompt": "größe", "temperature": 0.5},
            Transcribed("json", False, False, temperature=0.5, stream=True),
        ),
        (
            {"response_format": b"srt", "temperature": b"0"},
            {"return_timestamps": True},
            Transcribed("srt", False, False),
        ),
        (
            {"response_format": b"verbose_json"},
            {"return_timestamps": True, DETAILS: True},
            Transcribed("verbose_json", True, False),
        ),
        (
            {"response_format": b"verbose_json", "grains": b"word,segment"},
            {"return_timestamps": "word", DETAILS: True},
            Transcribed("verbose_json", True, True),
        ),
    ],
)
def test_fields_become_parameters(given, parameters, form) -> None:
    found = asked(**given)
    assert found.parameters == parameters and found.form == form


def test_a_translation_is_whisper_s_task() -> None:
    found = asked(path=TRANSLATIONS, response_format=b"vtt", prompt=b"a")
    assert found.parameters == {"return_timestamps": True, "prompt": "a", "task": "translate"}
    assert found.form == Transcribed("vtt", False, False, "translate")


@pytest.mark.parametrize(
    ("can", "path", "given", "message"),
    [
        (LETTERS, TRANSLATIONS, {}, "does not translate"),
        (EVERYTHING, TRANSLATIONS, {"language": b"de"}, "unknown field 'language'"),
        (EVERYTHING, TRANSCRIPTIONS, {"include[]": b"logprobs"}, r"unknown field 'include\[\]' in the form; allowed"),
        (EVERYTHING, TRANSCRIPTIONS, {"chunking_strategy": b"auto"}, "unknown field 'chunking_strategy'"),
        (EVERYTHING, TRANSCRIPTIONS, {"response_format": b"diarized_json"}, "'diarized_json'; allowed: 'json', 'text'"),
        (EVERYTHING, TRANSCRIPTIONS, {"temperature": b"1.1"}, "'1.1'; allowed: a number from 0 to 1"),
        (EVERYTHING, TRANSCRIPTIONS, {"temperature": b"nan"}, "'nan'; allowed: a number"),
        (EVERYTHING, TRANSCRIPTIONS, {"stream": b"1"}, "'1'; allowed: true or false"),
        (EVERYTHING, TRANSCRIPTIONS, {"stream": b"true", "response_format": b"srt"}, "a stream has text alone"),
        (EVERYTHING, TRANSCRIPTIONS, {"grains": b"word"}, "only verbose_json has it"),
        (EVERYTHING, TRANSCRIPTIONS, {"grains": b"char", "response_format": b"verbose_json"}, "'char'; allowed: 'segment'"),
        (EVERYTHING, TRANSCRIPTIONS, {"language": b"\xff"}, "'language' is not UTF-8: byte 0"),
        (EVERYTHING, TRANSCRIPTIONS, {"prompt": b"a" * 10_001}, "has 10001 characters; at most 10000"),
        (LETTERS, TRANSCRIPTIONS, {"language": b"de"}, "'language' is given, and this model has no use for it"),
        (LETTERS, TRANSCRIPTIONS, {"prompt": b"a"}, "'prompt' is given, and this model has no use for it"),
        (LETTERS, TRANSCRIPTIONS, {"temperature": b"0.5"}, "draws nothing: allowed: 0"),
        (LETTERS, TRANSCRIPTIONS, {"stream": b"true"}, "'stream' is true, and this model hears a recording at once"),
        (LETTERS, TRANSCRIPTIONS, {"response_format": b"srt"}, "does not tell when segments are said; allowed: json, text"),
        (LETTERS, TRANSCRIPTIONS, {"response_format": b"verbose_json"}, "or verbose_json with timestamp_granularities"),
        (Abilities(segments=True), TRANSCRIPTIONS, {"response_format": b"verbose_json", "grains": b"word"}, "when words"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(can, path, given, message) -> None:
    with pytest.raises(BadRequest, match=message):
        asked(can, path, **given)


def test_a_body_without_a_file_or_too_large_is_refused() -> None:
    with pytest.raises(BadRequest, match="no field 'file': found 'body'; send multipart/form-data"):
        fields({"body": b"{}"}, {}, 1000)
    with pytest.raises(BadRequest, match="found nothing"):
        fields({}, {}, 1000)
    with pytest.raises(BadRequest, match="at most 1000 are allowed") as refused:
        fields({"file": b"a"}, {"Content-Length": "1001"}, 1000)
    assert refused.value.code == 413


ANSWER: dict[str, Any] = {
    "text": "a b",
    "chunks": [{"text": " a", "timestamp": [0.0, 0.5]}, {"text": " b", "timestamp": [0.5, 1.0]}],
    "duration": 1.25,
    "language": "german",
    "segments": [{"text": " aaaaaaaaaaaaaaaa", "timestamp": [0.0, 1.0], "tokens": [1, 2], "seek": 0}],
}


def test_answers() -> None:
    assert Transcribed("json").render([ANSWER], 0) == {"text": "a b"}
    assert Transcribed("text").render([ANSWER], 0) == Text(b"a b\n", "text/plain; charset=utf-8")
    subtitles = Transcribed("srt").render([ANSWER], 0)
    assert subtitles.body.startswith(b"1\n00:00:00,000 --> ") and subtitles.content_type.startswith(
        "application/x-subrip"
    )
    assert Transcribed("vtt").render([ANSWER], 0).content_type == "text/vtt; charset=utf-8"
    assert Transcribed("srt").render([{"text": "", "chunks": []}], 0).body == b"\n"


def test_a_verbose_answer_tells_what_was_asked_for() -> None:
    found = Transcribed("verbose_json", segments=True, words=True, temperature=0.5).render([ANSWER], 0)
    assert found == {
        "task": "transcribe",
        "language": "german",
        "duration": 1.25,
        "text": "a b",
        "words": [{"word": "a", "start": 0.0, "end": 0.5}, {"word": "b", "start": 0.5, "end": 1.0}],
        "segments": [
            {
                "id": 0,
                "start": 0.0,
                "end": 1.0,
                "temperature": 0.5,
                "compression_ratio": 17 / 11,  # head 2, a blank, a letter and a pointer back 5, checksum 4
                "text": " aaaaaaaaaaaaaaaa",
                "tokens": [1, 2],
                "seek": 0,
            }
        ],
    }
    assert "words" not in Transcribed("verbose_json").render([ANSWER], 0)
    assert "timestamp" in ANSWER["segments"][0]  # what was given is as it was


def test_events() -> None:
    form = Transcribed(stream=True)
    assert json.loads(form.delta(" größe").removeprefix(b"data: ")) == {
        "type": "transcript.text.delta",
        "delta": " größe",
    }
    assert form.done("a") == b'data: {"type":"transcript.text.done","text":"a"}\n\n'
