"""Options of what changes a model's shapes: cutting heads, neurons and layers, and sharing layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archiver.fields import option

_SHARE = "a share from above 0 to below 1 (of what is removed)"


def parse_share(value: Any) -> float:
    """A share that is removed: above 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError("no share")
    return float(value)


def parse_layers(value: Any) -> float | tuple[int, ...]:
    """A share that is removed, or the indices that are kept: at least one, each once, in rising order."""
    if not isinstance(value, (list, tuple)):
        return parse_share(value)
    whole = all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    if not value or not whole or list(value) != sorted(set(value)):
        raise ValueError("no list of layers")
    return tuple(value)


@dataclass(frozen=True)
class Structured:
    """Whole attention heads, feed-forward neurons and layers are cut out: shapes shrink, every runtime is faster."""

    heads: float | None = option(
        "parsed", None, parse=parse_share, says=_SHARE, search=(0.33, 0.5), help="share of the heads removed"
    )
    neurons: float | None = option(
        "parsed", None, parse=parse_share, says=_SHARE, search=(0.25, 0.5, 0.67), help="share of the neurons removed"
    )
    layers: float | tuple[int, ...] | None = option(
        "parsed",
        None,
        parse=parse_layers,
        says=f"{_SHARE}, or the list of layers that stay, from 0, in rising order",
        search=(0.33, 0.5),
        help="share of the layers removed, or the list of those kept",
    )
    importance: str = option("string", "taylor", choices=("taylor", "magnitude", "activation", "surgeon"))
    scope: str = option(
        "string", "layer", choices=("layer", "global"), help="the share holds in each layer, or overall"
    )
    compensate: bool = option(
        "boolean",
        False,
        help="what reads heads and neurons is refitted to those that stay, by least squares over the same texts",
    )
    samples: int = option("integer", 300, minimum=1, maximum=100_000, help="training texts that importance is seen on")

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        listed = isinstance(self.layers, tuple) and self.heads is None and self.neurons is None
        return (self.importance != "magnitude" and not listed) or self.compensate

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        if self.heads is None and self.neurons is None and self.layers is None:
            return ["it cuts nothing: set heads, neurons or layers"]
        if self.compensate and self.heads is None and self.neurons is None:
            return ["compensate is for heads and neurons: a layer that is dropped has nothing that reads it alone"]
        if self.importance == "surgeon" and isinstance(self.layers, float):
            return [
                "importance surgeon is of heads and neurons: list the layers that stay, or drop them in a stage before"
            ]
        return []


def parse_groups(value: Any) -> int | tuple[tuple[int, ...], ...]:
    """A number of groups, or lists of layer indices that share; whether they are all there, the model says."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if (
        isinstance(value, (list, tuple))
        and value
        and all(isinstance(group, (list, tuple)) and group for group in value)
    ):
        flat = [item for group in value for item in group]
        if all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in flat):
            return tuple(tuple(group) for group in value)
    raise ValueError("no groups")


@dataclass(frozen=True)
class ShareLayers:
    """Several layers get one set of weights: smaller, not faster."""

    groups: int | tuple[tuple[int, ...], ...] = option(
        "parsed",
        3,
        parse=parse_groups,
        says="a number of groups, or a list of lists of layers such as [[0, 1], [2, 3]]",
        search=(2, 3),
        help="how many sets of weights, each for as many neighbours; or which layers share",
    )
    init: str = option(
        "string", "mean", choices=("mean", "first"), search=("mean", "first"), help="what a group's weights start from"
    )
