"""Many texts on one model with a paged cache: continuous batching, prefix caching, guesses, prompts read in pieces.

A step is one pass of the model: over the last token of every running text, the tokens that are guessed to follow it, and
pieces of prompts.
"""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from handlers.generation.backend import FAILED, LENGTH, PROMPT_TOKENS_A_STEP, STOP, Load, Sampling, Step, Top
from handlers.generation.paged.guesses import Guesser, Hope
from handlers.generation.paged.pace import Pace
from handlers.generation.paged.pages import LEAST_READ, PagedModel, Pages, Piece
from handlers.generation.sampling import check, choose, is_plain, most_likely
from handlers.protocols.continuation import Matcher

logger = logging.getLogger(__name__)

_SCORED = 128  # tokens whose logits are in memory at once


@dataclass(eq=False)
class _Text:
    """One text.

    ids: its prompt, `prompt` tokens, and what was written. cached: how many of them have keys and values, in `blocks`.
    named: blocks that others may find. guessed: what is being tried behind `ids`. matcher: of what it has to match, None
    where it is free. adapter: its LoRA adapter's number.
    """

    key: int
    ids: list[int]
    sampling: Sampling
    generator: np.random.Generator
    prompt: int
    adapter: int = 0
    cached: int = 0
    named: int = 0
    blocks: list[int] = field(default_factory=list)
    guessed: list[int] = field(default_factory=list)
    hope: Hope = field(default_factory=Hope)
    matcher: Matcher | None = None

    @property
    def left(self) -> int:
        """Tokens without keys and values: one where it is written, more where it is read."""
        return len(self.ids) - self.cached

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return self.sampling.max_new_tokens - (len(self.ids) - self.prompt)


class PagedBatch:
    """A `handlers.generation.backend.Stepping` that prompts join by `add`.

    Args:
        model: what computes. blocks, size: of its cache, and tokens of one. end_ids: tokens that end a text.
        max_running: texts that are written at once. guesser: where guesses come from. guesses: at most so many at once of a
            text, while guess_up_to texts are written.
    """

    constrains = True

    def __init__(
        self,
        model: PagedModel,
        blocks: int,
        size: int,
        end_ids: Collection[int],
        *,
        max_running: int,
        guesser: Guesser | None = None,
        guesses: int = 0,
        guess_up_to: int = 0,
    ) -> None:
        self._model = model
        self._size = size
        self._end_ids = frozenset(end_ids)
        self._max_running = max_running
        self._guesser, self._guesses, self._guess_up_to = guesser, guesses, guess_up_to
        self._pages = Pages(blocks, size)
        self._pace = Pace(PROMPT_TOKENS_A_STEP)
        self._waiting: list[_Text] = []
        self._running: list[_Text] = []  # the one that is there for longest first

    def add(self, key: int, ids: Sequence[int], sampling: Sampling, adapter: int = 0) -> None:
        """See `Backend`."""
        check(sampling)
        if not ids:
            raise ValueError("the prompt has no tokens; at least one is needed")
        if len(ids) + sampling.max_new_tokens > self._pages.count * self._size:
            raise ValueError(
                f"a prompt of {len(ids)} tokens and {sampling.max_new_tokens} new ones do not fit into a cache of "
                f"{self._pages.count * self._size}"
            )
        ids = [int(one) for one in ids]
        text = _Text(key, ids, sampling, np.random.default_rng(sampling.seed), len(ids), adapter)
        text.matcher = None if sampling.constraint is None else sampling.constraint.begin()
        self._waiting.append(text)

    def step(self) -> list[Step]:
        """See `Stepping`."""
        self._admit()
        started = time.perf_counter()
        writing = [text for text in self._running if text.left == 1]
        self._guess(writing)
        pieces = self._written(writing)
        pieces += self._read(alone=not pieces)
        if not pieces:
            return []
        logits = self._model.run([piece for _, piece in pieces])
        likeliest = logits.argmax(-1).tolist()
        rows = sum(text.left == 1 for text, _ in pieces)
        guessed = sum(len(text.guessed) for text, _ in pieces)
        read = sum(len(piece.ids) for _, piece in pieces) - rows - guessed
        self._pace.took(rows, guessed, read, time.perf_counter() - started)
        steps, row = [], 0
        for text, piece in pieces:
            mine = slice(row, row := row + piece.asked)
            step = self._advance(text, piece, logits[mine], likeliest[mine])
            if step is None:
                continue
            steps.append(step)
            if step.finish is not None:
                self._leave(text)
        return steps

    def cancel(self, key: int) -> None:
        """See `Stepping`."""
        self._waiting = [text for text in self._waiting if text.key != key]
        for text in [text for text in self._running if text.key == key]:
            self._leave(text)

    def load(self) -> Load:
        """See `Stepping`."""
        return Load(len(self._running), len(self._waiting), 1 - self._pages.free / self._pages.count)

    def log_likelihoods(self, ids: Sequence[int], adapter: int = 0) -> list[float]:
        """ln p of every token of `ids` behind its first, given those before it, by the very kernels that serve."""
        blocks = self._pages.take(-(-len(ids) // self._size))
        found: list[float] = []
        for start in range(0, len(ids), _SCORED):
            part, following = ids[start : start + _SCORED], np.array(ids[start + 1 : start + 1 + _SCORED], np.int64)
            piece = Piece(part, start, blocks, len(part), adapter=adapter)
            logits = self._model.run([piece])[: len(following)]
            highest = logits.max(-1, initial=-np.inf)
            sums = np.exp(logits - highest[:, None]).sum(-1, dtype=np.float64)
            found += (logits[np.arange(len(following)), following] - highest - np.log(sums)).tolist()
        self._pages.give_back(blocks)
        return found

    # ---- who is in a step ---------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let those join for whom there is room beside the next block of all others."""
        while self._waiting and len(self._running) < self._max_running:
            text = self._waiting[0]
            wanted = sum(max(0, len(one.ids) // self._size + 1 - len(one.blocks)) for one in [*self._running, text])
            if self._running and wanted > self._pages.free:
                break
            self._running.append(self._waiting.pop(0))
            text.blocks = self._pages.beginning(text.ids, text.adapter)
            text.named = len(text.blocks)
            text.cached = text.named * self._size

    def _guess(self, writing: Sequence[_Text]) -> None:
        """Set what is tried behind each text that is written; nothing where many are, or where it does not pay."""
        price = self._pace.price(len(writing)) if len(writing) <= self._guess_up_to else None
        for text in writing:
            text.guessed = []
        if self._guesser is None or price is None:
            return
        counts = {text.key: text.hope.count(min(self._guesses, text.room - 1), price) for text in writing}
        texts = {text.key: text for text in writing if counts[text.key]}
        for key, guessed in self._guesser.guess({key: text.ids for key, text in texts.items()}, counts).items():
            texts[key].guessed = guessed

    def _written(self, writing: Sequence[_Text]) -> list[tuple[_Text, Piece]]:
        """The last token of each text that is written, with the guesses behind it."""
        pieces = []
        for text in writing:
            if text not in self._running:  # it had to make room
                continue
            if not self._make_room(text, len(text.ids) + len(text.guessed)):
                text.guessed = []
                if not self._make_room(text, len(text.ids), push=True):
                    continue
            ids = [text.ids[-1], *text.guessed]
            piece = Piece(ids, text.cached, text.blocks, asked=len(ids), apart=True, adapter=text.adapter)
            pieces.append((text, piece))
        return pieces

    def _read(self, *, alone: bool) -> list[tuple[_Text, Piece]]:
        """Pieces of prompts, the longest waiting first. alone: nothing else is done in this step."""
        reading = [text for text in self._running if text.left > 1]
        fresh = min(len(self._waiting), self._max_running - len(self._running))
        left = self._pace.piece(len(self._running) - len(reading), len(reading) + fresh)
        pieces: list[tuple[_Text, Piece]] = []
        for text in reading:
            count = min(left, text.left)
            if 0 < text.left - count < LEAST_READ:
                count -= LEAST_READ - 1
            if count < LEAST_READ or not self._make_room(text, text.cached + count, push=alone and not pieces):
                break
            part = text.ids[text.cached : text.cached + count]
            pieces.append((text, Piece(part, text.cached, text.blocks, adapter=text.adapter)))
            left -= count
        return pieces

    def _make_room(self, text: _Text, length: int, *, push: bool = False) -> bool:
        """Blocks for so many tokens. push: those that joined last make room, and are read anew later."""
        missing = -(-length // self._size) - len(text.blocks)
        while push and missing > self._pages.free and len(self._running) > 1:
            last = self._running.pop()
            self._pages.give_back(last.blocks)
            last.blocks, last.cached, last.named, last.guessed = [], 0, 0, []
            self._waiting.insert(0, last)
            if last is text:
                return False
        if missing > self._pages.free:
            return False
        text.blocks += self._pages.take(max(0, missing))
        return True

    def _leave(self, text: _Text) -> None:
        self._running.remove(text)
        self._pages.give_back(text.blocks)
        if self._guesser is not None:
            self._guesser.forget(text.key)

    # ---- what it got --------------------------------------------------------------------------------------------------

    def _advance(self, text: _Text, piece: Piece, logits: np.ndarray, likeliest: Sequence[int]) -> Step | None:
        """The tokens that a piece's logits [asked, vocabulary] give; None where the prompt is not read to its end."""
        ids: list[int] = []
        logprobs: list[float] = []
        tops: list[Top] = []
        finish, guessed = None, text.guessed
        text.cached = piece.start + len(piece.ids) - len(guessed)
        if not text.left:
            for row in range(len(guessed) + 1):
                token, logprob, finish = self._choose(text, logits[row], likeliest[row])
                if finish in (STOP, FAILED):
                    break
                ids.append(token)
                logprobs += [logprob] if text.sampling.logprobs else []
                if text.sampling.top_logprobs:
                    tops.append(most_likely(logits[row], text.sampling.top_logprobs))
                text.ids.append(token)
                if text.matcher is not None and text.matcher.complete:
                    finish = STOP
                if finish is not None or row == len(guessed) or token != guessed[row]:
                    break
            right = sum(a == b for a, b in zip(ids, guessed, strict=False))
            text.hope.told(len(guessed), right)
            text.cached += min(right, text.left - 1)
        for place in range(text.named, text.cached // self._size):
            content = text.ids[place * self._size : (place + 1) * self._size]
            self._pages.name(text.blocks, place, content, text.adapter)
            text.named = place + 1
        error = text.matcher.error if finish == FAILED and text.matcher is not None else None
        return Step(text.key, ids, logprobs, finish, tops, error) if ids or finish is not None else None

    def _choose(self, text: _Text, logits: np.ndarray, likeliest: int) -> tuple[int, float, str | None]:
        """(the next token, its log-probability if asked for, why the text ends with it; for STOP and FAILED, before it)"""
        token, logprob = likeliest, 0.0
        try:
            if not np.isfinite(logits[likeliest]):  # where one is no number, that one is «the likeliest»
                raise ArithmeticError("the model's logits are not finite")
            if text.matcher is not None or not is_plain(text.sampling):
                prompt, found = text.ids[: text.prompt], text.ids[text.prompt :]
                token, logprob = (
                    choose(logits, prompt, found, text.sampling, text.generator)
                    if text.matcher is None
                    else text.matcher.choose(logits, likeliest, prompt, found, text.sampling, text.generator)
                )
        except Exception:  # the others of the batch go on
            logger.exception("a prompt failed behind %d tokens", len(text.ids))
            return token, logprob, FAILED
        if token in self._end_ids:
            return token, logprob, STOP
        return token, logprob, LENGTH if text.room == 1 else None
