"""automatic-speech-recognition by a CTC model: {"text": …} per recording, with times of words or characters when asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np

from handlers.base import Found
from handlers.errors import BadRequest
from handlers.inputs.checks import Parameter, is_bool
from handlers.inputs.media.audio import Sound
from handlers.inputs.media.audio_file import Recording
from handlers.inputs.media.voice import VoiceDetector
from handlers.protocols.forms import path_of
from handlers.protocols.openai import transcription
from handlers.protocols.openai.transcription import DETAILS, TRANSCRIPTIONS, TRANSLATIONS, Abilities
from handlers.protocols.request import Parse
from handlers.tasks.speech.audio import AudioHandler
from handlers.tasks.speech.ctc import Alphabet, Piece, Spoken, frames_of, joined, pieces

_COMPARED = 32  # frames of a stored example whose scores are kept


@dataclass(frozen=True, eq=False)
class Heard(Sound):
    """A piece of a recording that is run by itself. place: where it lies in it. whole: the recording's samples."""

    place: Piece
    whole: int


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e6


class CtcHandler(AudioHandler):
    """The session's output for a piece is [frames, vocabulary] float32: logits.

    A recording longer than `chunk_length_s` is cut into pieces that overlap by `stride_length_s` on each side; what is
    heard twice is taken from the piece that has it further from its edge.
    """

    parameters: ClassVar[dict[str, Parameter]] = {
        "return_timestamps": Parameter(
            lambda value: value is False or value in ("word", "char"), '"word", "char" or false'
        ),
        "chunk_length_s": Parameter(
            lambda value: _is_seconds(value) and value >= 1, "seconds from 1, at most what the archive was made for"
        ),
        "stride_length_s": Parameter(
            lambda value: (
                _is_seconds(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_seconds, value)))
            ),
            "seconds, or [left, right]; by default a sixth of chunk_length_s",
        ),
        "skip_silence": Parameter(is_bool, "true or false"),
    }

    paths: ClassVar[Mapping[str, Parse]] = {
        path: partial(transcription.parse, can=Abilities(words=True), path=path)
        for path in (TRANSCRIPTIONS, TRANSLATIONS)
    }

    @cached_property
    def alphabet(self) -> Alphabet:
        """The model's tokens."""
        return Alphabet.of(self.serving["alphabet"])

    @cached_property
    def ratio(self) -> int:
        """Samples a frame."""
        return int(np.prod([stride for _, stride in self.serving["convolutions"]]))

    @property
    def full_parameters(self) -> dict[str, Any]:
        """With the scores of some frames, by which answers are compared: texts jump where two tokens are as likely."""
        return {"return_timestamps": "char", "scores": True}

    def read(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> Any:
        if path_of(headers):
            return transcription.fields(row, headers, self.input.max_bytes)
        return super().read(row, headers)

    def prepare(self, values: Sequence[Recording], parameters: Mapping[str, Any]) -> list[Sequence[Any]]:
        chunk, left, right = self._cuts(parameters)
        shortest = self.input.features.min_samples
        voice = self._voice(parameters)
        prepared: list[Sequence[Any]] = []
        for sound in self.input.encode(values, parameters):
            samples = sound.samples
            spans = [(0, len(samples))] if voice is None else voice.spans(samples)
            places = [
                piece.moved(start // self.ratio * self.ratio)
                for start, end in spans
                for piece in pieces(end - start // self.ratio * self.ratio, chunk, left, right, shortest)
            ]
            # Where nobody speaks, the shortest run that there is, of which nothing is kept.
            places = places or [Piece(0, shortest, shortest, 0)]
            prepared.append([Heard(samples[place.start : place.end], place, len(samples)) for place in places])
        return prepared

    def answers(self, found: Sequence[Found[Recording]], parameters: Mapping[str, Any]) -> list[Any]:
        answers = []
        for one in found:
            answer = self._transcript(self.logits_of(one, parameters), parameters)
            if DETAILS in parameters:
                answer |= {"duration": one.items[0].whole / self.input.features.rate, "language": "unknown"}
            answers.append(answer)
        return answers

    def logits_of(self, found: Found[Recording], parameters: Mapping[str, Any]) -> np.ndarray:
        """[frames, vocabulary] of a whole recording, its pieces joined.

        Raises: ArithmeticError when the outputs are no numbers.
        """
        parts, starts = [], []
        for item, output in zip(found.items, found.outputs, strict=True):
            logits = output[: frames_of(len(item.samples), self.serving["convolutions"])]
            if not np.isfinite(logits).all():
                raise ArithmeticError("the model's answer is not finite")
            parts.append(item.place.kept(logits, self.ratio))
            starts.append((item.place.start + item.place.left) // self.ratio)
        if self._voice(parameters) is None:
            return np.concatenate(parts)
        tokens, delimiter = self.alphabet.tokens, self.alphabet.delimiter
        between = tokens.index(delimiter) if delimiter in tokens else None
        return joined(list(zip(starts, parts, strict=True)), tokens.index(self.alphabet.blank), between)

    def compare(self, stored: Any, found: Any) -> float:
        """By the scores of the frames that `full_parameters` asks for."""
        try:
            before, after = (np.asarray(answer["scores"], np.float64) for answer in (stored, found))
        except (KeyError, TypeError, ValueError):
            return float("inf")
        if before.shape != after.shape:
            return float("inf")
        return float(np.abs(before - after).max() / (np.abs(before).max() or 1.0))

    def _transcript(self, logits: np.ndarray, parameters: Mapping[str, Any]) -> dict[str, Any]:
        spoken = self.alphabet.spoken(logits.argmax(axis=1))
        answer: dict[str, Any] = {"text": self.alphabet.text(spoken)}
        times = parameters.get("return_timestamps", False)
        if times:
            members = self.alphabet.words(spoken) if times == "word" else spoken
            answer["chunks"] = [{"text": item.text, "timestamp": self._seconds(item)} for item in members]
        if parameters.get("scores"):
            places = np.linspace(0, len(logits) - 1, min(_COMPARED, len(logits))).astype(int)
            answer["scores"] = np.round(logits[places].astype(np.float64), 4).tolist()
        return answer

    def _voice(self, parameters: Mapping[str, Any]) -> VoiceDetector | None:
        """What finds speech, where silence is to be skipped: unless the request says otherwise, as the archive says."""
        voice = self.input.voice
        if voice is None and parameters.get("skip_silence"):
            raise BadRequest("parameter 'skip_silence' is true, and this archive was made without: allowed: false")
        return voice if parameters.get("skip_silence", True) else None

    def _seconds(self, item: Spoken) -> list[float]:
        return [frame * self.ratio / self.input.features.rate for frame in (item.start, item.end)]

    def _cuts(self, parameters: Mapping[str, Any]) -> tuple[int, int, int]:
        """(most samples of a piece, overlap at the left, at the right), whole frames each."""
        most = self.serving["chunk_seconds"]
        chunk = parameters.get("chunk_length_s", most)
        if chunk > most:
            raise BadRequest(f"parameter 'chunk_length_s' is {chunk:g}; at most {most:g} seconds are allowed")
        stride = parameters.get("stride_length_s", chunk / 6)
        sides = stride if isinstance(stride, list) else [stride, stride]
        size, left, right = (
            round(seconds * self.input.features.rate / self.ratio) * self.ratio for seconds in (chunk, *sides)
        )
        if left + right >= size or size < self.input.features.min_samples:
            raise BadRequest(
                f"parameter 'stride_length_s' is {sides[0]:g} + {sides[1]:g} seconds; less than the {chunk:g} of a piece "
                "are allowed"
            )
        return size, left, right
