"""Text generation on OpenVINO: our own steps over a graph with paged attention; token ids in and out."""

import platform
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlers.cpu import host_isa
from handlers.errors import UnsoundArchive
from handlers.generation.paged.batch import PagedBatch
from handlers.generation.paged.draft import Draft
from handlers.generation.paged.guesses import Guesser, Lookup
from handlers.generation.paged.pages import Piece
from handlers.requirements import require, required
from handlers.storage.graph_weights import weights_of

BLOCK = 32  # tokens whose keys and values OpenVINO's CPU plugin keeps together, in every precision
_CACHES = ("key_cache.", "value_cache.")
_CHOSEN = "sampled_tokens_indices"
_TWICE = 500_000_000  # bytes of a graph's weights, up to which they may be in memory with adapters and without
_GIVEN = {"input_ids", "position_ids", "past_lens", "subsequence_begins", "block_indices", "block_indices_begins"}
# What may stand between the head's product and the logits: it takes each place of them by itself.
_BY_PLACE = {"Add", "Convert", "Divide", "Multiply", "Tanh"}


class OpenVinoBackend(PagedBatch):
    """See `handlers.generation.backend.Backend`.

    spec: openvino (the requirement), precision, kv_cache, cache_blocks, max_running, adapters (a file, or none), and what
    guesses: draft (a folder) or prompt_lookup (true), with at most assistant_tokens guessed at once while assist_up_to
    texts are written.
    exact_activations: they are not rounded where weights are integers.
    """

    name = "openvino"

    def __init__(
        self,
        folder: Path,
        spec: Mapping[str, Any],
        threads: int,
        end_ids: Collection[int],
        *,
        exact_activations: bool = False,
    ) -> None:
        graph = PagedGraph(folder, spec, threads, exact=exact_activations)
        guesser: Guesser | None = None
        if spec.get("draft"):
            smaller = PagedGraph(folder / spec["draft"], {**spec, "weights": None, "adapters": None}, threads)
            guesser = Draft(smaller, spec["cache_blocks"], BLOCK)
        elif spec.get("prompt_lookup"):
            guesser = Lookup()
        super().__init__(
            graph,
            spec["cache_blocks"],
            BLOCK,
            end_ids,
            max_running=spec["max_running"],
            guesser=guesser,
            guesses=spec.get("assistant_tokens", 0),
            guess_up_to=spec.get("assist_up_to", 0),
        )


class PagedGraph:
    """openvino_model.xml of an extracted archive, and a cache for it: a `handlers.generation.paged.pages.PagedModel`.

    Where the archive has adapters the graph is compiled twice, with them and without, on one cache: a pass without a text
    that asks for one costs what it would cost in an archive without adapters. OpenVINO keeps weights in its own order for
    each, at the first pass; a large model is therefore run with the branches alone, which cost it little.

    Args:
        folder: the archive. spec: see `OpenVinoBackend`. threads: for one pass.
        exact: activations are not rounded where weights are integers.
    """

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, *, exact: bool = False) -> None:
        if platform.machine() == "aarch64" and "sve" not in host_isa():
            raise UnsoundArchive(
                "OpenVINO has the attention of this archive for ARM with SVE only (Neoverse V1, N2 and later), and this "
                "processor has no SVE: serve it on such a host or on x86"
            )
        ov: Any = require("openvino", spec["openvino"])
        from openvino._offline_transformations import paged_attention_transformation

        core, path = ov.Core(), folder / "openvino_model.xml"
        weights = weights_of(folder, spec) if spec.get("weights") else None
        model = core.read_model(path) if weights is None else core.read_model(path.read_bytes(), ov.Tensor(weights))
        paged_attention_transformation(model)
        model.validate_nodes_and_infer_types()
        self._chooses = _choose_before_head(model)
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": spec["precision"],
            "KV_CACHE_PRECISION": spec["kv_cache"],
            "ENABLE_CPU_PINNING": False,  # pinning would put every worker on core 0
        }
        # By channel, which is the default, the keys of a whole block are rounded anew whenever a token joins it: what is
        # written would hang on how the text was cut into pieces, and on tokens that were guessed wrong and taken back.
        settings |= {"KEY_CACHE_QUANT_MODE": "BY_TOKEN"} if spec["kv_cache"] == "u8" else {}
        settings |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0} if exact else {}
        compiled = core.compile_model(model, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._tensor = ov.Tensor
        self._spare = spec["cache_blocks"]  # a block of its own, behind those that texts have
        self._memory: list[np.ndarray] = []  # of the cache: what is not written yet is not there yet
        self._cache: dict[str, Any] = {}
        names = [port.get_any_name() for port in compiled.inputs]
        for name, port in zip(names, compiled.inputs, strict=True):
            if name.startswith(_CACHES):
                sizes = [size.get_length() for size in list(port.get_partial_shape())[1:]]
                shape, kind = [self._spare + 1, *sizes], port.get_element_type()
                self._memory.append(np.zeros(int(np.prod(shape)) * kind.bitwidth // 8, np.uint8))
                self._cache[name] = ov.Tensor(self._memory[-1], ov.Shape(shape), kind)
                self._request.set_tensor(name, self._cache[name])
            elif name not in _GIVEN | {"max_context_len", _CHOSEN}:
                raise UnsoundArchive(f"the graph wants {name!r}, which nothing here gives: rebuild the archive")
        self._names = {name for name in names if not name.startswith(_CACHES)}
        self._adapted: Any = None
        if spec.get("adapters"):
            require("safetensors", required(folder, "safetensors"))
            from handlers.runtimes.openvino_adapters import NUMBERS, add_adapters
            from handlers.storage.adapters import read_adapters

            self._numbers = NUMBERS
            add_adapters(model, read_adapters(folder / spec["adapters"]))
            self._adapted = core.compile_model(model, "CPU", settings).create_infer_request()
            for name, tensor in self._cache.items():
                self._adapted.set_tensor(name, tensor)
            size = path.with_suffix(".bin").stat().st_size if weights is None else weights.nbytes
            if size > _TWICE:
                self._request = self._adapted

    def run(self, pieces: Sequence[Piece]) -> np.ndarray:
        """See `PagedModel`."""
        ids: list[int] = []
        past: list[int] = []
        numbers: list[int] = []  # of the tokens' adapters
        places: list[int] = []
        begins, blocks, block_begins, chosen = [0], list[int](), [0], list[int]()
        for piece in pieces:
            end = piece.start + len(piece.ids)
            ids += piece.ids
            numbers += [piece.adapter] * len(piece.ids)
            chosen += range(len(ids) - piece.asked, len(ids))
            # All keys and values of a pass are written before any are read: tokens of one text can stand for texts.
            for start in range(piece.start, end, 1 if piece.apart else len(piece.ids)):
                stop = start + 1 if piece.apart else end
                past.append(start)
                places += range(start, stop)
                blocks += piece.blocks[: -(-stop // BLOCK)]
                begins.append(len(places))
                block_begins.append(len(blocks))
        asked = len(chosen)
        # On several threads a product with a single row adds up in another order than one with more. So there is none: a
        # text would hang on whether others run beside it.
        if len(ids) == 1:
            ids, past, places, numbers = ids * 2, [*past, 0], [*places, 0], [*numbers, 0]
            begins, blocks, block_begins = [*begins, 2], [*blocks, self._spare], [*block_begins, len(blocks) + 1]
        if asked == 1:
            chosen = chosen * 2
        arrays = {
            "input_ids": np.array(ids, np.int64),
            "position_ids": np.array(places, np.int64),
            "past_lens": np.array(past, np.int32),
            "subsequence_begins": np.array(begins, np.int32),
            "block_indices": np.array(blocks, np.int32),
            "block_indices_begins": np.array(block_begins, np.int32),
            "max_context_len": np.array(max(piece.start + len(piece.ids) for piece in pieces), np.int32),
            _CHOSEN: np.array(chosen, np.int64),
        }
        request = self._adapted if any(numbers) else self._request
        if request is self._adapted:
            request.set_tensor(self._numbers, self._tensor(np.array(numbers, np.int32)[:, None]))
        for name, array in arrays.items():
            if name in self._names:
                request.set_tensor(name, self._tensor(array))
        request.infer()
        data = request.get_output_tensor(0).data
        logits: np.ndarray = data.reshape(-1, data.shape[-1])
        return (logits if self._chooses else logits[chosen])[:asked]


def _choose_before_head(model: Any) -> bool:
    """Let the head see only the tokens whose logits are asked for; False where it is not found: it then sees all."""
    from openvino import opset13 as ops

    node = model.outputs[0].get_node().input_value(0).get_node()
    while node.get_type_name() in _BY_PLACE:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "MatMul" or node.input_value(0).get_partial_shape().rank.get_length() != 3:
        return False
    chosen = ops.parameter([-1], np.int64, name=_CHOSEN)
    chosen.output(0).get_tensor().set_names({_CHOSEN})
    rows = ops.gather(node.input_value(0), chosen, ops.constant(np.array([0], np.int64)))
    node.input(0).replace_source_output(rows.output(0))
    model.add_parameters([chosen])
    model.validate_nodes_and_infer_types()
    return True
