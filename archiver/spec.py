"""The recipe: what to compress, how, what it may cost and how it is served. Typed, YAML in and plain data out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archiver.compression import METHODS, Method
from archiver.errors import RecipeError
from archiver.fields import option
from archiver.recipe.yaml_tree import MAX_BYTES, Node, Problems, apply_override, read_yaml


@dataclass(frozen=True)
class DataSpec:
    """Where examples come from.

    train, validation: a file (Path), "hub://name[/config]:split", "embedded:cpython:train|validation", or None
    columns: {"text" | "text_pair" | "label": column name, or position in a file without header}; {} for the default
    context: tokens per window of a language model's text
    """

    train: Path | str | None = None
    validation: Path | str | None = None
    columns: Mapping[str, str | int] = field(default_factory=dict)
    context: int | None = option("integer", None, minimum=2, maximum=100_000, help="256 where the model has as many")


@dataclass(frozen=True)
class Stage:
    """One compression stage: METHODS[verb][method] with its options dataclass.

    max_drop: {metric: fraction} against the original, measured after this stage and before later ones
    max_increase: {metric: fraction} relative to the original, likewise, for metrics that are better when lower
    """

    verb: str
    method: str
    options: Any
    max_drop: Mapping[str, float] = field(default_factory=dict)
    max_increase: Mapping[str, float] = field(default_factory=dict)

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


@dataclass(frozen=True)
class ServeSpec:
    """How the archive is served. `max_batch_delay_ms` starts at 1: TorchServe takes 0 for 100 ms."""

    runtime: str = option("string", "auto", choices=("auto", "onnxruntime", "openvino", "torch", "vllm"))
    device: str = option("string", "cpu", choices=("cpu", "cuda"))
    workers: int | str = option("integer", "auto", choices=("auto",), minimum=1, maximum=1024)
    batch_size: int = option("integer", 32, minimum=1, maximum=4096, help="requests TorchServe hands over at once")
    max_batch_delay_ms: int = option("integer", 2, minimum=1, maximum=60_000)
    max_length: int = option("integer", 128, minimum=4, maximum=1_000_000, help="tokens, special ones included")
    max_inputs: int = option("integer", 64, minimum=1, maximum=65_536, help="most inputs in one request")
    examples: int | Path = option("integer", 4, minimum=1, maximum=64, help="or a file of texts")
    # What follows is for text-generation.
    max_queue: int = option("integer", 128, minimum=0, maximum=100_000, help="prompts that may wait for a place")
    deadline_s: float = option(
        "number", 120.0, above=0, maximum=86_400, help="a request's text ends here at the latest"
    )
    kv_cache: str = option("string", "u8", choices=("u8", "bf16", "f16", "f32"), help="precision of keys and values")
    cache_mb: int | str = option("integer", "auto", choices=("auto",), minimum=1, maximum=900_000)
    draft: Path | None = None
    prompt_lookup: bool = option("boolean", False, help="guess the next tokens from the prompt, where that is faster")
    assistant_tokens: int = option("integer", 4, minimum=1, maximum=64, help="tokens guessed at once")


# Of ServeSpec, those that only text-generation takes.
GENERATION_KEYS = {
    "max_queue", "deadline_s", "kv_cache", "cache_mb", "draft", "prompt_lookup", "assistant_tokens",
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: every file it names existed when it was read.

    model: a directory (Path), a hub id "org/name[@revision]", or "embedded:NAME"
    gate: None where the recipe has none; base_dir: the folder its relative paths are relative to
    """

    name: str
    version: str
    task: str
    model: Path | str
    data: DataSpec = DataSpec()
    compress: tuple[Stage, ...] = ()
    gate: GateSpec | None = None
    serve: ServeSpec = ServeSpec()
    base_dir: Path = Path()


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    overrides: "a.b=value" as `--set` takes them, list indices allowed ("compress.0.quantize.method=static-int8");
        paths in them are relative to the current directory, those of the file to the file
    raises RecipeError that lists every mistake, each with `file:line:` (or `--set a.b:`) and what would be right
    """
    # Imported here: the checks import the dataclasses above.
    from archiver.recipe.check import check_recipe

    path = Path(path)
    problems = Problems()
    root = read_yaml(_read_text(path), str(path), path.parent, problems)
    recipe = None
    if root is not None:
        if root.value is None:
            root = Node({}, f"{path}:1", 1, path.parent)
        for index, override in enumerate(overrides):
            apply_override(root, override, index, problems)
        recipe = check_recipe(root, path.parent, problems)
    if problems or recipe is None:
        lines = problems.lines()
        raise RecipeError(f"{path} has {len(lines)} mistake{'s' if len(lines) > 1 else ''}:", lines)
    return recipe


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist: name a YAML file (`init MODEL_DIR` writes one)") from None
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}; name a YAML file") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"recipe {path} is larger than {MAX_BYTES} bytes: is it a recipe?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8: save it as UTF-8") from error


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain JSON-able data for the archive: no host paths, a file or folder by its base name only."""
    data = {key: value for key, value in _plain(dataclasses.asdict(recipe.data)).items() if value not in (None, {})}
    result: dict[str, Any] = {
        "name": recipe.name,
        "version": recipe.version,
        "task": recipe.task,
        "model": _plain(recipe.model),
        "data": data,
        "compress": [_stage_dict(stage) for stage in recipe.compress],
    }
    if recipe.gate is not None:
        bounds = _plain(dataclasses.asdict(recipe.gate))
        result["gate"] = {key: value for key, value in bounds.items() if value not in (None, {})}
    serve = _plain(dataclasses.asdict(recipe.serve))
    ours = recipe.task == "text-generation"
    result["serve"] = {key: value for key, value in serve.items() if ours or key not in GENERATION_KEYS}
    return result


def _stage_dict(stage: Stage) -> dict[str, Any]:
    body = {"method": stage.method, **_plain(dataclasses.asdict(stage.options))}
    body |= {key: dict(getattr(stage, key)) for key in ("max_drop", "max_increase") if getattr(stage, key)}
    return {stage.verb: body}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.absolute().name or value.resolve().name
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
