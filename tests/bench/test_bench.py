"""The comparison of two archives: its statistics by hand, its words, and one live run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import psutil
import pytest
from serving_mar import ECHO, echo_mar, write_mar

from archiver.bench.interval import ratio_interval
from archiver.bench.load import LoadResult
from archiver.bench.rounds import Cell, cell_confidence, run_bench
from archiver.bench.table import format_bench
from archiver.evaluation.student import student_t
from archiver.torchserve.server import ServerError


def test_the_interval_of_a_case_done_by_hand() -> None:
    # Logarithms 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, t(2, 95 %) = 4.302653, so 0.2 ± 4.302653 · 0.1 / √3.
    interval = ratio_interval([math.exp(0.1), math.exp(0.2), math.exp(0.3)])
    reach = 4.302653 * 0.1 / math.sqrt(3)
    assert interval.ratio == pytest.approx(math.exp(0.2))
    assert interval.low == pytest.approx(math.exp(0.2 - reach), rel=1e-6)
    assert interval.high == pytest.approx(math.exp(0.2 + reach), rel=1e-6)
    assert interval.half_width == pytest.approx(math.expm1(reach), rel=1e-6)
    assert interval.pairs == 3


def test_order_effects_cancel_in_the_mean_and_widen_the_interval() -> None:
    # Whoever goes first is 10 % faster, and nothing else: A first, B first, A first, B first.
    interval = ratio_interval([1.1, 1 / 1.1, 1.1, 1 / 1.1])
    assert interval.ratio == pytest.approx(1.0)
    assert interval.low < 1 / 1.1 < 1.1 < interval.high


@pytest.mark.parametrize(
    ("freedom", "confidence", "t"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.3027),
        (3, 0.95, 3.1824),
        (10, 0.95, 2.2281),
        (9, 0.99, 3.2498),
        (30, 0.95, 2.0423),
    ],
)
def test_students_t_is_the_printed_table(freedom: int, confidence: float, t: float) -> None:
    assert student_t(freedom, confidence) == pytest.approx(t, abs=1e-4)


def test_an_interval_needs_two_positive_ratios() -> None:
    with pytest.raises(ValueError, match="at least two positive ratios"):
        ratio_interval([1.0])
    with pytest.raises(ValueError, match="at least two positive ratios"):
        ratio_interval([1.0, 0.0])


def test_the_more_cells_the_surer_each_has_to_be() -> None:
    assert cell_confidence(1) == pytest.approx(0.975)
    assert cell_confidence(6) == pytest.approx(1 - 0.05 / 12)


def test_a_side_without_answers_has_no_ratio() -> None:
    def result(count: int) -> list[LoadResult]:
        return [LoadResult(count, 1.0, float(count), 1.0, 1.0, 1.0, {}, 0.1)]

    assert Cell("rest", 1, [{"a": result(20), "b": result(10)}]).ratios == [2.0]
    assert Cell("rest", 1, [{"a": result(20), "b": result(0)}]).ratios == []


def test_half_the_delay_is_twice_the_throughput(tmp_path: Path) -> None:
    fast, slow = echo_mar(tmp_path / "a", "fast", delay=0.02), echo_mar(tmp_path / "b", "slow", delay=0.04)
    lines: list[str] = []
    before = set(psutil.Process().children(recursive=True))
    result = run_bench(
        fast,
        slow,
        [b"a", b"b"],
        "text/plain",
        clients=(1, 2),
        protocols=("grpc",),
        seconds=0.6,
        settle=0.1,
        min_rounds=2,
        max_rounds=2,
        progress=lines.append,
    )
    assert set(psutil.Process().children(recursive=True)) == before
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [(cell["protocol"], cell["clients"], cell["rounds"]) for cell in result["cells"]] == [
        ("grpc", 1, 2),
        ("grpc", 2, 2),
    ]
    for cell in result["cells"]:
        assert 1.5 < cell["ratio"]["ratio"] < 2.5
        # Two rounds may count the very same answers: the interval then has no width.
        assert cell["ratio"]["low"] <= cell["ratio"]["ratio"] <= cell["ratio"]["high"]
        assert len(cell["ratios"]) == 2
    assert result["errors"] == 0
    assert [len(side["ready_s"]) for side in result["sides"].values()] == [2, 2]
    assert [line.partition(":")[0] for line in lines if line.startswith("round")] == ["round 1", "round 2"]
    assert "fast.mar and slow.mar" in lines[0]
    table = format_bench(result)
    assert "a: fast.mar" in table and "b: slow.mar" in table and "throughput a : b" in table
    noisy = [cell for cell in result["cells"] if cell["too_noisy"]]
    assert table.count("the machine was too noisy: 2 rounds") == len(noisy)


def test_an_archive_that_refuses_the_texts_is_not_compared(tmp_path: Path) -> None:
    refuses = ECHO.replace("{delay}", "0").replace(
        "        return [", "        context.set_response_status(400, 'no', 0)\n        return ["
    )
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ServerError, match=r"refuses\.mar: the first request was answered 400"):
        run_bench(write_mar(tmp_path, "refuses", refuses), None, [b"a"], "text/plain", clients=(1,), seconds=0.5)
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [each for each in left if each.status() != "zombie"]
