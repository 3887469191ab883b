"""torch for encoder-decoders: transformers' module in the two parts that other runtimes have as graphs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from handlers.requirements import require


class TorchSeq2Seq:
    """See `handlers.generation.seq2seq.session`. spec: as `load_module` wants it."""

    name = "torch"

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        torch: Any = require("torch", "torch>=2.0")
        require("transformers", spec["requirement"])
        from handlers.architecture.loading import load_module
        from handlers.runtimes.torch_device import placed

        torch.set_num_threads(threads)
        module: Any = placed(load_module(folder, spec), spec)
        self._begin(module.model, module.source, module.heads)

    @classmethod
    def of_model(cls, model: Any, source: str = "input_ids", heads: Sequence[Sequence[int]] = ()) -> "TorchSeq2Seq":
        """A session over a live …ForConditionalGeneration in evaluation mode; with `heads` its config is changed."""
        session = cls.__new__(cls)
        session._begin(model, source, heads)
        return session

    def _begin(self, model: Any, source: str, heads: Sequence[Sequence[int]]) -> None:
        from handlers.architecture.outputs.seq2seq import Reader, Writer, with_eager_cross_attention

        self._masked = source == "input_ids"
        self._source = source
        self._device = next(model.parameters()).device
        if heads:
            with_eager_cross_attention(model, [layer for layer, _ in heads])
        self._reader = Reader(model, source)
        self._writer = Writer(model, self._masked, heads)
        self._told = bool(heads)

    def read(self, arrays: Mapping[str, np.ndarray]) -> "TorchDecoder":
        import torch

        given = [torch.from_numpy(arrays[self._source]).to(self._device)]
        mask = [torch.from_numpy(arrays["attention_mask"]).to(self._device)] if self._masked else []
        with torch.inference_mode():
            read = self._reader(*given, *mask)
        return TorchDecoder(self._writer, [*mask, *read], self._masked, self._told)


class TorchDecoder:
    """Keys and values of the places written so far, beside the sources'."""

    def __init__(self, writer: Any, sources: Sequence[Any], masked: bool, told: bool) -> None:
        self._writer = writer
        self._sources = sources
        self._read = sources[1:] if masked else sources
        self._told = told
        self._written: list[Any] = []
        self._attention: Any = None

    def step(self, ids: np.ndarray, parents: Sequence[int], places: Sequence[int]) -> np.ndarray:
        import torch

        device = self._read[0].device
        with torch.inference_mode():
            rows = torch.as_tensor(list(places), device=device)
            before = torch.as_tensor(list(parents), device=device)
            written = [item.index_select(0, before) for item in self._written]
            if not written:
                written = [item.new_zeros((len(ids), item.shape[1], 0, item.shape[3])) for item in self._read]
            sources = [item.index_select(0, rows) for item in self._sources]
            logits, *states = self._writer(torch.from_numpy(ids).to(device), *sources, *written)
            if self._told:
                self._attention = states.pop()
        self._written = states
        found: np.ndarray = logits[:, -1].float().cpu().numpy()
        return found

    def attention(self) -> np.ndarray:
        found: np.ndarray = self._attention.float().cpu().numpy()
        return found

    def close(self) -> None:
        self._written, self._sources = [], []
