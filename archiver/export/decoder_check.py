"""Whether an exported decoder computes what torch computes, as a graph with state and with paged attention.

Exporters accept an architecture without an error and leave out what the operation that they map attention to does not have:
caps on scores (Gemma 2), sinks (GPT-OSS), slopes in a form that paged attention does not know (MPT).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from archiver.errors import UnsupportedModelError
from archiver.storage.adapters import Loaded
from handlers.architecture.adapters import AdaptedModel
from handlers.cpu import container_cores
from handlers.runtimes.openvino_paged import OpenVinoBackend
from handlers.storage.adapters import ADAPTERS, side_by_side

IR = "openvino_model.xml"

TOLERANCE = 1e-3  # of the largest |logit|
_PROMPT, _STEPS = 24, 4
_SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def check_answers(model: torch.nn.Module, folder: Path) -> None:
    """Compare a graph's logits with torch's, a prompt at once and token by token, and its likelihoods in pages.

    model: the …ForCausalLM that openvino_model.xml in `folder` was exported from, with the weights that the graph's
        constants stand for, in float32.
    Raises: UnsupportedModelError where they differ by more than TOLERANCE, or where the graph does not run.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]  # transformers' own
    ids = torch.randint(0, vocabulary, (1, _PROMPT + _STEPS), generator=generator)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits[0].float()
    likely = expected[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()
    try:
        by_state = np.abs(_logits(folder / IR, ids.numpy()) - expected.numpy()).max()
        by_pages = np.abs(_log_likelihoods(folder, ids[0].tolist()) - likely).max()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"{type(model).__name__}: OpenVINO cannot run its graph: {reason}; set serve.runtime to auto or torch"
        ) from error
    # ln p is the difference of a logit and the logarithm of a sum of all: it may be off by twice as much.
    difference = float(max(by_state, by_pages / 2) / expected.abs().max())
    if not difference <= TOLERANCE:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its OpenVINO graph answers differently from torch, by {difference:.2g} of the "
            f"largest logit; at most {TOLERANCE:g} is allowed: set serve.runtime to auto or torch"
        )


def check_adapters(model: torch.nn.Module, folder: Path, adapters: Loaded) -> None:
    """Compare the likelihoods that the graph in pages gives with each adapter with torch's.

    Args:
        model, folder: as `check_answers` has them; adapters.safetensors lies in the folder.
    Raises: UnsupportedModelError where they differ by more than TOLERANCE of the largest logit.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]  # transformers' own
    ids = torch.randint(0, vocabulary, (1, _PROMPT), generator=generator)
    backend = _exact_backend(folder, adapters=ADAPTERS)
    with AdaptedModel(model, side_by_side(adapters), len(adapters)) as using, torch.inference_mode():
        for number, name in enumerate(adapters, 1):
            with using.use([number]):
                logits = model(input_ids=ids, use_cache=False).logits[0].float()
            likely = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].numpy()
            found = np.array(backend.log_likelihoods(ids[0].tolist(), number))
            difference = float(np.abs(found - likely).max() / 2 / logits.abs().max())
            if not difference <= TOLERANCE:
                raise UnsupportedModelError(
                    f"{type(model).__name__}: with the adapter {name} its OpenVINO graph answers differently from torch, "
                    f"by {difference:.2g} of the largest logit; at most {TOLERANCE:g} is allowed: set serve.runtime to "
                    "torch"
                )


def _log_likelihoods(folder: Path, ids: list[int]) -> np.ndarray:
    """ln p of every token behind the first, as the pipeline that serves computes them."""
    return np.array(_exact_backend(folder).log_likelihoods(ids))


def _exact_backend(folder: Path, **more: Any) -> OpenVinoBackend:
    session = {"precision": "f32", "kv_cache": "f32", "max_running": 1, "cache_blocks": 16, "int8": False}
    session |= {"openvino": "openvino", "device": "cpu", **more}
    return OpenVinoBackend(folder, session, container_cores(), (), exact_activations=True)


def _logits(xml: Path, ids: np.ndarray) -> np.ndarray:
    """[tokens, vocabulary] of ids [1, tokens]."""
    import openvino as ov

    request = ov.Core().compile_model(str(xml), "CPU", _SETTINGS).create_infer_request()
    names = {name for port in request.model_inputs for name in port.get_names()}
    parts, done = [], 0
    for size in (_PROMPT, *[1] * _STEPS):
        end = done + size
        inputs: dict[str, Any] = {
            "input_ids": ids[:, done:end],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(done, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        result = request.infer({name: value for name, value in inputs.items() if name in names})
        parts.append(np.array(result["logits"][0]))
        done = end
    return np.concatenate(parts)
