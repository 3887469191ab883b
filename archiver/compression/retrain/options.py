"""Options of retraining, alone or inside another stage (`aware: {…}`, `retrain: {…}`)."""

from __future__ import annotations

from dataclasses import dataclass

from archiver.fields import option


@dataclass(frozen=True)
class Distill:
    """Weights of the distillation losses beside the labels' loss."""

    logits: float = option("number", 1.0, minimum=0, maximum=1000, help="softened outputs (vectors for embeddings)")
    hidden: float = option("number", 10.0, minimum=0, maximum=1000, help="hidden states behind each kept layer")


@dataclass(frozen=True)
class Retrain:
    """Train the compressed model on data.train; masks, sharing and quantizers of earlier stages hold."""

    epochs: int = option("integer", 2, minimum=1, maximum=1000)
    learning_rate: float = option("number", 1e-4, above=0, maximum=1)
    batch_size: int = option("integer", 32, minimum=1, maximum=4096)
    teacher: str = option("string", "original", choices=("original", "none"))
    labels: float = option("number", 1.0, minimum=0, maximum=1000, help="weight of the labels' own loss")
    distill: Distill = option("options", Distill(), of=Distill, help="weights of the losses against the teacher")
    temperature: float = option("number", 2.0, above=0, maximum=100, help="softens the outputs that are compared")
    patience: int | None = option("integer", None, minimum=1, help="epochs without gain on validation before it stops")
    warmup: float = option("number", 0.1, minimum=0, maximum=1, help="share of the steps in which the rate rises")
    weight_decay: float = option("number", 0.0, minimum=0, maximum=1)
    dropout: bool = option("boolean", False, help="the model's own dropout, for long trainings without a teacher")
    gradient_checkpointing: bool = option(
        "boolean", False, help="keep of each layer its inputs alone and run it again backwards: less memory, more time"
    )
    seed: int = option("integer", 0, minimum=0, maximum=2**31)
    precision: str = option(
        "string", "auto", choices=("auto", "fp32", "bf16"), help="bf16 where the host is fast in it"
    )

    def mistakes(self, bounded: bool) -> list[str]:
        """What its options say together that cannot work."""
        learns = self.labels > 0 or (self.teacher != "none" and (self.distill.logits > 0 or self.distill.hidden > 0))
        found = [] if learns else ["labels and distill are all 0 (or teacher is none): there is nothing to learn from"]
        if self.dropout and self.gradient_checkpointing:
            found.append("gradient_checkpointing runs layers again, and with dropout they would drop others: set one")
        return found


@dataclass(frozen=True)
class Layerwise:
    """Teach each layer by itself to give what the original gives there; masks and quantizers of earlier stages hold."""

    samples: int = option("integer", 128, minimum=1, maximum=100_000, help="texts, taken from data.train")
    steps: int = option("integer", 100, minimum=1, maximum=100_000, help="of each layer, over some 2000 tokens each")
    learning_rate: float = option("number", 5e-4, above=0, maximum=1)
    warmup: float = option("number", 0.1, minimum=0, maximum=1, help="share of the steps in which the rate rises")
    seed: int = option("integer", 0, minimum=0, maximum=2**31)
    precision: str = option(
        "string", "auto", choices=("auto", "fp32", "bf16"), help="bf16 where the host is fast in it"
    )

    @property
    def learning_steps(self) -> int:
        """In each layer."""
        return self.steps
