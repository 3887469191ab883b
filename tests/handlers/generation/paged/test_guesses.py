"""What is guessed from a text itself and by a smaller model, and when it is not worth it."""

from __future__ import annotations

import pytest
from paged_models import Counting, follow

from handlers.generation.paged.draft import Draft
from handlers.generation.paged.guesses import Hope, Lookup


def test_what_followed_the_last_time() -> None:
    lookup = Lookup()
    ids = [1, 2, 3, 4, 1, 2, 5, 6, 9, 1, 2]
    assert lookup.guess({7: ids}, {7: 3}) == {7: [5, 6, 9]}
    assert lookup.guess({7: [*ids, 3]}, {7: 3}) == {7: [4, 1, 2]}  # the longer run decides
    assert lookup.guess({7: [*ids, 3, 8]}, {7: 3}) == {7: []}
    assert lookup.guess({8: [5, 5, 5]}, {8: 4}) == {8: [5]}
    lookup.forget(7)
    assert lookup.guess({7: [1, 2]}, {7: 3}) == {7: []}


def test_hope() -> None:
    hope = Hope()
    assert hope.count(4, 0.1) == 4 and hope.count(4, 0.3) == 2 and hope.count(0, 0.0) == 0
    for _ in range(20):
        hope.told(4, 0)
    assert hope.right < 0.05 and hope.count(4, 0.2) == 0
    for _ in range(40):
        hope.count(4, 0.2)
    assert hope.count(4, 0.2) > 0  # it is tried again
    for _ in range(20):
        hope.told(4, 4)
    assert hope.right == pytest.approx(1, abs=0.01) and hope.count(4, 0.9) == 4
    before = hope.right
    hope.told(0, 0)
    assert hope.right == before


def test_a_draft_that_is_the_model_is_always_right() -> None:
    draft = Draft(Counting(128), 128, 4)
    texts = {1: [3, 1, 4], 2: list(range(30)) * 10}
    assert draft.guess(texts, {1: 3, 2: 2}) == {1: follow(texts[1], 3), 2: []}  # the long one is not read yet
    assert draft.guess(texts, {1: 3, 2: 2}) == {1: follow(texts[1], 3), 2: follow(texts[2], 2)}
    for grown in ([3, 1, 4, 9, 9], [3, 1, 4, 9, 9, *follow([3, 1, 4, 9, 9], 2)]):  # other than guessed, and as guessed
        assert draft.guess({1: grown}, {1: 4}) == {1: follow(grown, 4)}
    draft.forget(1)
    draft.forget(2)
    assert draft.guess({1: [7]}, {1: 2}) == {1: follow([7], 2)}


def test_a_draft_without_room_guesses_nothing() -> None:
    draft = Draft(Counting(2), 2, 4)
    assert draft.guess({1: [1, 2, 3], 2: [1, 2, 3, 4, 5, 6]}, {1: 2, 2: 2}) == {1: follow([1, 2, 3], 2), 2: []}
