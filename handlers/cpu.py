"""How many cores this process may use, and what their instruction sets are."""

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# One of these makes int8 products faster than fp32 ones (names as in /proc/cpuinfo).
INT8_ISA = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
BF16_ISA = {"avx512_bf16", "amx_bf16"}  # x86 alone: elsewhere nothing was tried
# What the kernels of ONNX Runtime and OpenVINO look for.
FAST_ISA = {"avx2", "avx512f", "sve"} | INT8_ISA | BF16_ISA


def container_cores(root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc")) -> int:
    """Cores of the container, at least 1: the smaller of the affinity mask and the cgroup's CPU quota, rounded up.

    `os.cpu_count()` tells the host's cores, and a runtime that believes it starts as many threads.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in (_quota_v2(root, proc), _quota_v1(root)) if quota is not None]
    return max(1, min([available, *(-(-int(quota * 1000) // 1000) for quota in quotas)]))


def _quota_v2(root: Path, proc: Path) -> float | None:
    """The tightest `cpu.max` from this process's cgroup up to the root (cgroup v2), in cores."""
    try:
        own = next(line[3:] for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        own = "/"
    folder = root / own.strip().lstrip("/")
    quotas = []
    for place in (folder, *folder.parents):
        with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or none of a kernel's making: no quota
            quota, period = (place / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        if place == root:
            break
    return min(quotas, default=None)


def _quota_v1(root: Path) -> float | None:
    for name in ("cpu", "cpu,cpuacct"):
        try:
            quota = int((root / name / "cpu.cfs_quota_us").read_text())
            period = int((root / name / "cpu.cfs_period_us").read_text())
        except (OSError, ValueError):
            continue
        return quota / period if quota > 0 and period > 0 else None
    return None


def threads_per_worker(workers: int | None) -> int:
    """Threads for one of `workers` workers, so that together they fill the container and no more.

    None: TorchServe starts one worker per core, so each gets one thread. The environment variable MARPRESS_THREADS
    overrides (for a server whose worker count is set from outside).
    """
    override = os.environ.get("MARPRESS_THREADS", "")
    if override.isdigit() and int(override) > 0:
        return int(override)
    cores = container_cores()
    return max(1, cores // (workers or cores))


def host_isa(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Which of FAST_ISA this host has, sorted; empty where /proc/cpuinfo is not to be read."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return sorted(FAST_ISA & set(flags))


def has_int8() -> bool:
    """Whether this host has one of INT8_ISA, or does not tell what it has."""
    here = set(host_isa())
    return not here or bool(INT8_ISA & here)


def host_warnings(spec: Mapping[str, Any], build_isa: Collection[str]) -> list[str]:
    """What this host lacks of the instructions that the choice of the archive's runtime relied on.

    Args:
        spec: serving.json's `session`; `int8` says whether it computes int8 products, `bf16` whether it computes in that.
        build_isa: the build host's instruction sets, as timings.json has them.
    Returns: a sentence when such products were fast there and are not here, else nothing.
    """
    here = set(host_isa())
    if spec.get("bf16") and here and not BF16_ISA & here:
        return [
            f"this archive is for hosts that are fast in bf16 ({', '.join(sorted(BF16_ISA))}); this one has none of that "
            "and computes in fp32: it is slower than the archive's report says"
        ]
    relied_on = INT8_ISA & set(build_isa)
    if spec.get("int8") and relied_on and not has_int8():
        return [
            f"this archive's runtime was chosen on a host with int8 dot products ({', '.join(sorted(relied_on))}); "
            "this host has none of them: it is slower than the archive's report says. Its answers are checked against the "
            "stored ones before it serves"
        ]
    return []
