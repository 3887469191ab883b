"""Texts, and contexts with a question, as overlapping windows of tokens that know their characters.

A text that is longer than the model can read is cut into windows of `length` tokens, each with the special tokens (and the
question) around its part. Neighbours overlap, so that each token is seen with words on both sides of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handlers.errors import BadRequest
from handlers.inputs.text import Encoded


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
    """

    offsets: list[tuple[int, int]]
    words: list[int | None]
    text: range
    own: range
    first: int


def cut(
    encoding: Any, *, pair: bool, length: int, overlap: int | None = None, default: int, most: int, where: str
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
    rows = (encoding.ids, encoding.type_ids, encoding.offsets, encoding.word_ids)
    head = [row[: inside.start] for row in rows]
    tail = [row[inside.stop :] for row in rows]
    found = []
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        ids, type_ids, offsets, words = (
            [*head[k], *row[inside.start + start : inside.start + stop], *tail[k]] for k, row in enumerate(rows)
        )
        own = range(before + borders[index] - start, before + borders[index + 1] - start)
        found.append(Window(ids, type_ids, offsets, words, range(before, before + stop - start), own, start))
    return found


def _places(sequence_ids: Sequence[int | None], wanted: int) -> range:
    """Where the tokens of one sequence stand; an empty range before the closing special tokens where it has none."""
    places = [place for place, sequence in enumerate(sequence_ids) if sequence == wanted]
    if places:
        return range(places[0], places[-1] + 1)
    # A text of characters that the tokenizer drops. What stands around it is counted alike on either side.
    known = [place for place, sequence in enumerate(sequence_ids) if sequence is not None]
    place = known[-1] + 1 if known else min(1, len(sequence_ids))
    return range(place, place)
