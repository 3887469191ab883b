"""What may come next in a transcript of Whisper's form: the language first, then the task, then text between times.

Source: Radford et al. 2022, arXiv:2212.04356; the rules on times as transformers' WhisperTimeStampLogitsProcessor has them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from handlers.generation.seq2seq.rules import Rules, apply


@dataclass(frozen=True)
class SpeechRules(Rules):
    """Rules of a transcript.

    Args:
        languages: tokens of which the likeliest is taken where `start` does not name one; then come `then`.
        then: tokens behind the language, one after another. first_time: the token of 0.00 s; every later token is a time.
        times: whether times are written. latest: the last time, in steps, that the text may begin at; None: any.
    """

    languages: tuple[int, ...] = ()
    then: tuple[int, ...] = ()
    first_time: int = 0
    times: bool = False
    latest: int | None = None

    @property
    def plain(self) -> bool:
        return False

    @property
    def heard_at(self) -> int:
        """Where the text begins: behind `start`, and what is found out before it."""
        return len(self.start) + (1 + len(self.then) if self.languages else 0)

    def apply(self, scores: np.ndarray, ids: Sequence[int], source: Sequence[int] = ()) -> np.ndarray:
        done = len(ids) - len(self.start)
        if self.languages and done <= len(self.then):
            only = self.languages if done == 0 else (self.then[done - 1],)
            if done == 0 and self.do_sample:  # what is spoken is no matter of chance
                only = (max(only, key=lambda token: scores[token]),)
            found = np.full_like(scores, -np.inf)
            found[list(only)] = scores[list(only)]
            return found
        scores = scores.copy()
        if self.times:
            self._timed(scores, ids[self.heard_at :])
        scores = apply(self, scores, ids, source)
        if len(ids) == self.heard_at:  # which is where suppress_first counts from
            scores[list(self.suppress_first)] = -np.inf
        return scores

    def _timed(self, scores: np.ndarray, text: Sequence[int]) -> None:
        """scores [vocabulary], changed in place; text: what was written of it."""
        begin, end = self.first_time, min(self.end_ids)
        scores[begin - 1] = -np.inf  # <|notimestamps|>
        was_time = len(text) >= 1 and text[-1] >= begin
        before_was_time = len(text) < 2 or text[-2] >= begin
        if was_time and before_was_time:
            scores[begin:] = -np.inf
        elif was_time:
            scores[:end] = -np.inf
        times = [token for token in text if token >= begin]
        if times:
            scores[begin : times[-1] + (0 if was_time and not before_was_time else 1)] = -np.inf
        if not text:
            scores[:begin] = -np.inf
            if self.latest is not None:
                scores[begin + self.latest + 1 :] = -np.inf
        # Where some time is likelier, all together, than any single other token, it is a time.
        peak = scores.max()
        if np.exp(scores[begin:] - peak).sum() > np.exp(scores[:begin].max() - peak):
            scores[:begin] = -np.inf
