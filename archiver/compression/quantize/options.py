"""Options of what quantizes weights: grids of integers, fixed point, signs, three values, codebooks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from archiver.compression.modules import ALL_HELP, IGNORE_HELP, LINEAR_HELP
from archiver.compression.retrain.options import Retrain
from archiver.fields import option

_AWARE = "retrain with the rounded weights (straight-through gradients), with every option of retrain"
MOST_BITS = 16  # of a fixed-point number
WIDTHS = (8, 6, 4, 3, 2)  # bits of an integer weight: what runtimes keep in 8 or 4, and the archive in as many


@dataclass(frozen=True)
class FixedPointFormat:
    """Sign, `integer` bits before the point and `fraction` bits behind it: −2^i … 2^i − 2^−f in steps of 2^−f."""

    integer: int
    fraction: int

    @property
    def bits(self) -> int:
        """All bits of one number, its sign among them."""
        return 1 + self.integer + self.fraction

    def __str__(self) -> str:
        return f"q{self.integer}.{self.fraction}"


def parse_format(text: Any) -> FixedPointFormat:
    """The format that "q2.5" names (also Q2.5).

    Raises: ValueError for anything else, and beyond 16 bits.
    """
    match = re.fullmatch(r"[qQ](\d{1,2})\.(\d{1,2})", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no fixed-point format")
    found = FixedPointFormat(int(match[1]), int(match[2]))
    if not 2 <= found.bits <= MOST_BITS:
        raise ValueError(f"{text} has {found.bits} bits with its sign; 2 to {MOST_BITS} are allowed")
    return found


def canonical_format(text: Any) -> str:
    """The name of the format as options keep it: "q2.5".

    Raises: ValueError as `parse_format`.
    """
    return str(parse_format(text))


def parse_group_size(value: Any) -> int | str:
    """Weights of one row that share a scale; null or "row": the whole row."""
    if value is None or value == "row":
        return "row"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("a group has at least one weight")
    return value


def parse_binary_scale(value: Any) -> float | str:
    """ "mean", "learned" or a number above 0."""
    if isinstance(value, str) and value in ("mean", "learned"):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError("no scale")
    return float(value)


def parse_rotate(value: Any) -> bool | str:
    """True, False or "auto"."""
    if isinstance(value, bool) or value == "auto":
        return value  # type: ignore[no-any-return]
    raise ValueError("neither of them")


def parse_widths(value: Any) -> tuple[int, ...]:
    """A list of at least two different widths among WIDTHS, returned in rising order."""
    good = isinstance(value, (list, tuple)) and len(set(value)) > 1 and set(value) <= set(WIDTHS)
    if not good or any(isinstance(item, bool) or not isinstance(item, int) for item in value):
        raise ValueError("no list of widths")
    return tuple(sorted(set(value)))


@dataclass(frozen=True)
class DynamicInt8:
    """int8 weights; activations are quantized as they come, with one scale per token where the runtime can."""

    targets: tuple[str, ...] = option("globs", ("*",), help=ALL_HELP)
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)


@dataclass(frozen=True)
class StaticInt8:
    """int8 weights and activations; activation scales are calibrated on training text."""

    targets: tuple[str, ...] = option("globs", ("*",), help=ALL_HELP)
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)
    samples: int = option(
        "integer",
        300,
        minimum=1,
        maximum=100_000,
        search=(100, 300, 1000),
        help="calibration texts, taken from data.train",
    )


@dataclass(frozen=True)
class Mixed:
    """Bits per layer, by how much each layer alone hurts: as few bytes as the allowed loss permits."""

    max_drop: float = option(
        "number", 0.01, minimum=0, maximum=0.99, help="of accuracy (absolute), or of perplexity (relative increase)"
    )
    bits: tuple[int, ...] = option(
        "parsed",
        (2, 3, 4, 8),
        parse=parse_widths,
        says=f"a list of two or more of {', '.join(map(str, sorted(WIDTHS)))}",
        help="widths to choose from",
    )
    texts: int = option("integer", 32, minimum=1, maximum=10_000, help="training texts that sensitivity is measured on")


@dataclass(frozen=True)
class WeightOnly:
    """Integer weights in groups with a scale each; computed in floating point.

    With nothing but bits 8, the runtime's own int8 weights; with any other option the weights themselves are moved onto
    the grid, and stored on it whatever computes.
    """

    bits: int = option("integer", 8, choices=WIDTHS, search=(8, 4, 3), help="bits per weight")
    group_size: int | str | None = option(
        "parsed",
        None,
        parse=parse_group_size,
        says="a number of weights that divides each layer's in_features, or row (null) for whole rows",
        search=(32, 64, 128),
        help="weights of a row with one scale; default: 64 below 8 bits, else the row",
    )
    symmetric: bool | None = option("boolean", None, help="no zero point; default: true at 8 and 4 bits, false below")
    algorithm: str | None = option(
        "string",
        None,
        choices=("rtn", "gptq", "awq", "awq-gptq", "scale-estimation", "autoround"),
        search=("rtn", "gptq", "awq"),
        help="rtn rounds to nearest, the others use data.train",
    )
    act_order: bool | None = option("boolean", None, help="gptq: columns with the largest inputs first (default true)")
    steps: int | None = option(
        "integer", None, minimum=1, maximum=10_000, help="autoround: of each layer (default 200)"
    )
    rotate: bool | str = option(
        "parsed",
        False,
        parse=parse_rotate,
        says="true, false or auto",
        help="turn a decoder's hidden states before, so that no column is much larger; auto: where it can",
    )
    samples: int = option("integer", 128, minimum=1, maximum=100_000, help="calibration texts, taken from data.train")
    mixed: Mixed | None = option("options", None, of=Mixed, help="bits per layer by measured sensitivity")
    aware: Retrain | None = option("options", None, of=Retrain, help=_AWARE)
    targets: tuple[str, ...] | None = option(
        "globs", None, help=LINEAR_HELP + "; with nothing but bits 8, tables and heads too"
    )
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)

    @property
    def in_place(self) -> bool:
        """Whether the weights themselves are quantized, not planned for the runtime's own int8."""
        asked = (self.group_size, self.symmetric, self.algorithm, self.act_order, self.steps, self.mixed, self.aware)
        return self.bits < 8 or bool(self.rotate) or any(value is not None for value in asked)

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        compensates = self.algorithm is not None and self.algorithm != "rtn"
        return compensates or self.mixed is not None or self.aware is not None

    @property
    def learning_steps(self) -> int:
        """Of autoround, in each layer; 0 for the other algorithms."""
        return (self.steps or 200) if self.algorithm == "autoround" else 0

    @property
    def columns_per_group(self) -> int | None:
        """Weights of a row that share a scale; None: all of them."""
        size = self.group_size if self.group_size is not None else ("row" if self.bits == 8 and not self.mixed else 64)
        return None if size == "row" else int(size)

    def is_symmetric(self, bits: int | None = None) -> bool:
        """Whether grids of that many bits (its own when not said) go without a zero point."""
        return self.symmetric if self.symmetric is not None else (bits or self.bits) >= 4

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        found = []
        if self.act_order is not None and self.algorithm not in ("gptq", "awq-gptq"):
            found.append("act_order orders the columns of gptq: add `algorithm: gptq`, or remove act_order")
        if self.steps is not None and self.algorithm != "autoround":
            found.append("steps is about learned rounding: add `algorithm: autoround`, or remove steps")
        if self.mixed is not None and self.bits != 8:
            found.append(f"bits ({self.bits}) and mixed both choose widths: remove bits, or mixed")
        if self.rotate and self.aware is not None:
            found.append(
                "rotate and aware: a turned model cannot learn from the hidden states of the original: remove one of them"
            )
        if self.aware is not None:
            found += [f"aware: {line}" for line in self.aware.mistakes(bounded)]
        return found


@dataclass(frozen=True)
class FixedPoint:
    """Weights as fixed-point numbers: one step for all of them, saturating."""

    format: str = option(
        "parsed",
        "q2.5",
        parse=canonical_format,
        search=("q2.5", "q1.6", "q0.7", "q3.4"),
        says=f"q<integer bits>.<fraction bits> such as q2.5, at most {MOST_BITS} bits with the sign",
    )
    aware: Retrain | None = option("options", None, of=Retrain, help=_AWARE)
    targets: tuple[str, ...] | None = option("globs", None, help=ALL_HELP)
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        return self.aware is not None

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        return [f"aware: {line}" for line in self.aware.mistakes(bounded)] if self.aware else []


@dataclass(frozen=True)
class Binary:
    """Weights as signs: Q(w) = sgn(w)·b."""

    scale: float | str = option(
        "parsed",
        "mean",
        parse=parse_binary_scale,
        says="mean, learned or a number above 0",
        search=("mean", "learned"),
        help="the magnitude b",
    )
    granularity: str = option(
        "string", "channel", choices=("tensor", "channel"), search=("channel", "tensor"), help="one b for what"
    )
    clip: float | None = option(
        "number", None, above=0, maximum=1000, help="aware: no gradient where |w| is above this many b"
    )
    progressive: bool = option("boolean", False, help="aware: layers become signs one after another, the last first")
    aware: Retrain | None = option("options", None, of=Retrain, help=_AWARE)
    targets: tuple[str, ...] | None = option("globs", None, help=LINEAR_HELP)
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        return self.aware is not None

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        found = [f"aware: {line}" for line in self.aware.mistakes(bounded)] if self.aware else []
        asked = {
            "scale: learned": self.scale == "learned",
            "clip": self.clip is not None,
            "progressive": self.progressive,
        }
        if self.aware is None:
            found += [
                f"{key} is about training: add `aware: {{epochs: 2}}`, or remove it" for key in asked if asked[key]
            ]
        return found


@dataclass(frozen=True)
class Ternary:
    """Weights as −a, 0 and a."""

    granularity: str = option(
        "string", "channel", choices=("tensor", "channel"), search=("channel", "tensor"), help="one a for what"
    )
    aware: Retrain | None = option("options", None, of=Retrain, help=_AWARE)
    targets: tuple[str, ...] | None = option("globs", None, help=LINEAR_HELP)
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        return self.aware is not None

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        return [f"aware: {line}" for line in self.aware.mistakes(bounded)] if self.aware else []


@dataclass(frozen=True)
class Codebook:
    """A few shared values for the weights of each tensor, found by k-means; the values can be trained."""

    bits: int = option(
        "integer", 4, minimum=1, maximum=8, search=(3, 4, 5), help="bits of an index: 2^bits values in a codebook"
    )
    granularity: str = option(
        "string", "tensor", choices=("tensor", "group"), search=("tensor", "group"), help="one codebook for what"
    )
    group_size: int | None = option("integer", None, minimum=1, help="rows with one codebook (group); default 64")
    init: str = option("string", "density", choices=("density", "linear", "random"), help="where the values start")
    iterations: int = option("integer", 100, minimum=1, maximum=100_000, help="most rounds of k-means")
    seed: int = option("integer", 0, minimum=0, maximum=2**31, help="of init: random")
    aware: Retrain | None = option("options", None, of=Retrain, help="train the values, with every option of retrain")
    targets: tuple[str, ...] | None = option("globs", None, help=LINEAR_HELP)
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        return self.aware is not None

    @property
    def rows_per_codebook(self) -> int | None:
        """None: all rows of a tensor."""
        return None if self.granularity == "tensor" else self.group_size or 64

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        found = [f"aware: {line}" for line in self.aware.mistakes(bounded)] if self.aware else []
        if self.granularity == "tensor" and self.group_size is not None:
            found.append("group_size is of granularity: group; add that, or remove group_size")
        return found
