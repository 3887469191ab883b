"""Single rules on rows that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from handlers.generation.seq2seq.rules import Rules, apply, draw, log_softmax


def allowed(rules: Rules, ids: list[int], source: tuple[int, ...] = ()) -> list[int]:
    scores = apply(rules, np.zeros(6, np.float32), ids, source)
    return np.flatnonzero(np.isfinite(scores)).tolist()


def test_plain_rules_change_nothing() -> None:
    assert Rules((0,), (1,), 5, num_beams=3).plain
    assert not Rules((0,), (1,), 5, suppress=(2,)).plain


@pytest.mark.parametrize(
    ("rules", "ids", "expected"),
    [
        ({"min_new_tokens": 2}, [0, 3], [0, 2, 3, 4, 5]),
        ({"min_new_tokens": 2}, [0, 3, 3], [0, 1, 2, 3, 4, 5]),
        ({"first": 4}, [0], [4]),
        ({"first": 4}, [0, 4], [0, 1, 2, 3, 4, 5]),
        ({"last": (1,)}, [0, 2, 2], [0, 1, 2, 3, 4, 5]),
        ({"last": (1,)}, [0, 2, 2, 2], [1]),
        ({"suppress": (2, 3)}, [0], [0, 1, 4, 5]),
        ({"suppress_first": (2, 3)}, [0], [0, 1, 4, 5]),
        ({"suppress_first": (2, 3)}, [0, 5], [0, 1, 2, 3, 4, 5]),
        ({"bad_words": ((5,), (2, 4))}, [0, 2], [0, 1, 2, 3]),
        ({"bad_words": ((2, 4),)}, [0, 3], [0, 1, 2, 3, 4, 5]),
        ({"no_repeat_ngram_size": 2}, [0, 2, 4, 2], [0, 1, 2, 3, 5]),
        ({"no_repeat_ngram_size": 1}, [0, 2, 4, 2], [1, 3, 5]),
    ],
)
def test_what_may_come(rules, ids, expected) -> None:
    assert allowed(Rules((0,), (1,), 4, **rules), ids) == expected


def test_n_grams_of_the_source() -> None:
    assert allowed(Rules((0,), (1,), 9, encoder_no_repeat_ngram_size=2), [0, 3], (3, 5, 3, 2)) == [0, 1, 3, 4]


def test_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    scores = apply(Rules((0,), (1,), 4, repetition_penalty=2.0), np.array([4, -4, 3], np.float32), [0, 1])
    assert scores.tolist() == [2, -8, 3]


def test_renormalized_scores_are_log_probabilities() -> None:
    scores = apply(Rules((0,), (1,), 4, suppress=(0,), renormalize=True), np.zeros(3, np.float32), [0])
    assert np.exp(scores).tolist() == pytest.approx([0, 0.5, 0.5])


def test_drawing_heeds_top_k_and_top_p() -> None:
    scores, random = np.log(np.array([0.5, 0.3, 0.15, 0.05])), np.random.default_rng(0)
    draws = {draw(Rules((0,), (), 1, do_sample=True, top_k=2), scores, random) for _ in range(200)}
    assert draws == {0, 1}
    assert {draw(Rules((0,), (), 1, do_sample=True, top_p=0.81), scores, random) for _ in range(200)} == {0, 1, 2}
    assert {draw(Rules((0,), (), 1, do_sample=True, temperature=0.01), scores, random) for _ in range(50)} == {0}


def test_log_softmax_by_hand() -> None:
    assert log_softmax(np.log(np.array([[1.0, 3.0]]))).tolist() == [pytest.approx([np.log(0.25), np.log(0.75)])]
