"""An archive compared with itself: the interval holds 1.00, or the machine is called too noisy."""

from __future__ import annotations

from pathlib import Path

from serving_mar import echo_mar

from archiver.bench.rounds import WIDEST, run_bench
from archiver.bench.table import format_bench

# The interval is one of 95 %: it may exclude 1.00 in one run of twenty. A bench that favours a side does so every time.
ATTEMPTS = 3


def test_two_identical_archives_are_equal(tmp_path: Path) -> None:
    one, other = echo_mar(tmp_path / "a", delay=0.02), echo_mar(tmp_path / "b", delay=0.02)
    fair = False
    for _ in range(ATTEMPTS):
        result = run_bench(
            one,
            other,
            [b"a"],
            "text/plain",
            clients=(2,),
            protocols=("rest",),
            seconds=0.6,
            settle=0.1,
            min_rounds=2,
            max_rounds=2,
        )
        (cell,) = result["cells"]
        ratio = cell["ratio"]
        assert cell["too_noisy"] == (ratio["half_width"] > WIDEST)
        assert ("the machine was too noisy" in format_bench(result)) == cell["too_noisy"]
        assert result["errors"] == 0
        assert result["rounds"] == 2
        fair = cell["too_noisy"] or ratio["low"] <= 1.0 <= ratio["high"]
        if fair:
            break
    assert fair
