"""Which tokens may come next, and with what scores: a model's generation settings and a request's, applied to one row.

Each step is what transformers' processor of that name does, in transformers' order, on numpy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rules:
    """How one text is written.

    Args:
        start: what the decoder begins with, at least one token. end_ids: tokens that end the text.
        max_new_tokens, min_new_tokens: behind `start`; the end token counts.
        num_beams: 1: the likeliest token each time (or one drawn, with `do_sample`).
        length_penalty: exponent of the length that a beam's score is divided by. early_stopping: True, False or "never".
        no_repeat_ngram_size, encoder_no_repeat_ngram_size: n-grams of the text, or of its source, that come once; 0: any.
        bad_words: sequences that may not come. suppress, suppress_first: tokens that may not come, or not as the first.
        first, last: tokens that must be the first, or at the greatest length the last.
        renormalize: whether what is left is brought to probabilities again, which matters between beams.
        temperature, top_k, top_p, seed: for `do_sample`.
        logprobs: whether the tokens' log-probabilities are told; of beams they are not.
    """

    start: tuple[int, ...]
    end_ids: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    first: int | None = None
    last: tuple[int, ...] = ()
    renormalize: bool = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    logprobs: bool = False

    @property
    def most(self) -> int:
        """Tokens at most, `start` included."""
        return len(self.start) + self.max_new_tokens

    @property
    def plain(self) -> bool:
        """Whether nothing stands between the logits and the likeliest token."""
        return self == Rules(self.start, self.end_ids, self.max_new_tokens, num_beams=self.num_beams)

    def apply(self, scores: np.ndarray, ids: Sequence[int], source: Sequence[int] = ()) -> np.ndarray:
        """See `apply`; a kind of text with rules of its own adds them here."""
        return apply(self, scores, ids, source)


def apply(rules: Rules, scores: np.ndarray, ids: Sequence[int], source: Sequence[int] = ()) -> np.ndarray:
    """Scores under the rules.

    Args:
        scores: [vocabulary] float32, logits or log-probabilities. ids: the row so far, `start` included.
        source: the encoder's tokens, for encoder_no_repeat_ngram_size.
    Returns: new scores; -inf for what may not come.
    """
    scores = scores.copy()
    done = len(ids) - len(rules.start)
    if rules.repetition_penalty != 1.0:
        some = np.unique(np.asarray(ids))
        found = scores[some]
        penalty = np.float32(rules.repetition_penalty)
        scores[some] = np.where(found < 0, found * penalty, found / penalty)
    if rules.no_repeat_ngram_size:
        scores[_repeated(ids, ids, rules.no_repeat_ngram_size)] = -np.inf
    if rules.encoder_no_repeat_ngram_size:
        scores[_repeated(source, ids, rules.encoder_no_repeat_ngram_size)] = -np.inf
    for *before, word in rules.bad_words:
        if not before or (len(before) < len(ids) and list(ids[len(ids) - len(before) :]) == before):
            scores[word] = -np.inf
    if done < rules.min_new_tokens:
        scores[list(rules.end_ids)] = -np.inf
    if rules.first is not None and len(ids) == 1:
        _only(scores, (rules.first,))
    if rules.last and len(ids) == rules.most - 1:
        _only(scores, rules.last)
    if rules.suppress:
        scores[list(rules.suppress)] = -np.inf
    if rules.suppress_first and done == int(len(rules.start) == 1 and rules.first is not None):
        scores[list(rules.suppress_first)] = -np.inf
    return log_softmax(scores) if rules.renormalize else scores


def draw(rules: Rules, scores: np.ndarray, random: np.random.Generator) -> int:
    """One token drawn by temperature, top-k and top-p.

    Args:
        scores: [vocabulary], under the rules. random: of this text alone; one number is drawn from it.
    Source: Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, arXiv:1904.09751, section 3.1 (top-p).
    """
    scaled = scores.astype(np.float64) / rules.temperature
    if rules.top_k:
        least = np.partition(scaled, -min(rules.top_k, len(scaled)))[-min(rules.top_k, len(scaled))]
        scaled[scaled < least] = -np.inf
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    if rules.top_p < 1.0:
        order = np.argsort(-shares, kind="stable")
        before = np.cumsum(shares[order]) - shares[order]
        shares[order[1:][before[1:] >= rules.top_p]] = 0.0
    sums = np.cumsum(shares)
    return int(np.searchsorted(sums, sums[-1] * random.random(), side="right"))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[rows, vocabulary] logits to log-probabilities, float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def _repeated(within: Sequence[int], ids: Sequence[int], size: int) -> list[int]:
    """Tokens that would make the last `size` tokens of `ids` an n-gram that `within` has already."""
    if len(ids) + 1 < size:
        return []
    tail = list(ids[len(ids) - size + 1 :]) if size > 1 else []
    places = range(len(within) - size + 1)
    return [within[place + size - 1] for place in places if list(within[place : place + size - 1]) == tail]


def _only(scores: np.ndarray, tokens: Sequence[int]) -> None:
    scores[:] = -math.inf
    scores[list(tokens)] = 0.0
