"""Token ids to text while they come: whole characters only, and nothing behind a stop string."""

from collections.abc import Sequence
from typing import Any


class TextStream:
    """The text behind a prompt, piece by piece; joined, the pieces are the text of all tokens together.

    tokenizer: a tokenizers.Tokenizer. prompt: token ids. stops: strings at whose first occurrence the text ends, before it
    keep_special: whether special tokens stand in the text
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int], stops: Sequence[str] = (), *, keep_special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skips = not keep_special
        self._ids = list(prompt)
        # What a token looks like hangs on those before it: decoding starts a few tokens back, at `_from`.
        self._from = self._start()
        self._given = len(self._decode())
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def feed(self, ids: Sequence[int]) -> str:
        """The new text that is certain by now. After a stop string, `stopped`, and nothing more."""
        if self.stopped:
            return ""
        self._ids += ids
        text = self._decode()
        certain = len(text.rstrip("\ufffd"))  # half a character: the rest comes with the next token
        new = text[self._given : certain]
        self._given = max(self._given, certain)
        if certain == len(text) and len(self._ids) - self._from > _WINDOW:
            self._from = self._start()
            self._given = len(self._decode())
        return self._until_stop(self._held + new)

    def end(self) -> str:
        """What was held back, as nothing more comes."""
        if self.stopped:
            return ""
        rest = self._held + self._decode()[self._given :]
        self._held, self._given = "", self._given + len(rest)
        return rest

    def _until_stop(self, text: str) -> str:
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _start(self) -> int:
        """A few tokens back, but not within a character: one broken byte spoils a whole run of byte tokens."""
        first = max(0, len(self._ids) - _CONTEXT)
        for start in range(first, max(-1, first - _BYTES), -1):
            if not self._tokenizer.decode(self._ids[start:], skip_special_tokens=self._skips).startswith("\ufffd"):
                return start
        return first

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids[self._from :], skip_special_tokens=self._skips))


_CONTEXT = 8  # tokens before the new ones that decide how they are spelt (leading spaces, split characters)
_BYTES = 4  # of a character at most
_WINDOW = 32  # decoded anew at each step, so that a long text costs no more a token than a short one


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that a stop string could begin with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
