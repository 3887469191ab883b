"""What run_bench found, as text to read."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any


def format_bench(result: Mapping[str, Any]) -> str:
    """A table of run_bench's result, and in words what was compared, what is uncertain, and what went wrong."""
    sides = result["sides"]
    rows = [["", "clients", "side", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors", "load CPU"]]
    if "b" in sides:
        rows[0].append("throughput a : b")
    for cell in result["cells"]:
        for label in sides:
            side = cell[label]
            row = [cell["protocol"], str(cell["clients"]), label, f"{side['throughput']:.1f}"]
            row += [_number(side[name]) for name in ("p50_ms", "p95_ms", "p99_ms")]
            row += [str(sum(side["errors"].values())), f"{side['load_cpu_share']:.0%}"]
            if "b" in sides:
                row.append(_ratio(cell) if label == "a" else "")
            rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column in (0, 2, 9) else text.rjust(width) for column, (text, width) in pairs
        ).rstrip()
        for row in rows
        for pairs in [list(enumerate(zip(row, widths, strict=True)))]
    ]
    return "\n".join([*_sides(result), "", *lines, "", *_remarks(result)]) + "\n"


def _sides(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for label, side in result["sides"].items():
        memory = median(side["memory_per_worker_bytes"]) / 1e6
        lines.append(
            f"{label}: {side['archive']} ({side['archive_bytes'] / 1e6:.1f} MB, {side['workers']} "
            f"worker{'s' * (side['workers'] != 1)}), ready in {median(side['ready_s']):.1f} s "
            f"({min(side['ready_s']):.1f} to {max(side['ready_s']):.1f}), {memory:.0f} MB per worker"
        )
    if "ready_ratio" in result:
        lines.append(
            f"a : b, time to ready {result['ready_ratio']:.2f}, memory per worker {result['memory_ratio']:.2f}"
        )
    return lines


def _ratio(cell: Mapping[str, Any]) -> str:
    ratio = cell["ratio"]
    if ratio is None:
        return "none: a side did not answer"
    if ratio["low"] is None or ratio["high"] is None:
        return f"{ratio['ratio']:.3f} (unbounded)"
    return f"{ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def _remarks(result: Mapping[str, Any]) -> list[str]:
    lines = []
    if "b" in result["sides"]:
        lines.append(
            f"a : b is how many times b's throughput a has, the mean of the rounds' ratios; all intervals together "
            f"hold with {result['confidence']:.0%}. Rounds: {result['rounds']}, each with both servers started afresh."
        )
    for cell in result["cells"]:
        if cell.get("too_noisy"):
            width = cell["ratio"]["half_width"]
            shown = "unbounded" if width is None else f"± {width:.1%}"
            lines.append(
                f"{cell['protocol']}, {cell['clients']} clients: the machine was too noisy: {cell['rounds']} rounds, "
                f"half width {shown}; give it more --seconds, or less else to do"
            )
        for label in result["sides"]:
            for status, count in cell[label]["errors"].items():
                lines.append(
                    f"{cell['protocol']}, {cell['clients']} clients, {label}: {count} requests ended with {status}"
                )
    lines.append(
        f"errors: {result['errors']}; the load generator took up to {result['load_cpu_share']:.0%} of one core"
    )
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
