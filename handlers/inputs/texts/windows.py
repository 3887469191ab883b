"""Texts, and contexts with a question, as overlapping windows of tokens that know their characters.

A text that is longer than the model can read is cut into windows of `length` tokens, each with the special tokens (and the
question) around its part. Neighbours overlap, so that each token is seen with words on both sides of it.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from handlers.errors import BadRequest
from handlers.inputs.base import Input
from handlers.inputs.checks import Parameter, kind_of, text_of
from handlers.inputs.text import Encoded, Encoder

MAX_WINDOWS = 1024  # of one request's input


@dataclass(frozen=True)
class Window(Encoded):
    """One window: special tokens and question around a part of the text.

    offsets: [tokens] (start, end) of each token's characters, as indices of Python's str; those of the text's tokens
        count in the text as it was sent, whatever the tokenizer normalised. Byte-level tokenizers may count a leading
        space in.
    words: [tokens] the number of the word that a token belongs to, None for special tokens.
    text: places in the window of the text's tokens; all others are special or the question's.
    own: those of them that this window answers for. Each token of the text is own to exactly one window: the middle of an
        overlap parts two neighbours.
    first: the number of token `text.start` among all tokens of the text, from 0.
    null: where the token stands that a model points to where a context holds no answer, None where there is none.
    """

    offsets: list[tuple[int, int]]
    words: list[int | None]
    text: range
    own: range
    first: int
    null: int | None = None


def cut(
    encoding: Any,
    *,
    pair: bool,
    length: int,
    overlap: int | None = None,
    default: int,
    most: int = MAX_WINDOWS,
    where: str,
    null_id: int | None = None,
) -> list[Window]:
    """One encoding, cut into windows.

    The same as `enable_truncation(length, overlap)` (with "only_second" for a pair) gives, without changing the tokenizer;
    the windows are counted before they are made, so that no request makes more than `most`.

    Args:
        encoding: tokenizers' Encoding of all of the text, not truncated, special tokens included.
        pair: the text is the second of a pair and the first stands whole in each window.
        length: most tokens of a window, special tokens included.
        overlap: tokens that neighbours have in common, as a request asks for it; None for `default`, or three quarters of
            the room for the text where that is less.
        most: most windows. where: the text's place in the request, for messages.
        null_id: the id of the token that `Window.null` is to find, or None.
    Returns: at least one window.
    Raises: BadRequest when the overlap leaves no step, or there would be more than `most` windows.
    """
    inside = _places(encoding.sequence_ids, 1 if pair else 0)
    before, after = inside.start, len(encoding.ids) - inside.stop
    room = length - before - after
    if room < 1:
        raise BadRequest(f"{where} has no room: {before + after} of {length} tokens are taken by what stands around it")
    if overlap is None:
        overlap = min(default, room * 3 // 4)
    elif overlap >= room:
        raise BadRequest(
            f"windows cannot overlap by {overlap} tokens: {room} of their {length} tokens are {where}'s; ask for "
            f"{room - 1} or less"
        )
    step, tokens = room - overlap, len(inside)
    count = 1 + max(0, -(-(tokens - room) // step))
    if count > most:
        raise BadRequest(
            f"{where} has {tokens} tokens and would take {count} windows of {length} that overlap by {overlap}; at most "
            f"{most} are allowed: send it in parts"
        )
    starts = [index * step for index in range(count)]
    stops = [min(start + room, tokens) for start in starts]
    borders = [0, *((start + stop) // 2 for start, stop in zip(starts[1:], stops[:-1], strict=True)), tokens]
    null = next((place for place in range(before) if encoding.ids[place] == null_id), None)
    rows = (encoding.ids, encoding.type_ids, encoding.offsets, encoding.word_ids)
    head = [row[: inside.start] for row in rows]
    tail = [row[inside.stop :] for row in rows]
    found = []
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        ids, type_ids, offsets, words = (
            [*head[k], *row[inside.start + start : inside.start + stop], *tail[k]] for k, row in enumerate(rows)
        )
        own = range(before + borders[index] - start, before + borders[index + 1] - start)
        found.append(Window(ids, type_ids, offsets, words, range(before, before + stop - start), own, start, null))
    return found


Value = TypeVar("Value")


class Windowed(Input[Value, Window]):
    """A kind of input of which each is read as windows. Its size is the number of tokens.

    Args:
        encoder: whose `max_length` bounds a window. Its tokenizer truncates no longer.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        encoder.tokenizer.no_truncation()

    @abstractmethod
    def windows(self, values: Sequence[Value], parameters: Mapping[str, Any]) -> list[Sequence[Window]]:
        """The windows of each of [n] inputs, at least one each; BadRequest where they cannot be cut so."""

    def encode(self, values: Sequence[Value], parameters: Mapping[str, Any]) -> list[Window]:
        """The first window of each."""
        return [several[0] for several in self.windows(values, parameters)]

    def size(self, item: Window) -> int:
        return len(item.ids)

    def collate(self, items: Sequence[Window], size: int, rows: int) -> dict[str, np.ndarray]:
        return self.encoder.pad(items, size, rows)


def is_count(value: Any) -> bool:
    """Whether the value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class TextWindows(Windowed[str]):
    """Texts, each of them a text alone; neighbouring windows have a quarter of their length in common."""

    allowed: ClassVar[str] = 'allowed: {"inputs": "text"}, {"inputs": ["text", …]}, or plain text'
    parameters: ClassVar[dict[str, Parameter]] = {
        "stride": Parameter(is_count, "a whole number from 0: the tokens that neighbouring windows have in common")
    }

    def decode(self, value: Any, where: str) -> str:
        if not isinstance(value, (str, bytes)):
            raise BadRequest(f"{where} is {kind_of(value)}; a text is expected")
        return text_of(value, where)

    def windows(self, values: Sequence[str], parameters: Mapping[str, Any]) -> list[Sequence[Window]]:
        length = self.encoder.max_length
        return [
            cut(
                encoding,
                pair=False,
                length=length,
                overlap=parameters.get("stride"),
                default=length // 4,
                where=f"inputs[{index}]",
            )
            for index, encoding in enumerate(self.encoder.tokenizer.encode_batch(list(values)))
        ]

    def to_stored(self, value: str) -> Any:
        return value

    def from_stored(self, stored: Any) -> str:
        return str(stored)


def _places(sequence_ids: Sequence[int | None], wanted: int) -> range:
    """Where the tokens of one sequence stand; an empty range before the closing special tokens where it has none."""
    places = [place for place, sequence in enumerate(sequence_ids) if sequence == wanted]
    if places:
        return range(places[0], places[-1] + 1)
    # A text of characters that the tokenizer drops. What stands around it is counted alike on either side.
    known = [place for place, sequence in enumerate(sequence_ids) if sequence is not None]
    place = known[-1] + 1 if known else min(1, len(sequence_ids))
    return range(place, place)
