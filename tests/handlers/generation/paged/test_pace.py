"""How much of a prompt fits into a step, with steps whose length is given."""

from __future__ import annotations

import pytest

from handlers.generation.paged.pace import PIECE, SHARE, Pace


def paced() -> Pace:
    """8 texts take 40 ms, one 20 ms, each token of a prompt 1 ms more."""
    pace = Pace(256)
    for rows, base in ((8, 0.04), (1, 0.02)):
        pace.took(rows, 0, 0, base)
        pace.took(rows, 0, 100, base + 0.1)
    for _ in range(10):
        pace.took(8, 0, 0, 0.04)  # nothing is owed any more
    return pace


def test_alone_a_prompt_is_read_in_the_largest_pieces() -> None:
    assert Pace(256).piece(0, 1) == paced().piece(0, 5) == 256


def test_so_it_is_where_many_prompts_wait() -> None:
    pace = paced()
    assert pace.piece(8, 3) == pace.piece(1, 2) == pace.piece(5, 2) == 256
    assert pace.piece(8, 2) == pace.piece(6, 2) == pace.piece(1, 1) == PIECE


def test_before_a_step_that_reads_nothing_there_is_no_measure() -> None:
    assert Pace(256).piece(1, 1) == Pace(256).piece(32, 1) == 0
    assert Pace(256).price(4) is None


@pytest.mark.parametrize("reading", [0.06, 0.1, 0.5])
def test_over_time_texts_run_at_their_share_whatever_a_piece_takes(reading: float) -> None:
    """8 texts take 40 ms a step; a step that reads takes `reading`."""
    pace, seconds, steps = paced(), 0.0, 400
    for _ in range(steps):
        read = pace.piece(8, 1)
        took = reading if read else 0.04
        pace.took(8, 0, read, took)
        seconds += took
    rate = steps * 0.04 / seconds
    assert rate >= 0.97 / (1 + SHARE)  # the last step's debt is open
    assert reading == 0.06 or rate <= 1.1 / (1 + SHARE)  # and hardly faster: prompts are read


def test_a_dear_piece_is_paid_before_the_next() -> None:
    pace = paced()
    assert pace.piece(8, 1) == PIECE
    pace.took(8, 0, PIECE, 0.04 * (1 + SHARE) + 0.04)  # one step's time too much
    read = []
    while not (piece := pace.piece(8, 1)):
        read.append(piece)
        pace.took(8, 0, 0, 0.04)
    assert len(read) == 2  # each pays SHARE of a step


def test_one_slow_step_changes_nothing() -> None:
    pace = paced()
    for _ in range(4):
        pace.took(8, 0, 0, 0.04)
    pace.took(8, 0, 0, 5.0)
    assert pace.step(8) == 0.04


def test_the_price_of_a_guess() -> None:
    pace = paced()
    assert pace.price(8) == pytest.approx(0.001 * 8 / 0.04)  # as a prompt's token, while none was guessed
    pace.took(8, 10, 0, 0.04 + 10 * 0.002)
    assert pace.price(8) == pytest.approx(0.002 * 8 / 0.04)
    assert pace.price(1) == pytest.approx(0.002 * 1 / 0.02)
