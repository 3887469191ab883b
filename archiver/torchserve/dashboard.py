"""A Grafana dashboard of what workers measure, made from their table of metrics: `make dashboard`.

python -m archiver.torchserve.dashboard > docs/grafana.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handlers.metrics import COUNT, COUNTER, GAUGE, METRICS, PER_SECOND, RATIO, SECONDS, Metric

_MODEL = "ModelName"  # TorchServe's label
_LEGEND = f"{{{{{_MODEL}}}}}"
_CHOSEN = f'{{{_MODEL}=~"$model"}}'
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_UNITS = {COUNT: "short", SECONDS: "s", RATIO: "percentunit", PER_SECOND: "short"}  # in Grafana's words
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One graph. queries: (PromQL, legend)."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]


def rate(name: str) -> str:
    """PromQL: a counter's growth a second, by model."""
    return f"sum by ({_MODEL}) (rate({name}{_CHOSEN}[$__rate_interval]))"


def quantile(share: float, name: str) -> str:
    """PromQL: a histogram's quantile, by model."""
    buckets = f"sum by (le, {_MODEL}) (rate({name}_bucket{_CHOSEN}[$__rate_interval]))"
    return f"histogram_quantile({share:g}, {buckets})"


# What two counters say together.
RATIOS = [
    Panel(
        "Share of requests that were refused or failed",
        "percentunit",
        [(f"{rate('marpress_request_errors')} / {rate('marpress_requests')}", _LEGEND)],
    ),
    Panel(
        "Padding waste",
        "percentunit",
        [(f"1 - {rate('marpress_tokens')} / {rate('marpress_computed_tokens')}", _LEGEND)],
    ),
    Panel("Inputs a run", "short", [(f"{rate('marpress_inputs')} / {rate('marpress_batches')}", _LEGEND)]),
]


def panel_of(name: str, metric: Metric) -> Panel:
    """What one metric says: of a counter its rate, of a histogram p50 and p99, of a gauge its value."""
    if metric.kind == COUNTER:
        return Panel(f"{metric.says}, a second", "short", [(rate(name), _LEGEND)])
    if metric.kind == GAUGE:
        return Panel(metric.says, _UNITS[metric.unit], [(f"max by ({_MODEL}) ({name}{_CHOSEN})", _LEGEND)])
    queries = [(quantile(share, name), f"{_LEGEND} p{share * 100:g}") for share in (0.5, 0.99)]
    return Panel(metric.says, _UNITS[metric.unit], queries)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels = [panel_of(name, metric) for name, metric in METRICS.items()]
    panels[2:2] = RATIOS
    return {
        "title": "marpress",
        "uid": "marpress",
        "schemaVersion": 39,
        "tags": ["marpress", "torchserve"],
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_variable("datasource", "datasource", "prometheus"), _models()]},
        "panels": [_placed(place, panel) for place, panel in enumerate(panels)],
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _models() -> dict[str, Any]:
    query = {"query": f"label_values(marpress_requests, {_MODEL})", "refId": "models"}
    found = _variable("model", "query", query)
    return {**found, "datasource": _SOURCE, "multi": True, "includeAll": True, "allValue": ".*", "refresh": 2}


def _variable(name: str, kind: str, query: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "query": query}


def _placed(place: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(place, _COLUMNS)
    return {
        "id": place + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend, "datasource": _SOURCE}
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(text())
