"""What OpenVINO's CPU plugin is told on this host, for graphs that are run in one pass."""

from collections.abc import Mapping
from typing import Any

from handlers.cpu import BF16_ISA, has_int8, host_isa


def plugin_config(spec: Mapping[str, Any], threads: int, streams: int = 1) -> dict[str, Any]:
    """The archive's own settings, and what this processor needs.

    Args:
        spec: serving.json's `session`: config, the archive's settings; int8, whether it computes with integers.
        threads: for one run. streams: runs at once.
    """
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads * streams,
        # A stream for each run at once. Pinning would put every worker on core 0.
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,
        **spec.get("config", {}),
    }
    if config.get("INFERENCE_PRECISION_HINT") == "bf16" and not BF16_ISA & set(host_isa()):
        config["INFERENCE_PRECISION_HINT"] = "f32"  # this processor would only imitate it, and slowly
    if spec.get("int8") and not has_int8():
        # x86 without VNNI adds pairs of u8 × s8 products in 16 bits, where they overflow without a word. So activations
        # are rounded where the graph says so, and multiplied as those of a weight-only archive are.
        config["LP_TRANSFORMS_MODE"] = "NO"
    return config
