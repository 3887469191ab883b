"""What answers tell of a transcript: its chunks, its segments in detail, and its text while it is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from handlers.generation.engine import Job
from handlers.protocols.openai.transcription import Transcribed
from handlers.tasks.speech.transcript import Chunk, Segment, Transcript


@dataclass
class Pieces:
    """A growing text, piece by piece: joined they are the text without the blanks around it. said: characters so far."""

    said: int = 0

    def new(self, text: str) -> str:
        """What has not been said of the text up to now; blanks at its end wait for what follows."""
        found = text.strip()[self.said :]
        self.said += len(found)
        return found


class Telling:
    """The pieces of a stream. heard: what is certain of a recording's text while a job is written."""

    def __init__(self, work: Transcript, form: Transcribed, heard: Callable[[Transcript, Job], str]) -> None:
        self._work, self._form, self._heard = work, form, heard
        self._pieces = Pieces()

    def __call__(self, job: Job) -> bytes:
        """In the engine's thread: the event of what is new."""
        return self._event(self._heard(self._work, job))

    def ending(self) -> bytes:
        """The last events, when all is heard."""
        return self._event(self._work.text) + self._form.done(self._work.text)

    def _event(self, text: str) -> bytes:
        new = self._pieces.new(text)
        return self._form.delta(new) if new else b""


def presented(chunk: Chunk) -> dict[str, Any]:
    """A chunk as Hugging Face's answers have it."""
    return {"text": chunk.text, "timestamp": [round(chunk.start, 2), round(chunk.end, 2)]}


def detailed(segment: Segment) -> dict[str, Any]:
    """A segment as OpenAI's verbose transcriptions tell it; seek: in frames of 10 ms."""
    found = presented(segment.chunk) | {"tokens": list(segment.tokens), "seek": round(segment.begin * 100)}
    if segment.logprobs:
        found["avg_logprob"] = float(np.mean(segment.logprobs))
    if segment.no_speech is not None:
        found["no_speech_prob"] = segment.no_speech
    return found
