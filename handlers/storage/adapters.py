"""LoRA adapters of an archive: for a text that asks for one, y = W·x + B·(A·x) at the layers that it was trained for.

`adapters.safetensors` is a packed file. Its description holds `adapters: {"names": […], "layers": {layer: [place of an
adapter among the names, …]}, "places": {layer: …}}`; the tensors are `PLACE/LAYER/A` [rank, in] and `PLACE/LAYER/B`
[out, rank], with the adapter's scale in B. `places` is the runtime's own: where in its graph a layer lies.
Source: Hu et al. 2021, LoRA, arXiv:2106.09685; several adapters in one pass: Chen et al. 2023, Punica, arXiv:2310.18547.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handlers.errors import UnsoundArchive
from handlers.storage.packed import load_packed, read_description

ADAPTERS = "adapters.safetensors"
NONE = 0  # the number of a text without an adapter; the first adapter's is 1


@dataclass(frozen=True)
class AdaptedLayer:
    """What all adapters add to one linear layer's output, side by side.

    Args:
        a: [ranks of all, in] float32. b: [out, ranks of all] float32. owners: [ranks of all] int64, the number of the
            adapter that each row of `a` belongs to.
    """

    a: np.ndarray
    b: np.ndarray
    owners: np.ndarray

    def masks(self, count: int) -> np.ndarray:
        """[count + 1, ranks of all] float32: for each number of an adapter 1 where a row is its own, else 0."""
        masks: np.ndarray = (self.owners == np.arange(count + 1)[:, None]).astype(np.float32)
        return masks


@dataclass(frozen=True)
class Adapters:
    """Args: names: in the order of their numbers, from 1. layers: by a layer's name. places: see above."""

    names: tuple[str, ...]
    layers: Mapping[str, AdaptedLayer]
    places: Mapping[str, Any]


def side_by_side(adapters: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> dict[str, AdaptedLayer]:
    """Adapters by layer.

    Args:
        adapters: name → layer → (A, B). The order of the names numbers them.
    """
    layers: dict[str, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    for number, own in enumerate(adapters.values(), 1):
        for layer, (a, b) in own.items():
            layers.setdefault(layer, []).append((number, a, b))
    return {
        layer: AdaptedLayer(
            np.concatenate([a for _, a, _ in parts]),
            np.concatenate([b for _, _, b in parts], axis=1),
            np.concatenate([np.full(len(a), number, np.int64) for number, a, _ in parts]),
        )
        for layer, parts in layers.items()
    }


def read_adapters(path: Path) -> Adapters:
    """The adapters of an extracted archive.

    Raises: UnsoundArchive where the file is malformed.
    """
    described = read_description(path).get("adapters")
    try:
        names, layers, places = (described[key] for key in ("names", "layers", "places"))  # type: ignore[index]
        tensors = load_packed(path)
        found = {
            name: {
                layer: (tensors[f"{place}/{layer}/A"], tensors[f"{place}/{layer}/B"])
                for layer, owners in layers.items()
                if place in owners
            }
            for place, name in enumerate(names)
        }
        return Adapters(tuple(names), side_by_side(found), places)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UnsoundArchive(f"{path.name} does not describe adapters ({error!r}): rebuild the archive") from error
