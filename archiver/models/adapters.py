"""LoRA adapters as peft saves them: adapter_config.json beside adapter_model.safetensors.

What peft can do beyond W·x + s·B·(A·x) on linear layers is refused by its name: computed without it, an adapter would
answer otherwise than it was trained to.
Source: Hu et al. 2021, LoRA, arXiv:2106.09685; s = α/r, or α/√r: Kalajdzievski 2023, rsLoRA, arXiv:2312.03732; the files as
peft's LoraConfig and get_peft_model_state_dict write them, its pattern keys as get_pattern_key reads them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from archiver.errors import UnsupportedModelError
from handlers.architecture.experts import Experts
from handlers.manifest import file_sha256

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_RANK = 256  # of one adapter at one layer
MAX_RANKS = 1024  # of all adapters together
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight\Z")
_TYPES = ("F32", "F16", "BF16")
# Keys that describe how an adapter was trained, or that are read here; every other that says something is refused.
_KNOWN = {
    *("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version", "runtime_config"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
_NAMED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "modules_to_save": "whole modules of its own (modules_to_save)",
    "trainable_token_indices": "embeddings of its own (trainable_token_indices)",
    "target_parameters": "parameters of experts (target_parameters)",
    "layer_replication": "layers that are there several times (layer_replication)",
    "lora_bias": "a bias of its own (lora_bias)",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
}
# Of the ways to begin a training those that leave the model's own weights as they were.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_SHOWN = 3


@dataclass(frozen=True)
class LoraFiles:
    """An adapter's folder, read but for its values.

    Args:
        path: the folder. scales: layer → α/r. shapes: layer → (rank, in, out).
    """

    path: Path
    scales: Mapping[str, float]
    shapes: Mapping[str, tuple[int, int, int]]

    @property
    def rank(self) -> int:
        """The largest of any layer."""
        return max(rank for rank, _, _ in self.shapes.values())

    def facts(self) -> dict[str, Any]:
        """For the archive's report: where from, which bytes, how large."""
        weights = self.path / WEIGHTS
        return {
            "source": self.path.absolute().name or self.path.resolve().name,
            "sha256": file_sha256(weights),
            "config_sha256": file_sha256(self.path / CONFIG),
            "bytes": weights.stat().st_size,
            "rank": self.rank,
            "layers": len(self.shapes),
        }

    def load(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Layer → (A [rank, in], s·B [out, rank]), float32.

        Raises: UnsupportedModelError where a value is not finite.
        """
        found = {}
        with safe_open(self.path / WEIGHTS, framework="pt") as file:
            for layer, scale in self.scales.items():
                a, b = (file.get_tensor(f"base_model.model.{layer}.lora_{part}.weight").float() for part in "AB")
                found[layer] = (a.numpy(), (b * scale).numpy())
                if not all(np.isfinite(part).all() for part in found[layer]):
                    raise UnsupportedModelError(f"the adapter {self.path.name}: {layer} has values that are not finite")
        return found


def read_lora(path: Path) -> tuple[LoraFiles | None, list[str]]:
    """An adapter's folder, and what is wrong with it: None where that keeps it from being read."""
    if not (path / WEIGHTS).is_file():
        if (path / PICKLE).is_file():
            return None, [f"{PICKLE} is a pickle, which is not opened: save the adapter as {WEIGHTS}"]
        return None, [f"it has no {WEIGHTS}"]
    try:
        config = json.loads((path / CONFIG).read_bytes())
        with safe_open(path / WEIGHTS, framework="pt") as file:
            tensors = {
                name: (part.get_dtype(), tuple(part.get_shape()))
                for name in file.keys()  # noqa: SIM118 - no mapping
                for part in [file.get_slice(name)]
            }
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        return None, [f"{CONFIG} or {WEIGHTS} cannot be read: {error}"]
    if not isinstance(config, dict):
        return None, [f"{CONFIG} is no JSON object"]
    problems = _config_problems(config)
    shapes, wrong = _shapes(tensors)
    if problems or wrong:
        return None, problems + wrong
    scales: dict[str, float] = {}
    for layer, (rank, _, _) in shapes.items():
        scales[layer], wrong = _scale(config, layer, rank)
        problems += wrong
    return (None, _short(problems)) if problems else (LoraFiles(path, scales, shapes), [])


def adapter_problems(adapters: Mapping[str, Path], model: Any, before: AbstractSet[str]) -> list[str]:
    """What keeps adapters from being served, one sentence each, that begins with the adapter's name.

    Args:
        adapters: name → folder. model: see `misfits`. before: the linear layers of the model that the recipe names.
    """
    problems, ranks = [], 0
    for name, path in adapters.items():
        files, found = read_lora(path)
        if files is not None:
            ranks += files.rank
            found = misfits(files, model)
        problems += [f"{name}: {line}" for line in found]
    if ranks > MAX_RANKS:
        problems.append(
            f"{next(iter(adapters))} and the others have ranks of {ranks} together; at most {MAX_RANKS} are allowed"
        )
    if adapters and (changed := sorted(before ^ linear_layers(model))):
        problems.append(
            f"{next(iter(adapters))}: compress takes away or renames linear layers ({changed[0]} …), and adapters belong "
            "to the model as it was: remove that stage, or the adapters"
        )
    return problems


def linear_layers(model: torch.nn.Module) -> set[str]:
    """The names of a model's linear layers."""
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def misfits(files: LoraFiles, model: Any) -> list[str]:
    """What keeps an adapter from going onto a model.

    Args:
        model: transformers' …ForCausalLM, without weights (meta device), as the archive will have it.
    """
    modules = dict(model.named_modules())
    experts = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Experts))
    problems = []
    for layer, (_, inner, outer) in files.shapes.items():
        module = modules.get(layer)
        if module is None:
            problems.append(f"the model has no layer {layer}")
        elif module is model.get_output_embeddings() or module is model.get_input_embeddings():
            problems.append(f"{layer} is the model's table of tokens or its head, which cannot have an adapter here")
        elif experts and layer.startswith(experts):
            problems.append(
                f"{layer} is of an expert, which sees some of the tokens only: no adapter can be on it here"
            )
        elif not isinstance(module, torch.nn.Linear):
            problems.append(
                f"{layer} is a {type(module).__name__}, no linear layer as it was when the adapter was trained"
            )
        elif (module.in_features, module.out_features) != (inner, outer):
            problems.append(
                f"{layer} is [{module.out_features}, {module.in_features}] in the model, the adapter is for "
                f"[{outer}, {inner}]"
            )
    return _short(problems)


def _config_problems(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')!r}; allowed: LORA")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        problems.append(f"task_type is {config['task_type']!r}; allowed: CAUSAL_LM")
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}; allowed: none")
    if config.get("init_lora_weights") not in _STARTS:
        problems.append(
            f"init_lora_weights is {config['init_lora_weights']!r}, which changes the model's own weights: save it "
            "converted to plain LoRA (path_initial_model_for_weight_conversion)"
        )
    for key, value in sorted(config.items()):
        if value and key in _NAMED:
            problems.append(f"it uses {_NAMED[key]}, which is not supported; allowed: LoRA on linear layers")
        elif value and key not in _KNOWN:
            problems.append(
                f"{CONFIG} has {key}, which is not known here: what the adapter does with it would be missing"
            )
    return problems


def _shapes(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[dict[str, tuple[int, int, int]], list[str]]:
    """(layer → (rank, in, out), what is wrong with the tensors)."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    problems = []
    for name, (kind, shape) in sorted(tensors.items()):
        found = _KEY.match(name)
        if found is None:
            what = "for embeddings" if "lora_embedding" in name else "no lora_A or lora_B of a layer"
            problems.append(f"the tensor {name} is {what}, which is not supported")
        elif kind not in _TYPES or len(shape) != 2 or 0 in shape:
            problems.append(f"the tensor {name} is {kind} {list(shape)}; allowed: two axes in {', '.join(_TYPES)}")
        else:
            parts.setdefault(found[1], {})[found[2]] = shape
    shapes = {}
    for layer, both in parts.items():
        if both.keys() != {"A", "B"} or both["A"][0] != both["B"][1]:
            problems.append(f"{layer} has no lora_A and lora_B of one rank")
        elif both["A"][0] > MAX_RANK:
            problems.append(f"{layer} has rank {both['A'][0]}; at most {MAX_RANK} is allowed")
        else:
            shapes[layer] = (both["A"][0], both["A"][1], both["B"][0])
    if not tensors:
        problems.append(f"{WEIGHTS} holds no tensor")
    return shapes, _short(problems)


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> tuple[float, list[str]]:
    """α/r, or α/√r, of a layer."""
    try:
        alpha = _by_pattern(config.get("alpha_pattern"), layer, config.get("lora_alpha"))
        stated = _by_pattern(config.get("rank_pattern"), layer, config.get("r"))
    except re.error as error:
        return 0.0, [f"rank_pattern or alpha_pattern has an expression that is none: {error}"]
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        return 0.0, [f"lora_alpha of {layer} is {alpha!r}; a number is expected"]
    if stated != rank:
        return 0.0, [f"{layer} has rank {rank} in {WEIGHTS} and {stated!r} by {CONFIG}"]
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), []


def _by_pattern(patterns: Any, layer: str, default: Any) -> Any:
    """peft's rule: the first pattern that matches the layer's name, or its end behind a dot."""
    found = patterns if isinstance(patterns, dict) else {}
    return next((value for key, value in found.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def _short(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _SHOWN else [*lines[:_SHOWN], f"… and {len(lines) - _SHOWN} more like that"]
