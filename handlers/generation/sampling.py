"""From one prompt's logits to its next token: penalties, temperature, top-k, top-p, and one draw.

It is done for every text at every step, while the model waits: vocabularies of 50 000 to 250 000 tokens are gone through
a few times and never sorted. What is left of one are places, ascending.
"""

from collections.abc import Sequence

import numpy as np

from handlers.protocols.continuation import MIN_TEMPERATURE, Sampling

MAX_SEED = 2**63 - 1
_NUCLEUS = 1024  # a nucleus is first looked for among tokens with more than this part of what may be left out
_BLOCK = 64  # neighbours of which first only the greatest, or the sum, is looked at


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
    chosen_otherwise = sampling.do_sample or sampling.bias or penalties != (1.0, 0.0, 0.0)
    return not chosen_otherwise and not sampling.logprobs


def choose(
    logits: np.ndarray,
    prompt: Sequence[int],
    found: Sequence[int],
    sampling: Sampling,
    generator: np.random.Generator,
    allowed: np.ndarray | None = None,
) -> tuple[int, float]:
    """The token behind `prompt` and `found`, and its natural log-probability by the untouched logits.

    generator: of this prompt alone; one number is drawn from it for a token, whatever the settings
    allowed: [vocabulary] bool, the tokens of which one is chosen, at least one; None for all
    raises ArithmeticError where the penalties drive every score beyond float32
    """
    scores = logits if allowed is None else np.where(allowed, logits, np.float32(-np.inf))
    scores = add_bias(scores, sampling.bias) if sampling.bias else scores
    if sampling.repetition_penalty != 1.0:
        scores = penalize_repetition(scores, np.array([*prompt, *found]), sampling.repetition_penalty)
    if found and (sampling.frequency_penalty or sampling.presence_penalty):
        scores = penalize_use(scores, np.array(found), sampling.frequency_penalty, sampling.presence_penalty)
    if sampling.do_sample:
        highest = scores.max()
        if not np.isfinite(highest):
            raise ArithmeticError("the penalties leave no finite score")
        scores = scores - highest
        scores /= np.float32(sampling.temperature)
        places = top_k(scores, sampling.top_k) if 0 < sampling.top_k < len(scores) else None
        # In place: room for another vocabulary costs more than all that is computed on it.
        powers = np.exp(scores, out=scores) if places is None else np.exp(scores[places])
        if sampling.top_p < 1.0:
            kept = nucleus(powers, sampling.top_p)
            places, powers = kept if places is None else places[kept], powers[kept]
        place = at_share(powers, generator.random())
        token = place if places is None else int(places[place])
    else:
        token = int(scores.argmax())
    return token, log_probability(logits, token) if sampling.logprobs else 0.0


def log_probability(logits: np.ndarray, token: int) -> float:
    """Natural, of one token."""
    return float(logits[token] - _whole(logits))


def most_likely(logits: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens with their natural log-probabilities, the likeliest first; of equals the first."""
    places = top_k(logits, min(count, len(logits)))
    whole = _whole(logits)
    return tuple(
        (int(token), float(logits[token] - whole))
        for token in places[np.argsort(-logits[places], kind="stable")[:count]]
    )


def _whole(logits: np.ndarray) -> float:
    """ln Σ exp logit."""
    highest = logits.max()
    return float(highest + np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def add_bias(logits: np.ndarray, bias: Sequence[tuple[int, float]]) -> np.ndarray:
    """The logits with what is added to some tokens'.

    Source: OpenAI's API reference, `logit_bias`.
    """
    scores = logits.copy()
    for token, value in bias:
        scores[token] += np.float32(value)
    return scores


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


def top_k(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` greatest (1 ≤ count ≤ their number), and of what equals the last of them.

    Source: Fan et al. 2018, arXiv:1805.04833.
    """
    # The count-th greatest of the blocks' greatest is no greater than the count-th of all.
    greatest = np.maximum.reduceat(scores, np.arange(0, len(scores), _BLOCK))
    near = np.arange(len(scores))
    if count < len(greatest):
        near = np.flatnonzero(scores >= np.partition(greatest, len(greatest) - count)[len(greatest) - count])
    found = scores[near]
    places: np.ndarray = near[found >= np.partition(found, len(found) - count)[len(found) - count]]
    return places


def nucleus(powers: np.ndarray, share: float) -> np.ndarray:
    """The places of the fewest likeliest tokens whose probabilities sum to at least `share` (above 0, below 1).

    Args:
        powers: probabilities, in any scale.
    Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1
    """
    whole = powers.sum(dtype=np.float64)
    near = np.arange(len(powers))
    if len(powers) > _NUCLEUS:
        # Where those above some border make the share, the likeliest of all are among them. Those below the second border
        # are too few to make what may be left out.
        for parts in (_NUCLEUS, len(powers)):
            near = np.flatnonzero(powers >= (1 - share) * whole / parts)
            if powers[near].sum(dtype=np.float64) >= share * whole:
                break
    order = near[np.argsort(-powers[near], kind="stable")]
    before = np.concatenate([[0.0], powers[order].cumsum(dtype=np.float64)[:-1]])
    return np.sort(order[before < share * whole])


def at_share(probabilities: np.ndarray, share: float) -> int:
    """The first place at which the running sum exceeds `share` (0 ≤ share < 1) of the whole: never one of probability 0."""
    starts = np.arange(0, len(probabilities), _BLOCK)
    sums = np.add.reduceat(probabilities, starts, dtype=np.float64).cumsum()
    wanted = sums[-1] * share
    # Rounding can make the product the whole again.
    block = int(min(np.searchsorted(sums, wanted, side="right"), np.searchsorted(sums, sums[-1])))
    within = probabilities[starts[block] : starts[block] + _BLOCK].cumsum(dtype=np.float64)
    wanted -= sums[block - 1] if block else 0.0
    place = min(np.searchsorted(within, wanted, side="right"), np.searchsorted(within, within[-1]))
    return int(starts[block] + place)
