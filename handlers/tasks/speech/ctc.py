"""From a CTC model's scores for each frame to text: the best token of each frame, repeats joined, blanks left out.

The same text and times as transformers' automatic-speech-recognition pipeline gives for a CTC model without a language
model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

# What transformers' clean_up_tokenization does where a tokenizer asks for it.
_CLEAN = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


@dataclass(frozen=True)
class Spoken:
    """A token of a transcript: its text, and the frames from `start` up to `end` that say it."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Alphabet:
    """The tokens of a CTC model.

    Args:
        tokens: by id. blank: the token that stands for none. delimiter: the one between words, None where there is none.
        space: what is written for the delimiter. lower: the text is written in lower case. clean: blanks before
            punctuation are left out.
    """

    tokens: tuple[str, ...]
    blank: str
    delimiter: str | None = "|"
    space: str = " "
    lower: bool = False
    clean: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Alphabet":
        """The alphabet that serving.json holds as an object of these fields."""
        return cls(**{**settings, "tokens": tuple(settings["tokens"])})

    def spoken(self, ids: Sequence[int] | np.ndarray) -> list[Spoken]:
        """The tokens that frames say.

        Args:
            ids: [frames] the best token of each frame.
        Returns: the tokens, in order.
        """
        found, place = [], 0
        for token, frames in groupby(self.tokens[i] for i in ids):
            end = place + sum(1 for _ in frames)
            if token != self.blank:
                found.append(Spoken(self.space if token == self.delimiter else token, place, end))
            place = end
        return found

    def text(self, spoken: Sequence[Spoken]) -> str:
        """The transcript."""
        text = "".join(item.text for item in spoken).strip()
        text = text.lower() if self.lower else text
        for before, after in _CLEAN if self.clean else ():
            text = text.replace(before, after)
        return text

    def words(self, spoken: Sequence[Spoken]) -> list[Spoken]:
        """Tokens joined to words, from the first frame of the first to the last frame of the last."""
        found = []
        for is_space, members in groupby(spoken, key=lambda item: item.text == self.space):
            if not is_space:
                word = list(members)
                found.append(Spoken("".join(item.text for item in word), word[0].start, word[-1].end))
        return found

    def ids_of(self, text: str) -> list[int | None]:
        """A transcript as token ids, longest token first; None for a character that no token stands for."""
        known = {token: place for place, token in enumerate(self.tokens)}
        written = text.replace(" ", self.delimiter or " ")
        longest = max(map(len, self.tokens))
        found: list[int | None] = []
        place = 0
        while place < len(written):
            size = next((n for n in range(longest, 0, -1) if written[place : place + n] in known), 0)
            found.append(known[written[place : place + size]] if size else None)
            place += size or 1
        return found


@dataclass(frozen=True)
class Piece:
    """Samples from `start` up to `end` of a recording; of their frames, `left` at the start and `right` at the end (in
    samples) belong to the neighbours, and are there to be heard only."""

    start: int
    end: int
    left: int
    right: int

    def moved(self, samples: int) -> "Piece":
        """The same piece of a part that begins so many samples later."""
        return Piece(self.start + samples, self.end + samples, self.left, self.right)

    def kept(self, frames: np.ndarray, ratio: int) -> np.ndarray:
        """The piece's own frames.

        Args:
            frames: [frames, …] of the piece, without padding. ratio: samples a frame.
        """
        size = self.end - self.start
        count = round(size / ratio)
        first = round(self.left / size * count)
        return frames[first : count - round(self.right / size * count)]


def joined(parts: Sequence[tuple[int, np.ndarray]], blank: int, delimiter: int | None) -> np.ndarray:
    """The frames of a recording of which only some parts were run: nothing is said between them, and words end there.

    Args:
        parts: (first frame, scores [frames, vocabulary]) of each, in order. blank, delimiter: tokens by id.
    Returns: [frames, vocabulary] from the beginning to the last part's end.
    """
    width = parts[0][1].shape[1]
    silent = np.zeros((max(start + len(part) for start, part in parts), width), np.float32)
    silent[:, blank] = 1.0
    before = delimiter
    end = 0
    for start, part in parts:
        said = [token for token in part.argmax(axis=1) if token != blank]
        if delimiter is not None and said and start > end and before != delimiter != said[0]:
            silent[(start + end) // 2, [blank, delimiter]] = 0.0, 1.0
        silent[start : start + len(part)] = part
        before, end = (said[-1] if said else before), start + len(part)
    return silent


def pieces(samples: int, chunk: int, left: int, right: int, shortest: int = 1) -> Iterator[Piece]:
    """A long recording in pieces that overlap.

    Args:
        samples: of the recording. chunk: most samples of a piece; the last one may be up to `shortest` longer.
        left, right: what a piece overlaps its neighbours by, left + right < chunk. shortest: least samples of a piece.
    Returns: pieces in order; their own parts cover the recording without overlap.
    Source: chunk_iter of transformers' automatic-speech-recognition pipeline.
    """
    start = 0
    while True:
        end = start + chunk
        last = end >= samples or samples - end + left + right < shortest
        yield Piece(start, samples if last else end, left if start else 0, 0 if last else right)
        if last:
            return
        start += chunk - left - right


def frames_of(samples: int, convolutions: Sequence[Sequence[int]]) -> int:
    """How many frames a stack of convolutions makes of samples.

    Args:
        convolutions: (kernel, stride) of each.
    """
    for kernel, stride in convolutions:
        samples = (samples - kernel) // stride + 1
    return samples
