"""From the logits of a text's rows to the rows' next tokens: the likeliest one each time, or beam search.

A search has `rows` in its first step 1, and then as many as it has beams; it says which of its rows each goes on from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from handlers.generation.seq2seq.rules import Rules, draw, log_softmax

_NEVER = np.float32(-1e9)  # as transformers has it: a score that no sum brings back


@dataclass(frozen=True)
class Next:
    """What a step has decided.

    Args:
        told: tokens that are certain now, without the end token. logprobs: one a token, under the rules, or none.
        rows: (row of this search, its next token), what is to be run next; none when the text is done.
        ended: whether it ended by its end token, not by its length.
    """

    told: Sequence[int]
    rows: Sequence[tuple[int, int]]
    ended: bool = False
    logprobs: Sequence[float] = ()


class Search(Protocol):
    """One text that is being written."""

    rows: int

    def advance(self, logits: np.ndarray) -> Next:
        """Decide by the logits [rows, vocabulary] of what was run last."""
        ...


def search_for(rules: Rules, source: Sequence[int] = ()) -> Search:
    """The search that the rules ask for. source: the encoder's tokens, where it has some."""
    return Beams(rules, source) if rules.num_beams > 1 else Single(rules, source)


class Single:
    """One row: the likeliest token, or one drawn."""

    def __init__(self, rules: Rules, source: Sequence[int] = ()) -> None:
        self.rows = 1
        self._rules = rules
        self._source = source
        self._ids = list(rules.start)
        self._random = np.random.default_rng(rules.seed)

    def advance(self, logits: np.ndarray) -> Next:
        rules = self._rules
        scores = logits[0] if rules.plain else rules.apply(logits[0], self._ids, self._source)
        token = draw(rules, scores, self._random) if rules.do_sample else int(scores.argmax())
        if token in rules.end_ids:
            return Next((), (), ended=True)
        self._ids.append(token)
        logprobs = (float(log_softmax(scores)[token]),) if rules.logprobs else ()
        return Next((token,), () if len(self._ids) >= rules.most else ((0, token),), logprobs=logprobs)


class Beams:
    """Beam search, as transformers does it for one text of a batch.

    Source: transformers 5.5, generation/utils.py, `_beam_search`; its early-stopping heuristic is the library's own.
    """

    def __init__(self, rules: Rules, source: Sequence[int] = ()) -> None:
        self.rows = 1  # all beams begin alike: one row's logits stand for all
        self._rules = rules
        self._source = source
        count = rules.num_beams
        self._running = [list(rules.start)] * count
        self._scores = np.full(count, _NEVER, np.float32)
        self._scores[0] = 0.0
        self._finished = [(list(rules.start), _NEVER, False)] * count
        self._open = True  # whether a running beam may still become better than the finished ones

    def advance(self, logits: np.ndarray) -> Next:
        rules, count = self._rules, self._rules.num_beams
        likely = log_softmax(logits)
        if not rules.plain:
            distinct = range(len(likely))
            likely = np.stack([rules.apply(likely[row], self._running[row], self._source) for row in distinct])
        scores = (likely + self._scores[:, None]).reshape(-1)
        best = _top(scores, max(2, 1 + len(rules.end_ids)) * count)
        size = likely.shape[1]
        parents, tokens, found = best // size, best % size, scores[best]
        length = len(self._running[0]) + 1
        hits = np.isin(tokens, rules.end_ids) | (length >= rules.most)
        self._finish(parents, tokens, found, hits, length)
        running = found + hits.astype(np.float32) * _NEVER
        kept = _top(running, count)
        self._running = [[*self._running[parents[place]], int(tokens[place])] for place in kept]
        self._scores = running[kept]
        if self._done(length, bool(hits.all())):
            return self._answer()
        # In the first step there was one row, which stands for all.
        rows = [(int(parents[place]) if self.rows > 1 else 0, int(tokens[place])) for place in kept]
        self.rows = count
        return Next((), rows)

    def _finish(
        self, parents: np.ndarray, tokens: np.ndarray, found: np.ndarray, hits: np.ndarray, length: int
    ) -> None:
        """Take candidates that end here among the finished ones, the best of which are kept."""
        rules, count = self._rules, self._rules.num_beams
        ends = hits & (np.arange(len(found)) < count)
        scores = found / np.float32((length - len(rules.start)) ** rules.length_penalty)
        full = all(done for _, _, done in self._finished) and rules.early_stopping is True
        scores = scores + np.float32(full) * _NEVER + np.float32(not self._open) * _NEVER + ~ends * _NEVER
        merged = np.concatenate([np.array([score for _, score, _ in self._finished], np.float32), scores])
        candidates = [
            *self._finished,
            *(
                ([*self._running[parent], int(token)], score, bool(end))
                for parent, token, score, end in zip(parents, tokens, scores, ends, strict=True)
            ),
        ]
        self._finished = [candidates[place] for place in _top(merged, count)]

    def _done(self, length: int, all_hit: bool) -> bool:
        rules = self._rules
        never = rules.early_stopping == "never" and rules.length_penalty > 0.0
        reach = rules.max_new_tokens if never else length - len(rules.start)
        possible = self._scores[0] / np.float32(reach**rules.length_penalty)
        worst = min(score for _, score, _ in self._finished)
        self._open &= any(possible > (worst if done else _NEVER) for _, _, done in self._finished)
        full = all(done for _, _, done in self._finished) and rules.early_stopping is True
        return not self._open or full or all_hit

    def _answer(self) -> Next:
        ids = self._finished[0][0][len(self._rules.start) :]
        ended = bool(ids) and ids[-1] in self._rules.end_ids
        return Next(ids[:-1] if ended else ids, (), ended)


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the greatest scores, descending; of equal ones the first."""
    count = min(count, len(scores))
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    some = np.flatnonzero(scores >= least)
    found: np.ndarray = some[np.argsort(-scores[some], kind="stable")][:count]
    return found
