"""The gate: each kind of bound met, met exactly, missed, and not measurable."""

from __future__ import annotations

import pytest

from archiver.errors import GateFailed
from archiver.evaluation.gate import missed_bounds, require_passed
from archiver.spec import GateSpec

ORIGINAL = {"accuracy": 0.9, "cross_entropy": 0.5, "cosine": 1.0}


def missed(gate: GateSpec, compressed: dict[str, float], **more) -> list[str]:
    return missed_bounds(gate, ORIGINAL, compressed, **more)


def test_no_bounds_nothing_missed():
    assert missed(GateSpec(), {}) == []


def test_max_drop_is_absolute():
    gate = GateSpec(max_drop={"accuracy": 0.01})
    assert missed(gate, {"accuracy": 0.95}) == []
    assert missed(gate, {"accuracy": 0.89}) == []  # met exactly, whatever binary fractions say
    assert missed(gate, {"accuracy": 0.88}) == [
        "max_drop.accuracy: 0.02 measured, 0.01 allowed (accuracy is 0.88, the original has 0.9)"
    ]


def test_max_increase_is_relative():
    gate = GateSpec(max_increase={"cross_entropy": 0.1})
    assert missed(gate, {"cross_entropy": 0.55}) == []
    assert "max_increase.cross_entropy: 0.2 measured, 0.1 allowed" in missed(gate, {"cross_entropy": 0.6})[0]
    assert missed_bounds(gate, {"cross_entropy": 0.0}, {"cross_entropy": 0.0}) == []
    assert "inf measured" in missed_bounds(gate, {"cross_entropy": 0.0}, {"cross_entropy": 0.1})[0]


def test_min_is_a_floor():
    gate = GateSpec(min={"cosine": 0.99})
    assert missed(gate, {"cosine": 0.99}) == []
    assert "min.cosine: 0.98 measured, 0.99 allowed" in missed(gate, {"cosine": 0.98})[0]


@pytest.mark.parametrize(
    "gate",
    [
        GateSpec(max_drop={"f1": 1.0}),
        GateSpec(max_increase={"f1": 9.0}),
        GateSpec(min={"f1": 0.0}),
    ],
)
def test_what_cannot_be_measured_is_missed(gate):
    assert "f1: could not be measured on the validation data" in missed(gate, {"accuracy": 0.9})[0]
    assert "f1: could not be measured" in missed(gate, {"f1": 0.9})[0]  # the original's is missing


def test_not_a_number_is_missed():
    nan = float("nan")
    for gate in (GateSpec(max_drop={"accuracy": 0.5}), GateSpec(min={"accuracy": 0.1})):
        assert missed(gate, {"accuracy": nan})
    assert missed_bounds(GateSpec(max_increase={"cross_entropy": 0.1}), {"cross_entropy": nan}, {"cross_entropy": 1.0})
    assert missed(GateSpec(min_speedup=1.0), {}, speedup=nan)


def test_speed_and_size():
    gate = GateSpec(min_speedup=2.0, max_size_mb=25)
    assert missed(gate, {}) == []  # not known yet
    assert missed(gate, {}, speedup=2.0, archive_bytes=25_000_000) == []
    assert missed(gate, {}, speedup=1.5) == ["min_speedup: 1.50 × PyTorch eager fp32 measured, 2 × asked for"]
    assert missed(gate, {}, archive_bytes=25_010_000) == ["max_size_mb: the archive has 25.01 MB, 25 allowed"]


def test_every_missed_bound_is_listed():
    gate = GateSpec(max_drop={"accuracy": 0.0}, min={"cosine": 0.99}, min_speedup=3)
    lines = missed(gate, {"accuracy": 0.5, "cosine": 0.5}, speedup=1.0)
    assert [line.split(":")[0] for line in lines] == ["max_drop.accuracy", "min.cosine", "min_speedup"]
    require_passed("sst2", [])
    with pytest.raises(GateFailed, match="sst2: the gate is not passed, 3 bounds missed; no archive") as caught:
        require_passed("sst2", lines)
    assert caught.value.problems == lines
    assert caught.value.exit_code == 3
    with pytest.raises(GateFailed, match="one bound missed"):
        require_passed("sst2", lines[:1])
