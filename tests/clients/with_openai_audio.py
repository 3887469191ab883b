"""The openai package: transcriptions in each format, as a stream, with words; translations; refusals."""

import asyncio
import base64
import json
import sys

import openai
from openai.types.audio import TranscriptionVerbose, TranslationVerbose

given = json.load(sys.stdin)
file = ("sound.wav", base64.b64decode(given["sound"]))


def client(name: str) -> openai.OpenAI:
    base = f"{given['url']}/predictions/{name}/v1"
    return openai.OpenAI(base_url=base, api_key=given["key"], max_retries=0)


hears = client("hears").audio
asked = {"file": file, "model": "whisper-1"}
text, timed = given["heard"]["text"], given["timed"]


def clock(seconds: float, point: str) -> str:
    return f"00:00:{int(seconds):02}{point}{round(seconds % 1 * 1000):03}"


# ---- formats
assert hears.transcriptions.create(**asked).text == text
assert hears.transcriptions.create(**asked, response_format="json", language="de").text == given["german"]["text"]
assert hears.transcriptions.create(**asked, response_format="text", temperature=0) == text + "\n"
cues = [(one["text"].strip(), *one["timestamp"]) for one in timed["chunks"]]
expected = [f"{number}\n{clock(a, ',')} --> {clock(b, ',')}\n{said}\n" for number, (said, a, b) in enumerate(cues, 1)]
assert hears.transcriptions.create(**asked, response_format="srt") == "\n".join(expected)
said = hears.transcriptions.create(**asked, response_format="vtt")
assert said.startswith("WEBVTT\n\n") and said.count(" --> ") == len(cues)
assert all(f"{clock(a, '.')} --> {clock(b, '.')}\n" in said for _, a, b in cues)

# ---- times, by their own types, strictly
raw = hears.transcriptions.with_raw_response.create(**asked, response_format="verbose_json")
verbose = TranscriptionVerbose.model_validate(json.loads(raw.text), strict=True)
assert verbose.text == timed["text"] and verbose.duration == 1.5 and verbose.words is None
assert [{"text": one.text, "timestamp": [one.start, one.end]} for one in verbose.segments] == timed["chunks"]
both = hears.transcriptions.create(**asked, response_format="verbose_json", timestamp_granularities=["word", "segment"])
assert both.segments == verbose.segments
assert [(one.word, one.start, one.end) for one in both.words] == [
    (one["text"].strip(), *one["timestamp"]) for one in given["words"]["chunks"]
]
letters = client("letters").audio.transcriptions.create(
    **asked, response_format="verbose_json", timestamp_granularities=["word"]
)
assert [(one.word, one.start, one.end) for one in letters.words] == [
    (one["text"], *one["timestamp"]) for one in given["letters"]["chunks"]
]

# ---- in pieces, behind a prompt, translated
events = list(hears.transcriptions.create(**asked, stream=True))
assert "".join(one.delta for one in events[:-1]) == text == events[-1].text and len(events) > 2
assert hears.transcriptions.create(**asked, prompt="a b c").text
assert hears.translations.create(**asked).text == given["translated"]["text"]
raw = hears.translations.with_raw_response.create(**asked, response_format="verbose_json")
assert TranslationVerbose.model_validate(json.loads(raw.text), strict=True).language == "english"

# ---- refusals
for call, more, message in (
    (hears.transcriptions.create, {"chunking_strategy": "auto"}, "chunking_strategy"),
    (hears.transcriptions.create, {"include": ["logprobs"]}, "include[]"),
    (hears.transcriptions.create, {"response_format": "diarized_json"}, "response_format"),
    (client("letters").audio.transcriptions.create, {"stream": True}, "stream"),
    (client("letters").audio.translations.create, {}, "does not translate"),
):
    try:
        call(**asked, **more)
    except openai.BadRequestError as error:
        assert message in error.message and error.type == "invalid_request_error", error.body
    else:
        raise AssertionError(f"{more} is answered")


# ---- async
async def together() -> None:
    base = f"{given['url']}/predictions/hears/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key=given["key"], max_retries=0) as other:
        answers = await asyncio.gather(*(other.audio.transcriptions.create(**asked) for _ in range(6)))
        assert [one.text for one in answers] == [text] * 6


asyncio.run(together())
print("done")
