"""Where a decoder's graph has the layers that adapters go onto, and whether it computes with them what torch computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archiver.errors import UnsupportedModelError
from archiver.export.decoder_check import TOLERANCE
from archiver.storage.adapters import Loaded
from handlers.architecture.adapters import AdaptedModel
from handlers.cpu import container_cores
from handlers.runtimes.openvino_paged import OpenVinoBackend
from handlers.storage.adapters import ADAPTERS, side_by_side

_MODULE = "__module."  # before a module's name in the names that the tracer gives
_TOKENS = 24

Products = Mapping[str, Any]  # layer → its MatMul


def products_of(graph: Any, layers: Iterable[str]) -> dict[str, Any]:
    """The product of each layer in a graph as it was traced, by the names that the tracer gave.

    Raises: UnsupportedModelError where a layer has none, or several.
    """
    found: dict[str, list[Any]] = {}
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "MatMul" and name.startswith(_MODULE):
            found.setdefault(name.removeprefix(_MODULE).partition("/")[0], []).append(node)
    products = {}
    for layer in layers:
        (*others, product) = found.get(layer, []) or [None]
        if others or product is None or product.input_value(0).get_partial_shape().rank.get_length() != 3:
            raise UnsupportedModelError(
                f"{layer}: the OpenVINO graph computes it with {len(found.get(layer, []))} products, or not token by "
                "token, so that no adapter can be put onto it: set serve.runtime to torch"
            )
        products[layer] = product
    return products


def places_of(products: Products, moved: Mapping[int, tuple[Any, Any]]) -> dict[str, Any]:
    """Where each layer lies in the graph that is written, by the names that its operations have by then.

    Args:
        moved: as archiver.export.joined_products.join_products fills it.
    Returns: layer → {"product": name, "output": [name, index]}, see handlers.runtimes.openvino_adapters.
    """
    places = {}
    for layer, product in products.items():
        node, output = moved.get(product.get_instance_id(), (product, product.output(0)))
        named = [output.get_node().get_friendly_name(), output.get_index()]
        places[layer] = {"product": node.get_friendly_name(), "output": named}
    return places


def check_adapters(model: torch.nn.Module, folder: Path, adapters: Loaded) -> None:
    """Compare the likelihoods that the graph in pages gives with each adapter with torch's.

    Args:
        model, folder: as archiver.export.decoder_check.check_answers has them; adapters.safetensors lies in the folder.
    Raises: UnsupportedModelError where they differ by more than TOLERANCE of the largest logit.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]  # transformers' own
    ids = torch.randint(0, vocabulary, (1, _TOKENS), generator=generator)
    session = {"precision": "f32", "kv_cache": "f32", "max_running": 1, "cache_blocks": 16, "int8": False}
    session |= {"openvino": "openvino", "device": "cpu", "adapters": ADAPTERS}
    backend = OpenVinoBackend(folder, session, container_cores(), (), exact_activations=True)
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
