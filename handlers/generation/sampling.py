"""From one prompt's logits to its next token: penalties, temperature, top-k, top-p, and one draw.

Each function takes float32 logits or probabilities [vocabulary] and gives new ones; -inf stands for «not this one».
"""

from collections.abc import Sequence

import numpy as np

from handlers.protocols.continuation import MIN_TEMPERATURE, Sampling

MAX_SEED = 2**63 - 1
_NUCLEUS = 1024  # likeliest tokens that are looked at first: sorting a whole vocabulary takes milliseconds


def check(sampling: Sampling) -> None:
    """ValueError naming the first value out of range, and what is allowed."""
    rules: list[tuple[str, bool, str]] = [
        ("max_new_tokens", sampling.max_new_tokens >= 1, "a whole number from 1"),
        (
            "temperature",
            not sampling.do_sample or MIN_TEMPERATURE <= sampling.temperature < float("inf"),
            f"a number from {MIN_TEMPERATURE}",
        ),
        ("top_p", 0 < sampling.top_p <= 1, "a number above 0 and up to 1"),
        ("top_k", sampling.top_k >= 0, "a whole number from 0 (0: all)"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < float("inf"), "a number above 0"),
        ("frequency_penalty", abs(sampling.frequency_penalty) < float("inf"), "a finite number"),
        ("presence_penalty", abs(sampling.presence_penalty) < float("inf"), "a finite number"),
        ("seed", 0 <= sampling.seed <= MAX_SEED, f"a whole number from 0 to {MAX_SEED}"),
    ]
    for name, right, allowed in rules:
        if not right:
            raise ValueError(f"{name} is {getattr(sampling, name)!r}; allowed: {allowed}")


def is_plain(sampling: Sampling) -> bool:
    """Whether the likeliest token is the answer and nothing else is asked for."""
    penalties = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
    return not sampling.do_sample and not sampling.logprobs and penalties == (1.0, 0.0, 0.0)


def choose(
    logits: np.ndarray, prompt: Sequence[int], found: Sequence[int], sampling: Sampling, generator: np.random.Generator
) -> tuple[int, float]:
    """The token behind `prompt` and `found`, and its natural log-probability by the untouched logits.

    generator: of this prompt alone; one number is drawn from it for a token, whatever the settings
    raises ArithmeticError where the penalties drive every score beyond float32
    """
    scores = logits
    if sampling.repetition_penalty != 1.0:
        scores = penalize_repetition(scores, np.array([*prompt, *found]), sampling.repetition_penalty)
    if found and (sampling.frequency_penalty or sampling.presence_penalty):
        scores = penalize_use(scores, np.array(found), sampling.frequency_penalty, sampling.presence_penalty)
    if sampling.do_sample:
        highest = scores.max()
        if not np.isfinite(highest):
            raise ArithmeticError("the penalties leave no finite score")
        scores = (scores - highest) / np.float32(sampling.temperature)
        if sampling.top_k:
            scores = keep_top_k(scores, sampling.top_k)
        if sampling.top_p < 1.0:
            scores = keep_top_p(scores, sampling.top_p)
        token = at_share(np.exp(scores - scores.max()), generator.random())
    else:
        token = int(scores.argmax())
    return token, log_probability(logits, token) if sampling.logprobs else 0.0


def log_probability(logits: np.ndarray, token: int) -> float:
    """Natural, of one token."""
    highest = logits.max()
    return float(logits[token] - highest - np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def penalize_repetition(logits: np.ndarray, ids: np.ndarray, penalty: float) -> np.ndarray:
    """Logits of `ids` ([any] int64, repeats allowed) divided by `penalty` where positive, else multiplied by it.

    Source: Keskar et al. 2019, CTRL, arXiv:1909.05858, section 4.1; for negative logits as transformers does it
    """
    scores, some, by = logits.copy(), logits[ids], np.float32(penalty)
    with np.errstate(over="ignore", divide="ignore"):
        scores[ids] = np.where(some < 0, some * by, some / by)
    return scores


def penalize_use(logits: np.ndarray, ids: np.ndarray, frequency: float, presence: float) -> np.ndarray:
    """logit[j] − count[j]·frequency − (count[j] > 0)·presence, count[j]: how often j is among `ids` ([any] int64).

    Source: OpenAI's API reference, «frequency and presence penalties»
    """
    scores, (used, counts) = logits.copy(), np.unique(ids, return_counts=True)
    scores[used] -= (counts * frequency + presence).astype(np.float32)
    return scores


def keep_top_k(logits: np.ndarray, count: int) -> np.ndarray:
    """-inf below the `count`-th greatest; what equals it stays. Source: Fan et al. 2018, arXiv:1805.04833."""
    if count >= len(logits):
        return logits
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    return np.where(logits < least, np.float32(-np.inf), logits)


def keep_top_p(logits: np.ndarray, share: float) -> np.ndarray:
    """-inf outside the nucleus: the fewest likeliest tokens whose probabilities sum to at least `share`; one at least.

    Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1
    """
    powers = np.exp(logits - logits.max())
    least = share * powers.sum(dtype=np.float64)
    places = np.arange(len(logits))
    if len(logits) > 4 * _NUCLEUS:
        border = np.partition(powers, len(powers) - _NUCLEUS)[len(powers) - _NUCLEUS]
        likeliest = np.flatnonzero(powers > border)  # all of those, and no tie of the last: as in the whole order
        if powers[likeliest].sum(dtype=np.float64) >= least:
            places = likeliest
    order = places[np.argsort(-logits[places], kind="stable")]
    before = np.concatenate([[0.0], powers[order].cumsum(dtype=np.float64)[:-1]])
    kept = order[before < least]
    scores = np.full_like(logits, -np.inf)
    scores[kept] = logits[kept]
    return scores


def at_share(probabilities: np.ndarray, share: float) -> int:
    """The first place at which the running sum exceeds `share` (0 ≤ share < 1) of the whole: never one of probability 0."""
    sums = probabilities.cumsum(dtype=np.float64)
    # Rounding can make the product the whole again.
    return int(min(np.searchsorted(sums, sums[-1] * share, side="right"), np.searchsorted(sums, sums[-1])))
