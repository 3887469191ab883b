"""torch module → packed safetensors and config.json, for the torch runtime."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from archiver.compression.plan import QuantizationPlan
from handlers.manifest import canonical_json
from handlers.packed_weights import SCALE, quantize_rows
from handlers.structure import STRUCTURE, describe


def export_packed(model: torch.nn.Module, plan: QuantizationPlan | None, folder: Path) -> None:
    """Write model.safetensors (the plan's weights as int8 rows and scales), config.json and structure.json into `folder`."""
    packed = {f"{name}.weight" for name in (*plan.linears, *plan.embeddings)} if plan else set()
    tensors: dict[str, torch.Tensor] = {}
    structure = describe(model)
    for name, tensor in model.state_dict().items():
        if name in structure["shared"]:
            continue  # one tensor under several names lies there once
        if name in packed:
            tensors[name], tensors[name + SCALE] = quantize_rows(tensor)
        else:
            tensors[name] = tensor.detach().clone().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr, operator]  # transformers' own
    config = {key: value for key, value in settings.items() if key != "_name_or_path"}
    (folder / "config.json").write_bytes(canonical_json(config))
    (folder / STRUCTURE).write_bytes(canonical_json(structure))
