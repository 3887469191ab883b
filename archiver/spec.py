"""What a build is asked for: the recipe's dataclasses. Reading and checking them is the room recipe/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archiver.compression import METHODS, Method
from archiver.fields import option


@dataclass(frozen=True)
class DataSpec:
    """Where examples come from.

    train, validation: a file (Path), "hub://name[/config]:split", "embedded:cpython:train|validation", or None
    columns: {"text" | "text_pair" | "label" | …: column name, or position in a file without header}; {} for the default
    context: tokens per window of a language model's text
    windows: of its validation text, all of the first 200, or as many as it takes to be sure ("auto", the default)
    items: a file of the names of items; min_count: interactions below which a user or an item is left out
    """

    train: Path | str | None = None
    validation: Path | str | None = None
    columns: Mapping[str, str | int] = field(default_factory=dict)
    context: int | None = option("integer", None, minimum=2, maximum=100_000, help="256 where the model has as many")
    windows: str | None = option("string", None, choices=("auto", "all"))
    items: Path | None = None
    min_count: int | None = option(
        "integer", None, minimum=1, maximum=1_000_000, help="rarer users and items are left out"
    )


@dataclass(frozen=True)
class Stage:
    """One compression stage: METHODS[verb][method] with its options dataclass.

    max_drop: {metric: fraction} against the original, measured after this stage and before later ones
    max_increase: {metric: fraction} relative to the original, likewise, for metrics that are better when lower
    measure: the metrics and the eager speed after this stage are measured for the report, with bounds or without
    """

    verb: str
    method: str
    options: Any
    max_drop: Mapping[str, float] = field(default_factory=dict)
    max_increase: Mapping[str, float] = field(default_factory=dict)
    measure: bool = False

    @property
    def bounds(self) -> GateSpec | None:
        """The stage's own bounds in the gate's form; None where it has none."""
        if not self.max_drop and not self.max_increase:
            return None
        return GateSpec(max_drop=self.max_drop, max_increase=self.max_increase)

    @property
    def label(self) -> str:
        """How reports name the stage: "quantize/static-int8", "retrain"."""
        return self.verb if self.verb == self.method else f"{self.verb}/{self.method}"

    @property
    def needs_data(self) -> bool:
        """Whether it cannot work without data.train."""
        return self.entry.needs_data or getattr(self.options, "needs_data", False)

    @property
    def entry(self) -> Method:
        """The stage's entry of METHODS."""
        return METHODS[self.verb][self.method]


@dataclass(frozen=True)
class GateSpec:
    """Bounds; one that is missed, or cannot be measured, means no archive.

    max_drop: {metric: fraction}, absolute, against the original fp32 model on validation (0.01 = one point)
    max_increase: {metric: fraction}, relative to the original; min: {metric: floor}
    min_speedup: sentences/s against PyTorch eager fp32; max_size_mb: of the archive, in 10^6 bytes
    """

    max_drop: Mapping[str, float] = field(default_factory=dict)
    max_increase: Mapping[str, float] = field(default_factory=dict)
    min: Mapping[str, float] = field(default_factory=dict)
    min_speedup: float | None = option("number", None, above=0, maximum=1000, help="times PyTorch eager fp32")
    max_size_mb: float | None = option("number", None, above=0, help="of the archive, 10^6 bytes")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that some bound needs, each once."""
        return tuple(dict.fromkeys([*self.max_drop, *self.max_increase, *self.min]))


def _several_names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ValueError("no list of names")
    if len(value) < 2 or len(set(value)) < len(value):
        raise ValueError("fewer than two names, or one of them twice")
    return tuple(value)


@dataclass(frozen=True)
class ServeSpec:
    """How the archive is served.

    max_batch_delay_ms: of recipes from when TorchServe made the batches; nothing waits for company any more.
    adapters: {name: folder of a LoRA adapter as peft saves it}
    """

    runtime: str = option("string", "auto", help="auto, or a name from RUNTIMES")
    runtimes: tuple[str, ...] = option(
        "parsed",
        (),
        parse=_several_names,
        says="a list of at least two different runtimes",
        help="all of them go into the archive; the fastest on the host that it lands on serves",
    )
    choose_at_load: bool = option("boolean", True, help="false: the first of runtimes, without a measurement")
    device: str = option("string", "cpu", choices=("cpu", "cuda"))
    workers: int | str = option("integer", "auto", choices=("auto",), minimum=1, maximum=1024)
    batch_size: int = option("integer", 32, minimum=1, maximum=4096, help="inputs that run together at most")
    max_batch_delay_ms: int = option("integer", 2, minimum=1, maximum=60_000)
    max_length: int = option("integer", 128, minimum=4, maximum=1_000_000, help="tokens, special ones included")
    max_inputs: int = option("integer", 64, minimum=1, maximum=65_536, help="most inputs in one request")
    max_pixels: int = option(
        "integer", 32_000_000, minimum=1, maximum=1_000_000_000, help="of one image, as it is sent"
    )
    examples: int | Path = option("integer", 4, minimum=1, maximum=64, help="or a file of texts")
    # What follows is for tasks that name these keys in their `serve_keys`.
    precision: str = option(
        "string", "f32", choices=("auto", "f32", "bf16"), help="of what is not quantized; bf16 on OpenVINO alone"
    )
    max_seconds: float | str = option(
        "number", "auto", choices=("auto",), above=0, maximum=86_400, help="of sound in a request"
    )
    skip_silence: bool = option("boolean", False, help="parts of a recording where nobody speaks are not run")
    chunk_seconds: float = option("number", 30.0, minimum=1, maximum=600, help="of sound in one pass; longer is cut")
    max_queue: int = option("integer", 128, minimum=0, maximum=100_000, help="requests that may wait for a place")
    deadline_s: float = option(
        "number", 120.0, above=0, maximum=86_400, help="a request's text ends here at the latest"
    )
    kv_cache: str = option("string", "u8", choices=("u8", "bf16", "f16", "f32"), help="precision of keys and values")
    cache_mb: int | str = option("integer", "auto", choices=("auto",), minimum=1, maximum=900_000)
    draft: Path | None = None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    prompt_lookup: bool = option("boolean", False, help="guess the next tokens from the prompt, where that is faster")
    assistant_tokens: int = option("integer", 4, minimum=1, maximum=64, help="most tokens guessed at once")


@dataclass(frozen=True)
class NewModel:
    """A model that is made and trained from data.train before the stages.

    family: as the task's `new_models` names it; options: sizes and training, an instance of the family's dataclass
    keep: where the trained model directory is left, beside going into the archive; None: nowhere
    """

    family: str
    options: Any
    keep: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: every file it names existed when it was read.

    model: a directory (Path), a hub id "org/name[@revision]", "embedded:NAME", or a NewModel
    gate: None where the recipe has none; base_dir: the folder its relative paths are relative to
    """

    name: str
    version: str
    task: str
    model: Path | str | NewModel
    data: DataSpec = DataSpec()
    compress: tuple[Stage, ...] = ()
    gate: GateSpec | None = None
    serve: ServeSpec = ServeSpec()
    base_dir: Path = Path()

    @property
    def final_bounds(self) -> list[tuple[str, GateSpec]]:
        """What the archive must keep: the gate, named "", and under their labels the quantize stages' own bounds."""
        found = [("", self.gate)] if self.gate is not None else []
        own = [(stage.label, stage.bounds) for stage in self.compress if stage.verb == "quantize"]
        return found + [(label, bounds) for label, bounds in own if bounds is not None]
