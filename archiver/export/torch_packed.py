"""torch module → packed safetensors and config.json, for the torch runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from archiver.state.plan import QuantizationPlan
from archiver.storage.codec_choice import WeightLayout
from archiver.storage.int8_rows import quantize_rows
from archiver.storage.layouts import layouts_of
from archiver.storage.packing import write_packed
from handlers.architecture.structure import STRUCTURE, describe
from handlers.manifest import canonical_json


def export_packed(model: torch.nn.Module, plan: QuantizationPlan | None, folder: Path) -> None:
    """Write model.safetensors, config.json and structure.json into `folder`.

    Each tensor lies in its smallest codec, the plan's weights as int8 rows and scales; one tensor under several names once.
    """
    planned = {f"{name}.weight" for name in (*plan.linears, *plan.embeddings)} if plan else set()
    structure, layouts = describe(model), layouts_of(model)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        if name in structure["shared"]:
            continue
        if name in planned:
            q, scale = quantize_rows(tensor)
            tensors[name] = (q.float() * scale).numpy()
            layouts[name] = WeightLayout(grouping=(scale.numpy(), None, 8))
        else:
            tensors[name] = tensor.detach().numpy()
    write_packed(folder / "model.safetensors", tensors, layouts)
    settings: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr, operator]  # transformers' own
    config = {key: value for key, value in settings.items() if key != "_name_or_path"}
    (folder / "config.json").write_bytes(canonical_json(config))
    (folder / STRUCTURE).write_bytes(canonical_json(structure))
