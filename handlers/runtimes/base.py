"""What a runtime that answers with one pass gives: a session over the archive's graph or module, one file a runtime here.

Which files and settings a session uses stands in the archive's serving.json under `session`. The runtimes that write text
token by token are a `handlers.generation.backend.Backend` instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Session(Protocol):
    """A loaded model."""

    name: str

    def __init__(self, folder: Path, spec: Mapping[str, Any], threads: int, streams: int = 1) -> None:
        """Open the model of an extracted archive.

        Args:
            folder: the archive. threads: for one run.
            spec: serving.json's `session`, and `digest`: the archive's, None where its files were not checked.
            streams: runs at once, each called from a thread of its own.
        Raises: UnsoundArchive saying which package or device is missing, or what is wrong with the files.
        """
        ...

    def run(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """One pass.

        Args:
            arrays: [rows, …] arrays by the name of the model's input; names that it does not take are left out.
        Returns: the model's first output, [rows, …] float32.
        """
        ...
