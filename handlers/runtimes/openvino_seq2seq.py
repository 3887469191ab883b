"""OpenVINO for encoder-decoders: one graph that reads, one that writes with its keys and values as state."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlers.requirements import require, required
from handlers.runtimes.openvino_config import plugin_config
from handlers.storage.graph_weights import read_graph_weights

READER, WRITER = "reader", "writer"


class OpenVinoSeq2Seq:
    """See `handlers.generation.seq2seq.session`.

    spec: requirement; config: the plugin's settings; reader and writer, each {"model": …, "weights": … where packed};
    masked: whether sources have padding that the decoder must not see.
    """

    name = "openvino"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        self._ov: Any = require("openvino", spec["requirement"])
        self._config = plugin_config(spec, threads)  # one stream: one thread calls
        self._reader = self._compiled(folder, spec[READER]).create_infer_request()
        self._writer = self._compiled(folder, spec[WRITER])
        self._idle: list[Any] = []
        self._masked = spec["masked"]

    def _compiled(self, folder: Path, part: Mapping[str, Any]) -> Any:
        path, core = folder / part["model"], self._ov.Core()
        if "weights" not in part:
            return core.compile_model(core.read_model(path), "CPU", self._config)
        require("safetensors", required(folder, "safetensors"))
        weights = read_graph_weights(folder / part["weights"])
        return core.compile_model(core.read_model(path.read_bytes(), self._ov.Tensor(weights)), "CPU", self._config)

    def read(self, arrays: Mapping[str, np.ndarray]) -> "OpenVinoDecoder":
        names = {name for port in self._reader.model_inputs for name in port.get_names()}
        found = self._reader.infer({name: value for name, value in arrays.items() if name in names}, share_inputs=True)
        read = [np.array(found[port]) for port in self._reader.model_outputs]
        mask = [arrays["attention_mask"]] if self._masked else []
        request = self._idle.pop() if self._idle else self._writer.create_infer_request()
        request.reset_state()
        return OpenVinoDecoder(self._ov, request, [*mask, *read], self._idle)


class OpenVinoDecoder:
    """One request of the writing graph. Its inputs: input_ids, beam_idx, and source.0 … in the order of `sources`."""

    def __init__(self, ov: Any, request: Any, sources: Sequence[np.ndarray], idle: list[Any]) -> None:
        self._ov = ov
        self._request = request
        self._sources = sources
        self._idle = idle
        self._places: list[int] = []
        self._kept: list[Any] = []

    def step(self, ids: np.ndarray, parents: Sequence[int], places: Sequence[int]) -> np.ndarray:
        if list(places) != self._places:
            self._look_at(list(places))
        inputs = {"input_ids": ids, "beam_idx": np.asarray(parents, np.int32)}
        for name, value in inputs.items():
            self._request.set_tensor(name, self._ov.Tensor(np.ascontiguousarray(value)))
        self._request.infer()
        logits: np.ndarray = self._request.get_tensor("logits").data[:, -1]
        return logits

    def _look_at(self, places: list[int]) -> None:
        """Lay the sources out as the rows read them; tensors share numpy's memory, which is kept for them."""
        everything = places == list(range(len(self._sources[0])))
        self._kept = [source if everything else source[places] for source in self._sources]
        for index, array in enumerate(self._kept):
            self._request.set_tensor(f"source.{index}", self._ov.Tensor(array, shared_memory=True))
        self._places = places

    def attention(self) -> np.ndarray:
        found: np.ndarray = self._request.get_tensor("attention").data
        return found

    def close(self) -> None:
        self._kept, self._sources = [], []
        self._idle.append(self._request)
