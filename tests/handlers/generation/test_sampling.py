"""The sampling mathematics, by hand and against transformers' own processors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as reference

from handlers.generation.backend import Sampling
from handlers.generation.sampling import (
    at_share,
    check,
    choose,
    is_plain,
    log_probability,
    most_likely,
    nucleus,
    penalize_repetition,
    penalize_use,
    top_k,
)

LOGITS = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
PLAIN = Sampling(max_new_tokens=4)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def numbers(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_repetition_by_hand() -> None:
    found = penalize_repetition(numbers(2.0, -1.0, 3.0, -4.0), np.array([0, 1, 1, 0]), 2.0)
    assert found.tolist() == [1.0, -2.0, 3.0, -4.0]


def test_frequency_and_presence_by_hand() -> None:
    found = penalize_use(numbers(1.0, 1.0, 1.0), np.array([1, 2, 1]), 0.25, 0.5)
    assert found.tolist() == [1.0, 0.0, 0.25]


def test_top_k_by_hand() -> None:
    assert top_k(numbers(1.0, 3.0, 2.0), 2).tolist() == [1, 2]
    assert top_k(numbers(1.0, 1.0, 0.0), 1).tolist() == [0, 1]  # a tie stays
    assert top_k(numbers(1.0, 3.0), 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("share", "kept"), [(0.01, [0]), (0.5, [0]), (0.51, [0, 1]), (0.75, [0, 1]), (0.8, [0, 1, 2]), (0.99, [0, 1, 2, 3])]
)
def test_top_p_by_hand(share, kept) -> None:
    powers = np.exp(LOGITS)
    assert nucleus(powers, share).tolist() == kept
    turned = powers[[2, 0, 3, 1]]  # the first of two equals stays
    assert nucleus(turned, share).tolist() == sorted([1, 3, 0, 2][place] for place in kept)


def test_a_place_in_the_running_sum_by_hand() -> None:
    probabilities = numbers(0.0, 0.5, 0.0, 0.25, 0.25, 0.0)
    assert [at_share(probabilities, share) for share in (0.0, 0.49, 0.5, 0.74, 0.75, 1 - 2**-53)] == [1, 1, 3, 3, 4, 4]


def test_agrees_with_transformers() -> None:
    source = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 50, generator=source) * 3
    ids = torch.randint(0, 50, (3, 12), generator=source)
    repeated = reference.RepetitionPenaltyLogitsProcessor(1.3)(ids, scores.clone()).numpy()
    first = reference.TopKLogitsWarper(7)(ids, scores.clone()).numpy()
    likeliest = reference.TopPLogitsWarper(0.8)(ids, scores.clone()).numpy()
    for row in range(3):
        assert np.array_equal(penalize_repetition(scores[row].numpy(), ids[row].numpy(), 1.3), repeated[row])
        assert np.array_equal(top_k(scores[row].numpy(), 7), np.flatnonzero(np.isfinite(first[row])))
        powers = np.exp(scores[row].numpy())
        assert np.array_equal(nucleus(powers, 0.8), np.flatnonzero(np.isfinite(likeliest[row])))


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.9999])
def test_a_large_vocabulary_has_the_same_nucleus(share, spread) -> None:
    """Its likeliest tokens are looked at first, all of them where those are not enough; ties are in the order of places."""
    scores = np.round(generator(5).standard_normal(20_000).astype(np.float32) * spread, 1)
    powers = np.exp(scores - scores.max())
    order = np.argsort(-scores, kind="stable")
    sums = powers[order].astype(np.float64).cumsum()
    kept = order[sums - powers[order] < share * sums[-1]]
    found = nucleus(powers, share)
    assert abs(len(found) - len(kept)) <= 1 and len(np.setxor1d(found, kept)) <= 1  # where the sum's rounding decides


@pytest.mark.parametrize("count", [1, 50, 312, 313, 5000, 20_001])
def test_a_large_vocabulary_has_the_same_greatest(count) -> None:
    scores = np.round(generator(5).standard_normal(20_001).astype(np.float32) * 4, 1)
    least = np.sort(scores)[-count]
    assert top_k(scores, count).tolist() == np.flatnonzero(scores >= least).tolist()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 20_001])
def test_a_large_vocabulary_has_the_same_places(size) -> None:
    powers = generator(6).random(size).astype(np.float32)
    powers[::3] = 0.0 if size > 1 else 1.0
    sums = powers.cumsum(dtype=np.float64)
    for share in (0.0, 0.1, 0.5, 0.999, 1 - 2**-53):
        place = at_share(powers, share)
        assert powers[place] > 0
        assert sums[place] >= sums[-1] * share * (1 - 1e-12) and sums[place] - powers[place] <= sums[-1] * share * (
            1 + 1e-12
        )


def test_draws_follow_the_probabilities() -> None:
    source = generator(7)
    sampling = replace(PLAIN, do_sample=True)
    counts = np.zeros(4)
    for _ in range(4000):
        counts[choose(LOGITS, [], [], sampling, source)[0]] += 1
    assert np.allclose(counts / 4000, np.exp(LOGITS), atol=0.03)


def test_temperature_by_hand() -> None:
    """At half the temperature probabilities are squared: 0.25, 0.0625, 2 × 0.015625 of 0.34375."""
    sampling = replace(PLAIN, do_sample=True, temperature=0.5)
    draws = [choose(LOGITS, [], [], sampling, source)[0] for source in [generator(3)] for _ in range(4000)]
    assert draws.count(0) / 4000 == pytest.approx(0.25 / 0.34375, abs=0.03)


def test_the_least_temperature_takes_the_likeliest() -> None:
    sampling = replace(PLAIN, do_sample=True, temperature=1e-5)
    check(sampling)
    assert [choose(LOGITS * 1e4, [], [], sampling, generator(seed))[0] for seed in range(5)] == [0] * 5


def test_penalties_beyond_float32_raise() -> None:
    sampling = replace(PLAIN, do_sample=True, repetition_penalty=1e-39)
    with pytest.raises(ArithmeticError, match="no finite score"):
        choose(numbers(5.0, 1.0), [0], [], sampling, generator())


def test_log_probabilities_are_of_the_untouched_logits() -> None:
    sampling = replace(PLAIN, logprobs=True, repetition_penalty=100.0, frequency_penalty=50.0)
    raw = numbers(5.0, 4.0, 3.0)
    token, logprob = choose(raw, [0], [1], sampling, generator())
    assert token == 2
    assert logprob == pytest.approx(3 - math.log(sum(math.exp(x) for x in (5, 4, 3))))
    assert raw.tolist() == [5.0, 4.0, 3.0]


def test_use_counts_what_was_generated_and_not_the_prompt() -> None:
    raw = numbers(5.0, 4.5, 0.0)
    sampling = replace(PLAIN, presence_penalty=1.0)
    assert choose(raw, [0, 0], [], sampling, generator())[0] == 0
    assert choose(raw, [0, 0], [0], sampling, generator())[0] == 1


def test_the_most_likely_tokens_with_their_log_probabilities() -> None:
    raw = numbers(1.0, 3.0, 2.0, 3.0)
    whole = math.log(sum(math.exp(x) for x in (1, 3, 2, 3)))
    assert most_likely(raw, 3) == (
        (1, pytest.approx(3 - whole)),
        (3, pytest.approx(3 - whole)),
        (2, pytest.approx(2 - whole)),
    )
    assert [token for token, _ in most_likely(raw, 20)] == [1, 3, 2, 0]
    ties = most_likely(numbers(*[0.0] * 200), 2)
    assert ties == ((0, pytest.approx(-math.log(200))), (1, pytest.approx(-math.log(200))))


def test_a_bias_bans_and_forces_tokens() -> None:
    raw = numbers(5.0, 4.5, 0.0)
    assert choose(raw, [0], [], replace(PLAIN, bias=((0, -100.0),)), generator())[0] == 1
    token, logprob = choose(raw, [0], [], replace(PLAIN, bias=((2, 100.0), (0, 1.0)), logprobs=True), generator())
    assert token == 2 and logprob == pytest.approx(log_probability(raw, 2))  # told of the untouched logits
    assert raw.tolist() == [5.0, 4.5, 0.0]


def test_what_needs_no_more_than_the_likeliest() -> None:
    assert is_plain(PLAIN) and is_plain(replace(PLAIN, temperature=0.5, top_k=3))
    changes = (
        {"do_sample": True},
        {"logprobs": True},
        {"repetition_penalty": 1.1},
        {"presence_penalty": -0.1},
        {"bias": ((1, 0.5),)},
    )
    assert not any(is_plain(replace(PLAIN, **change)) for change in changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"max_new_tokens": 0},
        {"temperature": 0.0, "do_sample": True},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": float("nan")},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_what_is_out_of_range(change) -> None:
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"{name} is .*; allowed: "):
        check(replace(PLAIN, **change))
    check(replace(PLAIN, seed=2**63 - 1, top_k=10**9, frequency_penalty=-2.0))
