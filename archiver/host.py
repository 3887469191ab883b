"""The machine that a measurement was taken on: processor, cores and instruction sets, no host name."""

import platform
from pathlib import Path
from typing import Any

from handlers.cpu import container_cores, host_isa


def describe_host() -> dict[str, Any]:
    """Processor, cores of the container, and the instruction sets that fast kernels look for."""
    return {"processor": _processor(), "cores": container_cores(), "isa": host_isa(), "system": platform.system()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
