"""What the model knows of how its weights can be stored: grids, factor pairs, patterns, for the storage codecs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from archiver.host import drop_mapped
from archiver.state.constraints import Mask, state_of
from archiver.storage.codec_choice import WeightLayout

_ROWS = 4096


def layouts_of(model: torch.nn.Module) -> dict[str, WeightLayout]:
    """What is known of the weights that some stage has left structure in.

    Returns: Parameter's name → its layout.
    """
    state = state_of(model)
    found = {}
    for name in dict.fromkeys((*state.constraints, *state.factors)):
        chain = state.constraints.get(name, [])
        grouping = next((item for one in reversed(chain) if (item := one.grouping()) is not None), None)
        n_m = next((one.n_m for one in chain if isinstance(one, Mask) and one.n_m), None)
        product = next((codes for one in reversed(chain) if (codes := one.product()) is not None), None)
        factors = state.factors.get(name)
        if grouping is None and n_m is None and factors is None and product is None:
            continue
        found[f"{name}.weight"] = WeightLayout(
            grouping=None if grouping is None else (_array(grouping[0]), _array(grouping[1]), grouping[2]),
            factors=None if factors is None else (_array(factors[0]), _array(factors[1])),
            n_m=n_m,
            product=None if product is None else (_array(product[0]), _array(product[1])),
        )
    return found


def layouts_by_content(model: torch.nn.Module) -> Mapping[bytes, WeightLayout]:
    """The layouts by the content of their weights, for exporters that lose the names.

    Returns: `content_key` of the weight → its layout.
    """
    found = {}
    for name, layout in layouts_of(model).items():
        found[content_key(_array(model.get_parameter(name)))] = layout
        drop_mapped()
    return found


def layout_for(array: np.ndarray, known: Mapping[bytes, WeightLayout]) -> WeightLayout | None:
    """The layout of the weight whose values an array has.

    Args:
        array: [rows, columns] or transposed; others than float32 matrices have no layout.
        known: as `layouts_by_content` gives them.
    Returns: the layout of the weight, None for an array that is none of them.
    """
    if not known or array.dtype != np.float32 or array.ndim != 2:
        return None
    return known.get(content_key(array)) or known.get(content_key(np.ascontiguousarray(array.T)))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def content_key(array: np.ndarray) -> bytes:
    """A SHA-256 of shape and values; −0.0 counts as 0.0."""
    digest = hashlib.sha256(repr(array.shape).encode())
    rows = np.ascontiguousarray(array).reshape(len(array), -1) if array.ndim and array.size else array.reshape(1, -1)
    for start in range(0, len(rows), _ROWS):  # no second copy of a large one
        digest.update((rows[start : start + _ROWS] + np.float32(0)).data)
    return digest.digest()
