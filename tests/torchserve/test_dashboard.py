"""docs/grafana.json is what the command makes, and speaks of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from places import ROOT

from archiver.torchserve.dashboard import dashboard, panel_of, quantile, rate
from handlers.generation.backend import Load
from handlers.generation.engine import Job
from handlers.generation.metrics import request_measurements
from handlers.metrics import COUNTER, GAUGE, HISTOGRAM, METRICS, batch_measurements, measured, queue_measurements
from handlers.protocols.continuation import Sampling


def test_the_file_in_docs_is_what_the_command_makes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "archiver.torchserve.dashboard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    shipped = (ROOT / "docs" / "grafana.json").read_text()
    assert done.stdout == shipped, "run `make dashboard`"
    assert json.loads(shipped) == dashboard()


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def test_every_expression_names_metrics_that_there_are_and_reads_them_as_their_kind() -> None:
    named = set()
    for expression in expressions():
        for name, rest in re.findall(r"\b(marpress_\w+)(\{[^}]*\}(?:\[[^]]*\])?)", expression):
            kind = {True: HISTOGRAM, False: COUNTER if rest.endswith("]") else GAUGE}[name.endswith("_bucket")]
            metric = METRICS[name.removesuffix("_bucket")]
            assert metric.kind == kind, expression
            named.add(name.removesuffix("_bucket"))
        assert len(re.findall("marpress_", expression)) == len(re.findall(r"marpress_\w+\{ModelName=~", expression))
        assert expression.count("(") == expression.count(")")
    assert named == set(METRICS)


def test_expressions_by_hand() -> None:
    chosen = '{ModelName=~"$model"}'
    assert rate("x") == f"sum by (ModelName) (rate(x{chosen}[$__rate_interval]))"
    buckets = f"sum by (le, ModelName) (rate(x_bucket{chosen}[$__rate_interval]))"
    assert quantile(0.99, "x") == f"histogram_quantile(0.99, {buckets})"
    waiting = panel_of("marpress_waiting", METRICS["marpress_waiting"])
    assert waiting.queries == [(f"max by (ModelName) (marpress_waiting{chosen})", "{{ModelName}}")]
    wait = panel_of("marpress_wait_seconds", METRICS["marpress_wait_seconds"])
    assert (wait.unit, [legend for _, legend in wait.queries]) == ("s", ["{{ModelName}} p50", "{{ModelName}} p99"])


def test_panels_do_not_lie_on_each_other() -> None:
    panels: list[dict[str, Any]] = dashboard()["panels"]
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len({panel["id"] for panel in panels}) == len(panels)
    assert all(x + 8 <= 24 for x, _ in places)


def test_the_table_is_of_what_is_measured() -> None:
    job = Job([1, 2], Sampling(4), ids=[3, 4], submitted=1.0, first=2.0, last=3.0)
    found = [
        *batch_measurements(requests=2, errors=1, inputs=3, tokens=4, computed_tokens=8, seconds=0.5),
        *queue_measurements([0.25], 5),
        *request_measurements([job], Load(1, 2, 0.5), failed=True, seconds=2.5),
    ]
    assert {one.name for one in found} == set(METRICS)
    assert all((one.kind, one.unit) == (METRICS[one.name].kind, METRICS[one.name].unit) for one in found)
    with pytest.raises(KeyError, match="marpress_unknown"):
        measured("marpress_unknown", 1)
