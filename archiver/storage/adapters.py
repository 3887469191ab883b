"""LoRA adapters, the writing side; the format's owner is handlers.storage.adapters, which reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from archiver.storage.packing import encode_all, write_encoded
from handlers.storage.adapters import ADAPTERS

Loaded = Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]


def write_adapters(folder: Path, adapters: Loaded, places: Mapping[str, Any]) -> None:
    """Write adapters.safetensors into an archive's folder.

    Args:
        adapters: name → layer → (A [rank, in], B [out, rank] with the scale), in the order of their numbers.
        places: layer → where the runtime finds it, as JSON.
    """
    layers: dict[str, list[int]] = {}
    tensors: dict[str, np.ndarray] = {}
    for place, own in enumerate(adapters.values()):
        for layer, (a, b) in own.items():
            layers.setdefault(layer, []).append(place)
            tensors |= {f"{place}/{layer}/A": a, f"{place}/{layer}/B": b}
    described = {"names": list(adapters), "layers": layers, "places": dict(places)}
    write_encoded(folder / ADAPTERS, encode_all(tensors), {"adapters": described})
