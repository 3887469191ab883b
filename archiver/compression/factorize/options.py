"""The options of `factorize`."""

from __future__ import annotations

from dataclasses import dataclass

from archiver.compression.modules import IGNORE_HELP, LINEAR_HELP
from archiver.fields import option

EXECUTE = ("auto", "factored", "recombined")
_SIZES = ("rank", "ratio", "energy")


@dataclass(frozen=True)
class Svd:
    """W ≈ U·diag(d)·Vᵀ. One of rank, ratio and energy, or the stage's own max_drop: the least energy that keeps it."""

    rank: int | None = option("integer", None, minimum=1, help="the same rank for every target")
    ratio: float | None = option(
        "number", None, above=0, maximum=0.9999, search=(0.3, 0.5, 0.7), help="share of a layer's parameters kept"
    )
    energy: float | None = option("number", None, above=0, maximum=0.9999999, help="share of Σd² kept in each layer")
    targets: tuple[str, ...] | None = option("globs", None, help=LINEAR_HELP)
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)
    execute: str = option(
        "string",
        "auto",
        choices=EXECUTE,
        help="factored: two thin layers; recombined: one dense layer, stored as two factors; auto: factored where it "
        "multiplies less",
    )

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        given = [name for name in _SIZES if getattr(self, name) is not None]
        if len(given) > 1:
            return [f"{' and '.join(given)} are given together: each says how much is kept; leave one of them"]
        if given and bounded:
            return []  # the size is said, and the bound only judges it
        if not given and not bounded:
            return [
                "nothing says how much is kept: give rank, ratio or energy, or max_drop (or max_increase), for which "
                "the least energy is searched that keeps it"
            ]
        return []


@dataclass(frozen=True)
class ActivationSvd(Svd):
    """The factors that are nearest on what the layer's inputs are, not on every input: SVD of W·S with S·Sᵀ = XᵀX."""

    samples: int = option(
        "integer",
        300,
        minimum=1,
        maximum=100_000,
        search=(100, 300, 1000),
        help="calibration texts, taken from data.train",
    )
