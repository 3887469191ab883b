"""Any sensible order of stages is taken; a senseless one is refused with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from archiver.recipe.order import order_problems
from archiver.spec import Stage


@dataclass(frozen=True)
class Options:
    targets: Any = None
    in_place: bool = True
    aware: Any = None
    rotate: bool = False


def stages(*labels: str, **options: Any) -> list[Stage]:
    found = []
    for label in labels:
        verb, _, method = label.partition("/")
        plain = method == "plan"
        found.append(Stage(verb, "weight-only" if plain else method or verb, Options(in_place=not plain, **options)))
    return found


@pytest.mark.parametrize(
    "labels",
    [
        ("prune/l1", "retrain", "share/codebook", "retrain"),
        ("prune/structured", "retrain", "share/layers", "factorize/svd", "quantize/static-int8"),
        ("prune/structured", "retrain", "share/vocabulary", "share/codebook", "quantize/static-int8"),
        ("prune/l1", "retrain", "quantize/ternary"),
        ("quantize/fixed-point", "retrain"),
        ("share/layers", "retrain", "prune/l1", "retrain"),
        ("factorize/svd", "retrain", "prune/l1", "quantize/plan"),
        ("retrain", "retrain"),
    ],
)
def test_sensible(labels):
    assert order_problems(stages(*labels)) == []


@pytest.mark.parametrize(
    ("labels", "where", "reason"),
    [
        (("quantize/static-int8", "retrain"), 1, "put quantize/static-int8 last"),
        (("quantize/weight-only", "retrain"), 1, "without `aware`"),
        (("quantize/binary", "prune/structured"), 1, "would move weights off the values"),
        (("share/codebook", "factorize/svd"), 1, "would move weights off the values"),
        (("quantize/fixed-point", "share/vocabulary"), 1, "whose grids belong to all rows"),
        (("quantize/static-int8", "quantize/dynamic-int8"), 1, "quantize once"),
        (("quantize/binary", "quantize/ternary"), 1, "give both `targets` that differ"),
        (("prune/l1", "factorize/svd"), 1, "factors of a sparse matrix are dense"),
        (("prune/l1", "retrain", "quantize/binary"), 2, "±b has no zero"),
        (("prune/wanda", "share/layers"), 1, "share first"),
        (("prune/l1", "prune/structured"), 1, "cut whole structures first"),
        (("share/layers", "prune/structured"), 1, "cut first"),
        (("share/vocabulary", "share/vocabulary"), 1, "a second time"),
    ],
)
def test_senseless(labels, where, reason):
    (found,) = order_problems(stages(*labels))
    assert found[0] == where
    assert reason in found[1]


def test_awareness_and_targets_open_the_way():
    aware = Stage("quantize", "weight-only", Options(aware={"epochs": 1}))
    assert order_problems([aware, *stages("retrain")]) == []
    here = Stage("quantize", "binary", Options(targets=("*dense",)))
    there = Stage("quantize", "weight-only", Options(targets=("*embeddings",)))
    assert order_problems([here, there]) == []


def test_a_stage_with_a_mistake_is_passed_over():
    assert order_problems([None, *stages("retrain"), None]) == []
