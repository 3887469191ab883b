"""A model that is made and trained from interactions alone: `model: new:sasrec`, its sizes and its training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from archiver.compression.retrain.options import Retrain
from archiver.data.interactions import is_number
from archiver.fields import option
from handlers.inputs.items import CATALOG, Catalog


@dataclass(frozen=True)
class Training:
    """How a new model is trained before the stages: by the loop of `retrain`, from labels alone, with dropout."""

    epochs: int = option("integer", 40, minimum=1, maximum=10_000)
    learning_rate: float = option("number", 2e-3, above=0, maximum=1)
    batch_size: int = option("integer", 64, minimum=1, maximum=4096, help="histories, or pieces of long ones")
    dropout: float = option("number", 0.2, minimum=0, maximum=0.9, help="share of each block's outputs that is dropped")
    patience: int | None = option(
        "integer",
        None,
        minimum=1,
        help="epochs without gain before it stops, on each user's last item but one, which is then not learnt from",
    )
    warmup: float = option("number", 0.1, minimum=0, maximum=1, help="share of the steps in which the rate rises")
    weight_decay: float = option("number", 0.0, minimum=0, maximum=1)
    seed: int = option("integer", 0, minimum=0, maximum=2**31, help="of the first weights, of batches and dropout")
    precision: str = option("string", "auto", choices=("auto", "fp32", "bf16"))

    @property
    def retrain(self) -> Retrain:
        """The same as options of `retrain`."""
        return Retrain(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            teacher="none",
            dropout=self.dropout > 0,
            patience=self.patience,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            seed=self.seed,
            precision=self.precision,
        )


@dataclass(frozen=True)
class SasRec:
    """Sizes of a SASRec, and its training."""

    layers: int = option("integer", 2, minimum=1, maximum=64)
    hidden: int = option("integer", 64, minimum=2, maximum=8192, help="width of an item's vector")
    heads: int = option("integer", 2, minimum=1, maximum=256, help="of attention; they divide hidden")
    feed_forward: int = option("integer", 256, minimum=1, maximum=65_536, help="width inside of a feed-forward block")
    max_length: int = option("integer", 128, minimum=12, maximum=100_000, help="items of a history that are looked at")
    train: Training = option("options", Training(), of=Training, help="epochs, learning_rate, batch_size, …")

    def mistakes(self) -> list[str]:
        """What its options say together that cannot work."""
        if self.hidden % self.heads:
            return [f"heads ({self.heads}) must divide hidden ({self.hidden})"]
        return []


def make_sasrec(folder: Path, sizes: SasRec, items: list[str], names: dict[str, str]) -> None:
    """Write an untrained model directory: config.json, model.safetensors, items.json.

    Args:
        folder: exists. items: ids of what becomes the rows of the table. names: of items, by id; {} for none.
    """
    import torch

    from archiver.models.config import quiet
    from handlers.architecture.outputs.sasrec import SasRecConfig, SasRecForNextItem

    config = SasRecConfig(
        num_items=len(items),
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        max_position_embeddings=sizes.max_length,
        dropout=sizes.train.dropout,
    )
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(sizes.train.seed)
        SasRecForNextItem(config).save_pretrained(folder)
    (folder / CATALOG).write_text(catalog_of(items, names).to_json(), encoding="utf-8")


def catalog_of(items: list[str], names: dict[str, str]) -> Catalog:
    """Items in their order, as numbers where all ids are; an item without a name is named by its id."""
    numbers = all(map(is_number, items))
    return Catalog(
        [int(item) if numbers else item for item in items], [names.get(item, item) for item in items] if names else None
    )
