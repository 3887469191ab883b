"""Random LoRA adapters in folders as peft saves them, and what they make of a torch model by their definition."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_lora(
    folder: Path,
    model: torch.nn.Module,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 8,
    size: float = 0.3,
    targets: Collection[str] = EVERY,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """An adapter on every linear layer of `model` whose name ends in one of the targets. size: of its numbers."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in targets:
            shapes = {"A": (rank, module.in_features), "B": (module.out_features, rank)}
            for part, shape in shapes.items():
                values = torch.randn(shape, generator=draw) * size
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = values.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/else",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": list(targets),
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "megatron_core": "megatron.core",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def merge(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """W + α/r · B·A in place: the definition."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, a in tensors.items():
        if "lora_A" in name:
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = tensors[name.replace("lora_A", "lora_B")]
            with torch.no_grad():
                model.get_submodule(layer).weight += config["lora_alpha"] / config["r"] * (b.float() @ a.float())
    return model
