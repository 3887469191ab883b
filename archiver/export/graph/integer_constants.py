"""fp32 constants of an OpenVINO graph → the integers they stand for, in the form that the CPU multiplies as integers.

A weight w = (q − zero)·scale becomes Constant (i4, u4, i8, u8) → Convert → [Subtract zero] → Multiply scale → [Reshape],
as NNCF writes it, but in float32 throughout: NNCF's float16 product would round what is exact here, and the CPU plugin
fuses the one into FullyConnected and Gather as well as the other (seen with OpenVINO 2026.4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from archiver.host import drop_mapped
from archiver.state.plan import QuantizationPlan
from archiver.storage.codec_choice import WeightLayout
from archiver.storage.int8_rows import quantize_rows
from archiver.storage.layouts import content_key, layouts_by_content

_ROWS = 4096  # of a weight that are worked on at once


@dataclass(frozen=True)
class Integers:
    """A weight [rows, columns] as levels·scale, in groups along its columns.

    levels: q − zero, [rows, groups, group size] int16; scale, zero: [rows, groups, 1] float32 and int16; bits: 4 or 8
    """

    levels: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bits: int

    def values(self) -> np.ndarray:
        """The weight, [rows, columns] float32."""
        values: np.ndarray = self.levels * self.scale
        return values.reshape(len(values), -1)


def put_integers(graph: Any, model: torch.nn.Module, plan: QuantizationPlan | None) -> None:
    """Replace the constants of `graph` (an openvino.Model, exported from `model`) that are integers, in place.

    What lies on a grid keeps its values exactly. The plan's weights become int8 rows, as in the torch runtime. A constant
    that several operations use stays one.
    """
    from openvino import opset13

    make = _makers(model, plan)
    done: dict[bytes, Any] = {}
    for constant in graph.get_ordered_ops():
        if constant.get_type_name() != "Constant" or not _is_weight(constant):
            continue
        key = content_key(constant.data)
        if key in make and key not in done:
            found = make[key](constant.data)
            if found is not None:
                done[key] = decompression(found) if _computable(found) else opset13.constant(found.values())
        drop_mapped()
        if key not in done:
            continue
        for place in constant.output(0).get_target_inputs():
            place.replace_source_output(done[key].output(0))


def _is_weight(constant: Any) -> bool:
    return len(constant.shape) == 2 and constant.get_element_type().get_type_name() == "f32"


def _makers(
    model: torch.nn.Module, plan: QuantizationPlan | None
) -> dict[bytes, Callable[[np.ndarray], Integers | None]]:
    """By the content of a weight: what makes integers of it."""

    def of_grid(layout: WeightLayout) -> Callable[[np.ndarray], Integers | None]:
        return lambda weight: on_grid(weight, layout)

    make = {key: of_grid(layout) for key, layout in layouts_by_content(model).items()}
    for name in (*plan.linears, *plan.embeddings) if plan else ():
        make[content_key(model.get_parameter(f"{name}.weight").detach().cpu().numpy())] = as_rows
        drop_mapped()
    return make


def as_rows(weight: np.ndarray) -> Integers:
    """Symmetric int8 rows of any weight: see int8_rows. A large one is worked through in parts of its rows."""
    levels, scale = np.empty(weight.shape, np.int16), np.empty((len(weight), 1), np.float32)
    for start in range(0, len(weight), _ROWS):
        part = slice(start, start + _ROWS)
        q, scale[part] = (found.numpy() for found in quantize_rows(torch.tensor(weight[part])))
        levels[part] = q
    zero = np.zeros((len(weight), 1, 1), np.int16)
    return Integers(levels[:, None], scale[:, None], zero, 8)


def planned_modules(model: torch.nn.Module, plan: QuantizationPlan | None) -> list[torch.nn.Module]:
    """The modules whose weight `put_integers` makes int8 rows: those that the plan names, and those with their values."""
    names = (*plan.linears, *plan.embeddings) if plan else ()
    planned = {id(weight): weight for weight in (model.get_parameter(f"{name}.weight") for name in names)}
    found = []
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.ndim != 2:
            continue
        if id(weight) in planned or any(_equal(weight, other) for other in planned.values()):
            found.append(module)
            drop_mapped()
    return found


@contextlib.contextmanager
def with_int8_rows(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Inside, these modules compute with what int8 rows of their weights stand for; one weight at a time."""
    hooks: list[Any] = []
    for module in modules:
        put = _Rounded()
        hooks.append(module.register_forward_pre_hook(put.round))
        # Before those hooks that were there: a model whose weights lie in files takes back what it filled in.
        hooks.append(module.register_forward_hook(put.back, always_call=True, prepend=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Rounded:
    """A module's weight on int8 rows while the module runs."""

    def __init__(self) -> None:
        self.weight: torch.nn.Parameter | None = None

    def round(self, module: torch.nn.Module, _: object) -> None:
        self.weight = module.get_parameter("weight")
        q, scale = quantize_rows(self.weight)
        module._parameters["weight"] = torch.nn.Parameter(q.float().mul_(scale), requires_grad=False)

    def back(self, module: torch.nn.Module, *_: object) -> None:
        if self.weight is not None:
            module._parameters["weight"], self.weight = self.weight, None


def _equal(weight: torch.Tensor, other: torch.Tensor) -> bool:
    return weight.shape == other.shape and torch.equal(weight, other)


def on_grid(weight: np.ndarray, layout: WeightLayout) -> Integers | None:
    """The integers of a weight whose grid is known; None when it is not exactly on a grid of at most 8 bits."""
    if layout.grouping is None or layout.grouping[2] > 8:
        return None
    scale, zeros, bits = layout.grouping
    scale = np.asarray(scale, np.float32)[..., None]
    zero = np.zeros(scale.shape, np.int16) if zeros is None else np.asarray(zeros).astype(np.int16)[..., None]
    rows, groups, _ = scale.shape
    if rows != len(weight) or weight.shape[1] % groups:
        return None
    levels = np.rint(weight.reshape(rows, groups, -1) / scale)
    if not np.isfinite(levels).all() or np.abs(levels).max(initial=0) > 255:
        return None
    found = Integers(levels.astype(np.int16), scale, zero, 4 if bits <= 4 else 8)
    fits = _fits_signed(found) or _within(found.levels + zero, 0, 2**found.bits - 1)
    return found if fits and np.array_equal(found.values(), weight) else None


def _computable(integers: Integers) -> bool:
    """Whether the CPU plugin multiplies by such groups at all.

    OpenVINO 2026.4 gives wrong numbers, or NaN, for groups and rows of an odd width: with 4 bits always, with 8 in bf16.
    """
    return bool(integers.levels.shape[2] % 2 == 0)


def decompression(integers: Integers) -> Any:
    """The openvino node [rows, columns] float32 that computes the weight.

    Signed where every q − zero fits, which needs no zero point; unsigned else.
    """
    import openvino as ov
    from openvino import opset13

    rows, groups, size = integers.levels.shape
    shape, of_group = ([rows, groups, size], [rows, groups, 1]) if groups > 1 else ([rows, size], [rows, 1])
    if _fits_signed(integers):
        node = opset13.convert(_constant(integers.levels.reshape(shape), f"i{integers.bits}"), ov.Type.f32)
    else:
        q = integers.levels + integers.zero
        node = opset13.convert(_constant(q.reshape(shape), f"u{integers.bits}"), ov.Type.f32)
        zero = _constant(integers.zero.reshape(of_group), f"u{integers.bits}")
        node = opset13.subtract(node, opset13.convert(zero, ov.Type.f32))
    scale = integers.scale.reshape(of_group)
    half = np.clip(scale, -65504, 65504).astype(np.float16)
    exact = np.array_equal(half.astype(np.float32), scale)
    factor = opset13.convert(opset13.constant(half), ov.Type.f32) if exact else opset13.constant(scale)
    node = opset13.multiply(node, factor)
    if groups > 1:
        node = opset13.reshape(node, opset13.constant(np.array([rows, groups * size], np.int64)), special_zero=False)
    return node


def _fits_signed(integers: Integers) -> bool:
    limit = 2 ** (integers.bits - 1)
    return _within(integers.levels, -limit, limit - 1)


def _within(values: np.ndarray, low: int, high: int) -> bool:
    return bool((values >= low).all() and (values <= high).all())


def _constant(values: np.ndarray, kind: str) -> Any:
    """A constant of openvino's type `kind`: i8, u8, or i4, u4 of which two lie in a byte, the first in its low half."""
    import openvino as ov
    from openvino import opset13

    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(list(values.shape)))
    flat = values.reshape(-1).astype(np.uint8)  # two's complement where it is negative
    if kind.endswith("4"):
        pairs = np.append(flat & 15, np.zeros(flat.size % 2, np.uint8)).reshape(-1, 2)
        flat = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8)
    tensor.data.reshape(-1).view(np.uint8)[:] = flat
    return opset13.constant(tensor)
