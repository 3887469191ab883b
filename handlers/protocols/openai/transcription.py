"""OpenAI's transcriptions and translations: a form with a sound file → its text, with times, as subtitles, or in pieces.

Source: OpenAI's API reference, «Create transcription» and «Create translation».
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.checks import checked_text, decoded, kind_of, quoted
from handlers.protocols.document import body_bytes
from handlers.protocols.openai.reply import OpenAIForm
from handlers.protocols.openai.subtitles import srt, vtt
from handlers.protocols.reply import Text, event
from handlers.protocols.request import Request, Spec

TRANSCRIPTIONS, TRANSLATIONS = "audio/transcriptions", "audio/translations"
# A parameter that only this form sets: the answer tells what `Transcribed.render` needs beyond text and chunks.
DETAILS = "details"

_GRANULARITIES = "timestamp_granularities[]"
_FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_FIELDS = ("file", "model", "prompt", "response_format", "temperature")
_TRANSCRIPTION = (*_FIELDS, "language", _GRANULARITIES, "stream")
_MAX_PROMPT = 10_000  # characters; of its tokens the model takes the last few hundred
_PLAIN = "text/plain; charset=utf-8"
_SEND = "send multipart/form-data with a sound file as its field 'file'"


@dataclass(frozen=True)
class Abilities:
    """What a model can be asked for beside a recording's text.

    segments, words: whether it tells when they are said. languages: whether the language may be named. translates: into
    English. prompts: whether it goes on from a text. writes: token by token, drawn by a temperature or told in pieces.
    """

    segments: bool = False
    words: bool = False
    languages: bool = False
    translates: bool = False
    prompts: bool = False
    writes: bool = False


@dataclass(frozen=True)
class Transcribed(OpenAIForm):
    """What the answer shall be.

    kind: the response_format. segments, words: what a verbose one tells. task: "transcribe" or "translate".
    temperature: that the text was drawn by. stream: whether it comes in pieces.
    """

    kind: str = "json"
    segments: bool = True
    words: bool = False
    task: str = "transcribe"
    temperature: float = 0.0
    stream: bool = False

    def render(self, answers: Sequence[Any], tokens: int) -> Any:
        """The one recording's answer.

        Args:
            answers: [1] with text, and chunks where times were asked for; with DETAILS duration (seconds), language (its
                English name) and segments ({"text", "timestamp", "tokens", "seek", …}).
        """
        answer = answers[0]
        if self.kind == "text":
            return Text((answer["text"] + "\n").encode(), _PLAIN)
        if self.kind == "srt":
            return Text(srt(answer["chunks"]).encode() or b"\n", "application/x-subrip; charset=utf-8")
        if self.kind == "vtt":
            return Text(vtt(answer["chunks"]).encode(), "text/vtt; charset=utf-8")
        return self._verbose(answer) if self.kind == "verbose_json" else {"text": answer["text"]}

    def _verbose(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        found = {
            "task": self.task,
            "language": answer["language"],
            "duration": answer["duration"],
            "text": answer["text"],
        }
        if self.words:
            found["words"] = [
                {"word": one["text"].strip(), "start": one["timestamp"][0], "end": one["timestamp"][1]}
                for one in answer["chunks"]
            ]
        if self.segments:
            found["segments"] = [
                self._segment(index, dict(one)) for index, one in enumerate(answer["segments"])
            ]  # fmt: skip
        return found

    def _segment(self, index: int, told: dict[str, Any]) -> dict[str, Any]:
        start, end = told.pop("timestamp")
        text = told["text"].encode()
        return {
            "id": index,
            "start": start,
            "end": end,
            "temperature": self.temperature,
            "compression_ratio": len(text) / len(zlib.compress(text)),
            **told,
        }

    def delta(self, text: str) -> bytes:
        """The event of a piece of the text."""
        return event({"type": "transcript.text.delta", "delta": text})

    def done(self, text: str) -> bytes:
        """The last event."""
        return event({"type": "transcript.text.done", "text": text})


def fields(row: Mapping[str, Any], headers: Mapping[str, Any], max_bytes: int) -> Mapping[str, Any]:
    """The fields of a request that is a form.

    Args:
        row: them, as bytes. headers: the request's. max_bytes: most bytes of the body.
    Raises: BadRequest for a body that is larger, with the code 413, and for one without a file.
    """
    if (size := body_bytes(row, headers)) > max_bytes:
        raise BadRequest(f"the body has {size} bytes; at most {max_bytes} are allowed", 413)
    if "file" not in row:
        raise BadRequest(f"the body has no field 'file': found {quoted(list(row)) or 'nothing'}; {_SEND}")
    return row


def parse(row: Mapping[str, Any], spec: Spec, can: Abilities, path: str) -> Request:
    """A request for a transcript, or a translation into English.

    Args:
        row: as `fields` gives it. can: what the model can. path: one of the two above.
    Returns: the request; its parameters are return_timestamps, language, task, prompt, temperature and DETAILS.
    Raises: BadRequest saying what is wrong and what is allowed.
    """
    translate = path == TRANSLATIONS
    if translate and not can.translates:
        raise BadRequest(f"this model does not translate: it writes the language that it hears; use {TRANSCRIPTIONS}")
    allowed = _FIELDS if translate else _TRANSCRIPTION
    named = {name: value for name, value in row.items() if name == "file" or value not in (b"", "")}
    if unknown := sorted(set(named) - set(allowed)):
        raise BadRequest(f"unknown field {quoted(unknown)} in the form; allowed: {quoted(sorted(allowed), most=50)}")
    given = {name: _text(name, value) for name, value in named.items() if name != "file"}
    form = _form(given, can, translate)
    parameters: dict[str, Any] = {}
    if form.kind in ("srt", "vtt", "verbose_json"):
        parameters["return_timestamps"] = "word" if form.words else True
    if form.kind == "verbose_json":
        parameters[DETAILS] = True
    for name in ("language", "prompt"):
        if name in given:
            parameters[name] = checked_text(given[name], f"the field {name!r}")
    if (length := len(given.get("prompt", ""))) > _MAX_PROMPT:
        raise BadRequest(f"the field 'prompt' has {length} characters; at most {_MAX_PROMPT} are allowed")
    if translate:
        parameters["task"] = "translate"
    if form.temperature:
        parameters["temperature"] = form.temperature
    file = named["file"]
    if not isinstance(file, (bytes, bytearray)):
        raise BadRequest(f"the field 'file' is {kind_of(file)}; {_SEND}, of the type audio/* or none")
    return Request((spec.decode(bytes(file), "file"),), True, parameters, form)


def _form(given: Mapping[str, str], can: Abilities, translate: bool) -> Transcribed:
    kind = given.get("response_format", "json")
    if kind not in _FORMATS:
        raise BadRequest(f"'response_format' is {kind[:60]!r}; allowed: {quoted(list(_FORMATS))}")
    for name in ("language", "prompt"):
        able = can.languages if name == "language" else can.prompts
        if name in given and not able:
            raise BadRequest(f"{name!r} is given, and this model has no use for it: leave it out")
    granularities = _granularities(given, kind)
    words, segments = "word" in granularities, "segment" in granularities
    if kind in ("srt", "vtt") or segments:
        if not can.segments:
            raise BadRequest(
                f"'response_format' is {kind!r}, and this model does not tell when segments are said; allowed: json, text"
                + (", or verbose_json with timestamp_granularities[] word" if can.words else "")
            )
    if words and not can.words:
        raise BadRequest("'timestamp_granularities[]' is 'word', and this model does not tell when words are said")
    stream = _flag("stream", given.get("stream", "false"))
    if stream and not can.writes:
        raise BadRequest("'stream' is true, and this model hears a recording at once: leave it out")
    if stream and kind not in ("json", "text"):
        raise BadRequest(
            f"'stream' is true and 'response_format' {kind!r}: a stream has text alone, allowed: json, text"
        )
    task = "translate" if translate else "transcribe"
    return Transcribed(kind, segments, words, task, _temperature(given, can), stream)


def _granularities(given: Mapping[str, str], kind: str) -> set[str]:
    """What is asked for, by default segments; nothing where times are not."""
    if _GRANULARITIES not in given:
        return {"segment"} if kind == "verbose_json" else set()
    if kind != "verbose_json":
        raise BadRequest(
            f"'timestamp_granularities[]' is given and 'response_format' is {kind!r}: only verbose_json has it"
        )
    found = set(given[_GRANULARITIES].split(","))
    if wrong := sorted(found - {"segment", "word"}):
        raise BadRequest(f"'timestamp_granularities[]' is {wrong[0][:60]!r}; allowed: 'segment', 'word'")
    return found


def _temperature(given: Mapping[str, str], can: Abilities) -> float:
    text = given.get("temperature", "0")
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise BadRequest(f"'temperature' is {text[:60]!r}; allowed: a number from 0 to 1")
    if found and not can.writes:
        raise BadRequest(f"'temperature' is {text[:60]!r}, and this model draws nothing: allowed: 0")
    return found


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise BadRequest(f"{name!r} is {text[:60]!r}; allowed: true or false")
    return text.lower() == "true"


def _text(name: str, value: Any) -> str:
    """A field's text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (bytes, bytearray)):
        raise BadRequest(f"the field {name[:60]!r} is {kind_of(value)}; a text is expected")
    try:
        return decoded(bytes(value))
    except BadRequest as error:
        raise BadRequest(str(error).replace("the body", f"the field {name[:60]!r}")) from error
