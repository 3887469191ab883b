"""An archive's report as text: origin, size, speed, stages, metrics, gate, and the host they were measured on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archiver.tasks import TASKS


def summarize(report: Mapping[str, Any], path: Path) -> str:
    """A page of plain text about `inspect_mar`'s report."""
    size, timings, metrics = report["size"], report["timings"], report["metrics"]
    host, unit = timings["host"], timings.get("unit", "sentences")
    task = TASKS.get(report["task"])
    batches = task.batches if task else ""
    original = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(
        report.get("original_dtype", ""), "original"
    )
    lines = [
        f"{path}",
        f"  {report['name']} {report['version']} · {report['task']} · runs on {_runtimes(report)}",
        f"  from {report['model']['source']} (weights sha256 {report['model']['sha256'][:16]}…)",
        f"  content sha256 {report['content_sha256']}",
        "",
        f"  size    {original} weights {_mb(size['original_bytes'])} → {_mb(size['weight_bytes'])}, archive "
        f"{_mb(size['archive_bytes'])}: 1/{size['original_bytes'] / size['archive_bytes']:.1f} of the {original} weights",
        f"  speed   {timings['original_per_s']:.0f} → {timings['compressed_per_s']:.0f} {unit}/s, "
        f"{timings['speedup']:.2f} × PyTorch eager fp32{_elsewhere(timings)}",
        f"          {batches} on {_place(host)}",
    ]
    if peaks := timings.get("peak_memory"):
        names = {"build_bytes": "the build", "worker_bytes": "a worker"}
        lines.append("  memory  " + ", ".join(f"{names[key]} {_mb(peak)}" for key, peak in peaks.items()) + " at most")
    if factor := timings.get("real_time_factor"):
        lines.append(f"          real-time factor {factor['original']:.4f} → {factor['compressed']:.4f}")
    if timings["speedup"] < 1.05:
        lines.append("          nothing is faster on this host: what was won is bytes")
    lines += _assistance(timings.get("assistance"))
    lines += ["", f"  stages  {'none: packaged as it is' if not report['stages'] else ''}".rstrip()]
    speeds = iter(timings.get("stages", []))
    for stage in report["stages"]:
        lines.append(
            f"          {stage['method']}: {stage['parameters']:,} parameters, weights {_mb(stage['weight_bytes'])}"
        )
        shown = tuple(dict.fromkeys((*task.headlines, *task.fine))) if task else ()
        lines += _stage(stage, next(speeds) if stage.get("metrics") else None, shown)
    lines += ["", *_metrics(metrics, report["measured_on"]), *_certainty(report.get("intervals", {}))]
    lines += _gate(report["gate"])
    lines += _parts(report.get("runtimes", []), timings)
    lines += _adapters(report.get("adapters", {}))
    tolerance = report["tolerance"]
    lines.append(
        f"  alike   an answer alone and in a batch differ by at most {tolerance['alone_against_in_a_batch']:.2g} "
        f"(allowed: {tolerance['allowed']:g} of the largest number)"
    )
    for runtime, reason in timings["other_runtimes"].items():
        lines.append(f"  not {runtime}: {reason}")
    return "\n".join(lines)


def _adapters(adapters: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, one in adapters.items():
        alike = f"; answers the stored prompts like {' and '.join(one['alike'])}" if one["alike"] else ""
        what = f"rank {one['rank']} on {one['layers']} layers, {_mb(one['bytes'])}, sha256 {one['sha256'][:16]}…"
        lines.append(f"  adapter {name}: {what}{alike}")
    return lines


def _place(host: Mapping[str, Any]) -> str:
    """The GPU, for an archive that computes on one, and the processor."""
    processor = f"{host['processor']}, {host['cores']} cores, {', '.join(host['isa'])}"
    return f"{host['gpu']}; {processor}" if "gpu" in host else processor


def _elsewhere(timings: Mapping[str, Any]) -> str:
    """What a ratio means whose sides ran on different devices."""
    return " on the CPU" if "gpu" in timings["host"] and timings.get("original_on") == "cpu" else ""


def _runtimes(report: Mapping[str, Any]) -> str:
    names = [part["runtime"] for part in report.get("runtimes", [])]
    if not names:
        return str(report["runtime"])
    if report["recipe"]["serve"]["choose_at_load"]:
        return f"the faster of {' and '.join(names)} where it is loaded"
    return f"{names[0]}, or where that does not load {' or '.join(names[1:])}"


def _parts(parts: Sequence[Mapping[str, Any]], timings: Mapping[str, Any]) -> list[str]:
    """What the archive holds for each of several runtimes."""
    lines = []
    for part in parts:
        name, found = part["runtime"], [f"weights {_mb(part['weight_bytes'])}"]
        found += [f"{metric} {value:.4f}" for metric, value in part["metrics"].items()]
        if name in timings.get("served_per_s", {}):
            found.append(f"{timings['served_per_s'][name]:.0f}/s as it is served here")
        found.append(f"{timings['speedups'][name]:.2f} × PyTorch eager fp32")
        if part is not parts[0]:
            difference = part["tolerance"]["against_the_first_runtime"]
            found.append(f"an answer differs from {parts[0]['runtime']}'s by up to {difference:.2g}")
        lines.append(f"  {name}: {', '.join(found)}")
    return lines


def _assistance(measured: Mapping[str, Any] | None) -> list[str]:
    """The measured speed of speculative decoding."""
    if measured is None:
        return []
    ratios = ", ".join(f"{count}: {ratio:.2f} ×" for count, ratio in measured["speedup_by_streams"].items())
    used = measured["used_up_to_streams"]
    kept = f"used while at most {used} run" if used else "left out"
    return [f"          {measured['kind']}, tokens/s by streams written at once {ratios}: {kept}"]


def _stage(stage: Mapping[str, Any], speed: Mapping[str, Any] | None, shown: Sequence[str]) -> list[str]:
    """A stage's metrics and speed, before → after; its notes below."""
    found = []
    for name in shown:
        before, after = (stage.get("metrics", {}).get(when, {}).get(name) for when in ("before", "after"))
        if after is not None:
            found.append(f"{name} {after:.4f}" if before is None else f"{name} {before:.4f} → {after:.4f}")
    if speed is not None:
        first = f"{speed['before']:.2f} → " if "before" in speed else ""
        found.append(f"eager torch {first}{speed['after']:.2f} × the original")
    lines = [f"            {', '.join(found)}"] if found else []
    said = any(note.startswith("makes nothing faster") for note in stage.get("notes", ()))
    if speed is not None and speed["after"] < 1.05 * speed.get("before", 1.0) and not said:
        lines.append("            makes nothing faster on this host; what was won is bytes, or quality")
    return lines + [f"            {note}" for note in stage.get("notes", ())]


def _metrics(metrics: Mapping[str, Mapping[str, float]], where: Mapping[str, Any]) -> list[str]:
    original, compressed = metrics["original"], metrics["compressed"]
    what = f"{where['examples']} examples"
    if "context" in where:
        sample = f" of {where['of']}" if "of" in where else ""
        what = f"{where['examples']}{sample} windows of {where['context']}"
    lines = [f"  lost    on {where['source']}, {what}, {'original':>21} {'compressed':>12}"]
    for name, value in compressed.items():
        lines.append(f"          {name:<42}{original.get(name, float('nan')):>12.4f} {value:>12.4f}")
    if not compressed:
        lines.append("          nothing could be measured on these examples")
    return lines


def _certainty(intervals: Mapping[str, Any]) -> list[str]:
    """Where perplexity's change lies, and the agreement with the original."""
    if not intervals:
        return []
    low, high = intervals["perplexity"]
    least, most = intervals["agreement"]
    return [
        f"          sure to {intervals['confidence']:.0%}: perplexity changes by {low:+.2%} to {high:+.2%}, "
        f"agreement is {least:.4f} to {most:.4f}"
    ]


def _gate(gate: Mapping[str, Any]) -> list[str]:
    bounds = []
    for kind, bound in gate.items():
        bounds += [f"{kind} {name} {value:g}" for name, value in bound.items()] if isinstance(bound, dict) else []
        bounds += [f"{kind} {bound:g}"] if isinstance(bound, (int, float)) else []
    return [f"  gate    passed: {', '.join(bounds)}" if bounds else "  gate    none"]


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
