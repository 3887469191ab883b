"""Sound files (wav, flac, mp3, ogg) as samples: float32, one channel, at the model's rate.

A file is read in blocks, each resampled as it comes: what a request costs is bounded by the seconds that are allowed, not
by what its header says or its bytes unfold to. An hour of silence fits into 200 kB of flac.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handlers.errors import BadRequest
from handlers.inputs.media.file_bytes import file_bytes
from handlers.requirements import require, required

FORMATS = "wav, flac, mp3 or ogg (Vorbis, Opus)"
# Samples a second of a file: beyond them a header is no sound's, and resampling costs without bound.
RATES = (1_000, 192_000)
MAX_CHANNELS = 8
# Of what a header declares, how much has to be there. Encoders of mp3 and ogg round; a file that was cut off has far less.
DECLARED_SHARE = 0.95

_BLOCK = 1 << 18  # numbers read at a time, over all channels
_UNKNOWN = 0xFFFFFFFF  # a wav that was written into a pipe declares this length, since the writer could not go back


@dataclass(frozen=True)
class Recording:
    """One input: the file's bytes, and its place in the request, for messages. `AudioReader.read` makes samples of it."""

    body: bytes
    where: str = "the body"

    def to_text(self) -> str:
        """Its bytes in base64, as a request in JSON sends them."""
        return base64.b64encode(self.body).decode("ascii")


def recording_of(value: Any, where: str) -> Recording:
    """One recording of a request.

    Args:
        value: the file's bytes, or a text: the same in base64, bare or as a data: URL. where: its place in the request.
    Returns: the recording, not decoded yet.
    Raises: BadRequest for another kind of value, an empty one, and what is no base64.
    """
    return Recording(file_bytes(value, where, what=f"a sound file ({FORMATS})", media="audio/wav"), where)


class AudioReader:
    """Sound files to samples, by soundfile (libsndfile) and soxr.

    Args:
        rate: samples a second of the result. max_seconds: the longest recording that is read.
        soundfile, soxr: what is needed of them, as in requirements.txt.
    Raises: UnsoundArchive where the host lacks one of them.
    """

    def __init__(self, rate: int, max_seconds: float, *, soundfile: str = "soundfile", soxr: str = "soxr") -> None:
        self.rate = rate
        self.max_seconds = max_seconds
        self._soundfile: Any = require("soundfile", soundfile)
        self._soxr: Any = require("soxr", soxr)

        class Forward(self._soundfile.SoundFile):  # type: ignore[misc, name-defined]
            """Read from the beginning to the end: no seek after each block, which fails where a header lies."""

            def seekable(self) -> bool:
                return False

        self._forward = Forward

    @classmethod
    def open(cls, folder: Path, rate: int, max_seconds: float) -> "AudioReader":
        """The reader of an extracted archive, with the versions that its requirements.txt names."""
        return cls(
            rate, max_seconds, soundfile=required(folder, "soundfile"), soxr=required(folder, "soxr")
        )  # fmt: skip

    def read(self, recording: Recording, max_seconds: float | None = None) -> np.ndarray:
        """The samples of a recording.

        Args:
            recording: the file. max_seconds: what is left of what a request may hold; the reader's own where it is None.
        Returns: [samples] float32, at least one, the mean of the channels; a file of integers lies in -1 … 1.
        Raises: BadRequest saying what is wrong with the file, with the numbers found and allowed.
        """
        where, most = recording.where, self.max_seconds if max_seconds is None else max_seconds
        _check_kind(recording.body, where)
        try:
            with self._forward(io.BytesIO(recording.body)) as file:
                return self._samples(file, where, most)
        except self._soundfile.LibsndfileError as error:
            reason = error.error_string.strip().rstrip(".") or "its data are damaged"
            raise BadRequest(f"{where} cannot be read as a sound file: {reason}; allowed: {FORMATS}") from error

    def _samples(self, file: Any, where: str, most: float) -> np.ndarray:
        rate, channels, declared = file.samplerate, file.channels, file.frames
        if not RATES[0] <= rate <= RATES[1]:
            raise BadRequest(f"{where} has {rate} samples a second; {RATES[0]} to {RATES[1]} are allowed")
        if channels > MAX_CHANNELS:
            raise BadRequest(f"{where} has {channels} channels; at most {MAX_CHANNELS} are allowed")
        known = declared < 1 << 62  # libsndfile's largest number stands for a flac that does not say it
        if known and declared > most * rate:
            raise BadRequest(f"{where} holds {declared / rate:.1f} seconds of sound; {_at_most(most)}")
        block = np.empty((max(1, _BLOCK // channels), channels), np.float32)
        resample = self._soxr.ResampleStream(rate, self.rate, 1, dtype="float32") if rate != self.rate else None
        parts, frames = [], 0
        while count := len(file.read(out=block)):
            frames += count
            if frames > most * rate:
                raise BadRequest(f"{where} holds more than {most:g} seconds of sound; {_at_most(most)}")
            mono = block[:count].mean(axis=1)
            if not np.isfinite(mono).all():
                raise BadRequest(f"{where} has samples that are no finite numbers")
            parts.append(mono if resample is None else resample.resample_chunk(mono))
        if known and frames < DECLARED_SHARE * declared:
            raise BadRequest(
                f"{where} is damaged or cut off: its header declares {declared} samples a channel, {frames} can be read"
            )
        if resample is not None:
            parts.append(resample.resample_chunk(np.empty(0, np.float32), last=True))
        samples = np.concatenate(parts) if parts else np.empty(0, np.float32)
        if not samples.size:
            raise BadRequest(f"{where} holds no samples; a recording with sound is expected")
        return samples


def _at_most(seconds: float) -> str:
    return f"at most {seconds:g} are allowed"


def _check_kind(body: bytes, where: str) -> None:
    """BadRequest unless the file begins as one of FORMATS does, and for a wav that is shorter than its header says.

    libsndfile would try two dozen other formats, and takes of a wav that was cut off what is there.
    """
    is_wav = body[:4] == b"RIFF" and body[8:12] == b"WAVE"
    is_mp3 = body[:3] == b"ID3" or (len(body) > 1 and body[0] == 0xFF and body[1] & 0xE0 == 0xE0)
    if not (is_wav or is_mp3 or body[:4] in (b"fLaC", b"OggS")):
        raise BadRequest(f"{where} is no sound file that can be read: it begins with {body[:8]!r}; allowed: {FORMATS}")
    if not is_wav:
        return
    place = 12
    while place + 8 <= len(body):
        size = int.from_bytes(body[place + 4 : place + 8], "little")
        if body[place : place + 4] == b"data":
            there = len(body) - place - 8
            piped = size == _UNKNOWN and int.from_bytes(body[4:8], "little") == _UNKNOWN
            if there < DECLARED_SHARE * size and not piped:
                raise BadRequest(
                    f"{where} is damaged or cut off: its header declares {size} bytes of samples, {there} are there"
                )
            return
        place += 8 + size + size % 2
    raise BadRequest(f"{where} is a wav of {len(body)} bytes without samples: it has no 'data' chunk")
