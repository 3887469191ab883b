"""How much of a prompt fits into a step, with steps whose length is given."""

from __future__ import annotations

import pytest

from handlers.generation.pace import LEAST, SHARE, Pace


def paced() -> Pace:
    """8 texts take 40 ms, one 20 ms, each token of a prompt 1 ms more."""
    pace = Pace(256)
    for rows, base in ((8, 0.04), (1, 0.02)):
        pace.took(rows, 0, 0, base)
        pace.took(rows, 0, 100, base + 0.1)
    return pace


def test_alone_a_prompt_is_read_in_the_largest_pieces() -> None:
    assert Pace(256).piece(0, 1) == paced().piece(0, 5) == 256


def test_beside_texts_a_step_gets_longer_by_a_share() -> None:
    pace = paced()
    assert pace.piece(8, 1) == int(SHARE * 40) // 4 * 4
    assert pace.piece(7, 1) == pace.piece(9, 1) == pace.piece(8, 1)  # the nearest number that was measured
    assert LEAST <= pace.piece(1, 1) <= SHARE * 20
    assert pace.piece(1, 20) == 256 and pace.piece(8, 7) == int(3 * SHARE * 40) // 4 * 4


def test_before_anything_is_known() -> None:
    assert Pace(256).piece(1, 1) == LEAST and Pace(256).piece(32, 1) == int(SHARE * 32) // 4 * 4
    assert Pace(256).price(4) is None


def test_one_slow_step_changes_nothing() -> None:
    pace = paced()
    wanted = pace.piece(8, 1)
    for _ in range(4):
        pace.took(8, 0, 0, 0.04)
    pace.took(8, 0, 0, 5.0)
    pace.took(8, 0, 20, 5.0)
    assert pace.piece(8, 1) == wanted


def test_the_price_of_a_guess() -> None:
    pace = paced()
    assert pace.price(8) == pytest.approx(0.001 * 8 / 0.04)  # as a prompt's token, while none was guessed
    pace.took(8, 10, 0, 0.04 + 10 * 0.002)
    assert pace.price(8) == pytest.approx(0.002 * 8 / 0.04)
    assert pace.price(1) == pytest.approx(0.002 * 1 / 0.02)
