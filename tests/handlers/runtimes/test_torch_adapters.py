"""LoRA adapters on torch: each row of a batch gets its own."""

from __future__ import annotations

import numpy as np
import torch
from greedy import continue_greedily
from lora import merge, write_lora
from task_models import load_model

from archiver.export.torch_packed import export_packed
from archiver.models.adapters import read_lora
from archiver.storage.adapters import write_adapters
from handlers.architecture.adapters import AdaptedModel
from handlers.generation.backend import Sampling
from handlers.runtimes.torch_generation import TorchBackend
from handlers.storage.adapters import ADAPTERS, AdaptedLayer

TASK = "text-generation"
PROMPTS = ([0, 41, 52, 63], list(range(20, 40)), [9, 9, 9])


def test_by_hand() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    # a: A = (1, 0), B = (3; 0). b: A = (0, 1), B = (0; 5).
    layer = AdaptedLayer(np.eye(2, dtype=np.float32), np.diag([3.0, 5.0]).astype(np.float32), np.array([1, 2]))
    x = torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 2.0]]])
    with AdaptedModel(model, {"0": layer}, 2) as using, torch.no_grad():
        with using.use([0, 1, 2]):
            assert model(x).tolist() == [[[1, 2]], [[4, 2]], [[1, 12]]]
            assert model(x.reshape(3, 2)).tolist() == [[1, 2], [4, 2], [1, 12]]  # rows one by one
        assert model(x[:2]).tolist() == [[[1, 2]], [[1, 2]]]
    with using.use([1]):
        assert model(x[:1]).tolist() == [[[1, 2]]]  # the hooks are off


def test_rows_of_a_batch_and_what_torch_writes_with_merged_weights(tiny_model, tmp_path) -> None:
    source = tiny_model("llama", TASK, eos_token_id=None)
    folders = {
        "a": write_lora(tmp_path / "lora-a", load_model(source, TASK), seed=1),
        "b": write_lora(tmp_path / "lora-b", load_model(source, TASK), seed=2, rank=2, targets=["q_proj", "up_proj"]),
    }
    export_packed(load_model(source, TASK), None, tmp_path)
    write_adapters(tmp_path, {name: read_lora(folder)[0].load() for name, folder in folders.items()}, {})
    spec = {"requirement": "transformers", "model": "model.safetensors", "config": "config.json", "max_running": 9}
    backend = TorchBackend(tmp_path, spec | {"adapters": ADAPTERS}, 1, ())
    asked = [(ids, number) for ids in PROMPTS for number in range(3)]
    texts: dict[int, list[int]] = {}
    for key, (ids, number) in enumerate(asked):
        backend.add(key, ids, Sampling(8), number)
    while backend.load().running or backend.load().waiting:
        for step in backend.step():
            texts.setdefault(step.key, []).extend(step.ids)
    for number, name in enumerate((None, "a", "b")):
        module = load_model(source, TASK)
        if name is not None:
            merge(module, folders[name])
        for key, (ids, own) in enumerate(asked):
            if own == number:
                assert texts[key] == continue_greedily(module, ids, 8, ()), (name, ids)
