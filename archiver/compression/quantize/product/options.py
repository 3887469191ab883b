"""The options of `quantize: {method: product}`."""

from __future__ import annotations

from dataclasses import dataclass

from archiver.compression.modules import IGNORE_HELP
from archiver.compression.retrain.options import Retrain
from archiver.fields import option


@dataclass(frozen=True)
class Product:
    """Each row as a few codes: it is cut into pieces, and each piece is one of 2^bits that all rows share."""

    splits: int = option("integer", 8, minimum=1, maximum=1024, search=(4, 8, 16), help="pieces of a row, codes for it")
    bits: int = option(
        "integer", 8, minimum=1, maximum=8, search=(5, 6, 8), help="of a code: 2^bits pieces to choose from"
    )
    iterations: int = option("integer", 25, minimum=1, maximum=10_000, help="most rounds of k-means")
    seed: int = option("integer", 0, minimum=0, maximum=2**31, help="of the pieces that k-means starts from")
    aware: Retrain | None = option(
        "options", None, of=Retrain, help="train the shared pieces, the codes stay; with every option of retrain"
    )
    targets: tuple[str, ...] | None = option(
        "globs", None, help="globs over linear layers and tables; default: the table of input embeddings"
    )
    ignore: tuple[str, ...] = option("globs", (), help=IGNORE_HELP)

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        return self.aware is not None

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        return [f"aware: {line}" for line in self.aware.mistakes(bounded)] if self.aware else []
