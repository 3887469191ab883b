"""Options of pruning single weights: how they are scored, how many are removed, when, and how many are regrown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from archiver.compression.modules import IGNORE_HELP, LINEAR_HELP
from archiver.compression.retrain.options import Retrain
from archiver.fields import option

_SPARSITY = "share of the targeted weights that become zero; with regrow it ends at sparsity·(1 − regrow)"


def parse_sparsity(value: Any) -> float:
    """A share above 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError("no sparsity")
    return float(value)


def parse_n_m(value: Any) -> str:
    """ "n:m": n of every m weights of a row stay, 1 ≤ n < m ≤ 32."""
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", value) if isinstance(value, str) else None
    if match is None or not 1 <= int(match[1]) < int(match[2]) <= 32:
        raise ValueError("no pattern")
    return f"{int(match[1])}:{int(match[2])}"


@dataclass(frozen=True)
class ShortRetrain(Retrain):
    """Retraining inside a pruning stage: one epoch unless it says otherwise, since there may be many rounds of it."""

    epochs: int = option("integer", 1, minimum=1, maximum=1000)


@dataclass(frozen=True)
class L1:
    """Importance |w|: the smallest weights become zero. Smaller on disk; dense kernels multiply zeros like any number."""

    sparsity: float | None = option(
        "parsed",
        None,
        parse=parse_sparsity,
        says="a share above 0 and below 1",
        search=(0.3, 0.5, 0.7),
        help=_SPARSITY,
    )
    n_m: str | None = option(
        "parsed", None, parse=parse_n_m, says='a pattern such as "2:4" (quoted), n below m, m at most 32',
        help="n of every m neighbours in a row stay",
    )  # fmt: skip
    scope: str = option(
        "string",
        "global",
        choices=("global", "layer", "row"),
        search=("global", "layer"),
        help="what one threshold is for",
    )
    schedule: str = option("string", "one-shot", choices=("one-shot", "gradual"))
    steps: int = option("integer", 4, minimum=1, maximum=1000, help="gradual: rounds of pruning and retraining")
    regrow: float = option("number", 0.0, minimum=0, maximum=0.9, help="share of the pruned weights that comes back")
    retrain: Retrain | None = option(
        "options",
        None,
        of=ShortRetrain,
        help="gradual: of each round; regrow: of the tuning behind it; default 1 epoch",
    )
    targets: tuple[str, ...] | None = option("globs", None, help=LINEAR_HELP)
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        return self.schedule == "gradual" or self.regrow > 0

    @property
    def tuning(self) -> Retrain:
        """The retraining of each round, and behind regrowth."""
        return self.retrain or ShortRetrain()

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(n, m) of n_m."""
        return tuple(map(int, self.n_m.split(":"))) if self.n_m else None  # type: ignore[return-value]

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        found = []
        given = [name for name in ("sparsity", "n_m") if getattr(self, name) is not None]
        if len(given) > 1:
            found.append("sparsity and n_m both say how many weights go: remove one")
        if not given and not bounded:
            found.append("it does not say how many weights go: set sparsity, n_m, or a bound such as `max_drop: {…}`")
        if self.n_m is not None and (self.schedule == "gradual" or self.regrow > 0):
            found.append("n_m is a fixed pattern: schedule gradual and regrow work with sparsity")
        if not given and (self.schedule == "gradual" or self.regrow > 0):
            found.append("schedule gradual and regrow need a sparsity: the search for one is one-shot")
        if self.retrain is not None and not self.needs_data:
            found.append(
                "retrain is for schedule gradual and regrow: put a stage `- retrain: {…}` behind this one instead"
            )
        if self.retrain is not None:
            found += [f"retrain: {line}" for line in self.retrain.mistakes(bounded)]
        return found


@dataclass(frozen=True)
class Wanda(L1):
    """Importance |w|·‖x‖ of the weight's input over calibration texts, compared within each output row."""

    scope: str = option(
        "string", "row", choices=("global", "layer", "row"), search=("row", "layer"), help="what one threshold is for"
    )
    samples: int = option("integer", 128, minimum=1, maximum=100_000, help="calibration texts, taken from data.train")

    @property
    def needs_data(self) -> bool:
        """It always looks at inputs."""
        return True


@dataclass(frozen=True)
class SparseGpt(Wanda):
    """Importance w²/[H⁻¹]ⱼⱼ; the remaining weights are adjusted to compensate for the removed ones."""

    scope: str = option("string", "layer", choices=("layer", "row"), help="what one threshold is for, in each block")
    damping: float = option(
        "number", 0.01, above=0, maximum=1, search=(0.01, 0.1), help="added to H, as a share of its mean diagonal"
    )
    block: int = option("integer", 128, minimum=1, maximum=4096, help="columns that are scored together")
