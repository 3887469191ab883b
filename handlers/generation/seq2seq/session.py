"""What a runtime for encoder-decoders gives: a source read once, and decoders that write step by step from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Decoder(Protocol):
    """One run of several rows, each with the keys and values of what it has written."""

    def step(self, ids: np.ndarray, parents: Sequence[int], places: Sequence[int]) -> np.ndarray:
        """The rows' next tokens put through the model.

        Args:
            ids: [rows, new] int64. parents: [rows] of the rows of the step before, which each row goes on from; in the
                first step 0 … rows − 1. places: [rows] of the sources, which each row reads; rows that are done are
                left out, rows of a beam read the same source.
        Returns: logits [rows, vocabulary] float32 behind the last of `ids`; they hold until the next step.
        """
        ...

    def attention(self) -> np.ndarray:
        """[rows, heads, new, length] of the last step's cross-attention, where the archive was built to tell it."""
        ...

    def close(self) -> None:
        """Nothing more is written."""
        ...


class Seq2SeqSession(Protocol):
    """A loaded model. Not thread-safe: one thread calls it and its decoders."""

    name: str

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int) -> None:
        """Open the model of an extracted archive.

        Args:
            folder: the archive. spec: serving.json's `session`. threads: for one run.
        Raises: UnsoundArchive saying which package or device is missing, or what is wrong with the files.
        """
        ...

    def read(self, arrays: Mapping[str, np.ndarray]) -> Decoder:
        """Put sources through the encoder.

        Args:
            arrays: [sources, …] by the name of the model's input.
        Returns: what writes from them.
        """
        ...
