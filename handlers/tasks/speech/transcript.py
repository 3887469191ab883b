"""A recording's transcript, window after window: which part is heard next, and what the tokens of one window say.

Source: the long-form transcription of Radford et al. 2022, arXiv:2212.04356, section 3.8, as transformers does it: a window
begins where the last complete segment of the one before ended.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from handlers.tasks.speech.alignment import token_times

FRAME = 0.02  # seconds of one step of time tokens, and of one position of the encoder
_LEAST = 0.04  # seconds: what is left behind the last segment and is shorter is no window
_BEFORE, _BEHIND = "\"'“¡¿([{-", "\"'.。,，!！?？:：”)]}、"
_SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_NO_SPACES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


@dataclass(frozen=True)
class Chunk:
    """A part of a transcript. start, end: seconds in the recording."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Window:
    """What the model thought of a window beside its tokens.

    attention: [heads, tokens, length], for words. logprobs: one a token. no_speech: the probability that nobody speaks.
    """

    attention: np.ndarray | None = None
    logprobs: Sequence[float] = ()
    no_speech: float | None = None


@dataclass(frozen=True)
class Segment:
    """A chunk with what it was made of: its window's begin in seconds, and its tokens, those of times among them."""

    chunk: Chunk
    begin: float
    tokens: Sequence[int]
    logprobs: Sequence[float]
    no_speech: float | None


@dataclass
class Transcript:
    """One recording on its way.

    Args:
        samples: [samples] float32. rate: of them. span: samples of a window at most.
        first_time: the token of 0.00 s; greater ones are times, smaller than `special` is text.
        decode: token ids to text. times: whether windows write times. words: whether times are those of words.
        language: for where words end; None until it is found out.
    chunks: segments, or words. segments: these in either case.
    """

    samples: np.ndarray
    rate: int
    span: int
    first_time: int
    special: int
    decode: Callable[[Sequence[int]], str]
    times: bool
    words: bool = False
    language: str | None = None
    chunks: list[Chunk] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    at: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to hear."""
        return self.at > 0 and len(self.samples) - self.at < max(1, _LEAST * self.rate)

    @property
    def window(self) -> np.ndarray:
        """The samples to hear next."""
        return self.samples[self.at : self.at + self.span]

    @property
    def text(self) -> str:
        """All of it; one blank before it, as models write it, is left out."""
        return "".join(chunk.text for chunk in self.chunks).strip()

    def take(self, ids: Sequence[int], more: Window | None = None) -> None:
        """The tokens of `window`: chunks are added, and `at` goes on.

        Args:
            ids: without the end token and what stands before the text.
        """
        more = more or Window()
        attention = more.attention
        heard, offset = len(self.window), self.at / self.rate
        parts, end = self._segments(ids, heard) if self.times else ([(0, len(ids), 0.0, heard / self.rate)], heard)
        when = None
        if self.words and attention is not None and len(ids):
            when = token_times(attention, int(heard / self.rate / FRAME), FRAME)
            when = np.append(
                when, [when[-1]] * (len(ids) - len(when))
            )  # a text that is cut has a token nothing followed
        for first, last, start, stop in parts:
            said = [place for place in range(first, last) if ids[place] < self.special]
            text = self.decode([ids[place] for place in said])
            chunk = Chunk(text, offset + start, offset + max(start, stop))
            if text.strip():
                self.segments.append(Segment(chunk, offset, ids[first:last], more.logprobs[first:last], more.no_speech))
            if when is not None:
                self._add_words(ids, said, when, offset, heard / self.rate)
            elif text.strip():
                self.chunks.append(chunk)
        self.at += end if end > 0 else heard

    def _segments(self, ids: Sequence[int], heard: int) -> tuple[list[tuple[int, int, float, float]], int]:
        """([(first place, behind the last, start, end in seconds)], samples that are done)."""
        is_time = [token >= self.first_time for token in ids]
        length = heard / self.rate
        seconds = [min(max(0, token - self.first_time) * FRAME, length) for token in ids]
        pairs = [place + 1 for place in range(len(ids) - 1) if is_time[place] and is_time[place + 1]]
        single = is_time[-2:] == [False, True]
        if not pairs:
            last = max((when for when, given in zip(seconds, is_time, strict=True) if given), default=0.0)
            return [(0, len(ids), 0.0, last or length)], heard
        # Behind the last complete segment the window's end cuts a sentence: it is heard again from its beginning.
        ends = [*pairs, len(ids)] if single else pairs
        parts = []
        first = 0
        for end in ends:
            parts.append((first, end, seconds[first], seconds[end - 1]))
            first = end
        return parts, heard if single else round(seconds[ends[-1] - 1] * self.rate)

    def _add_words(
        self, ids: Sequence[int], said: Sequence[int], when: np.ndarray, offset: float, length: float
    ) -> None:
        ends = [*when[1:], length]
        floor = self.chunks[-1].end if self.chunks else 0.0
        for places in self._words([ids[place] for place in said]):
            text = self.decode([ids[said[place]] for place in places])
            start = max(floor, offset + float(when[said[places[0]]]))
            floor = max(start, offset + float(ends[said[places[-1]]]))
            self.chunks.append(Chunk(text, start, floor))

    def _words(self, ids: Sequence[int]) -> list[list[int]]:
        """Places of the tokens of each word, punctuation with the word that it belongs to."""
        letters = self._characters(ids)
        if self.language in _NO_SPACES:
            words = letters
        else:
            words = []
            for text, places in letters:
                if not words or text.startswith(" ") or text.strip() in _SIGNS:
                    words.append((text, places))
                else:
                    words[-1] = (words[-1][0] + text, words[-1][1] + places)
        return [places for _, places in _with_punctuation(words)]

    def _characters(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """(text, places) of the fewest tokens that are whole characters."""
        whole, found, pending, offset = self.decode(ids), [], list[int](), 0
        for place in range(len(ids)):
            pending.append(place)
            text = self.decode([ids[one] for one in pending])
            broken = text.find("\ufffd")
            if broken < 0 or whole[offset + broken : offset + broken + 1] == "\ufffd":
                found.append((text, pending))
                offset += len(text)
                pending = []
        return found


def _with_punctuation(words: Sequence[tuple[str, list[int]]]) -> list[tuple[str, list[int]]]:
    """Opening signs go to the word behind them, closing ones to the word before."""
    opened: list[tuple[str, list[int]]] = []
    for text, places in reversed(words):
        if opened and text.startswith(" ") and text.strip() in _BEFORE:
            opened[-1] = (text + opened[-1][0], places + opened[-1][1])
        else:
            opened.append((text, places))
    found: list[tuple[str, list[int]]] = []
    for text, places in reversed(opened):
        if found and not found[-1][0].endswith(" ") and text in _BEHIND:
            found[-1] = (found[-1][0] + text, found[-1][1] + places)
        else:
            found.append((text, places))
    return found
