"""The hidden states of a walk: in memory, or in a file where memory is short."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from archiver.errors import ArchiverError
from archiver.host import unnamed_file

Tensor = torch.Tensor
SHARE = 0.25  # of the memory that is free: states that need more go to a file


class Hidden:
    """One tensor for each batch, replaced in its place.

    Args:
        states: [rows, length, width] each, float. file: what they are mapped from, already without a name; None: memory.
    """

    def __init__(self, states: list[Tensor], file: np.ndarray | None = None) -> None:
        self._states, self._file = states, file

    @classmethod
    def of(cls, states: Sequence[Tensor], free: int | None = None, folder: Path | None = None) -> Hidden:
        """Keep these states.

        Args:
            free: bytes of memory that are free; None: as the system says.
            folder: where the file lies, if one is needed; None: the folder for temporary files.
        Raises: ArchiverError where they fit neither into memory nor onto the disk.
        """
        need = sum(state.numel() * state.element_size() for state in states)
        if (
            need <= SHARE * (psutil.virtual_memory().available if free is None else free)
            or len({state.dtype for state in states}) > 1
        ):
            return cls(list(states))
        file = _mapped(need, folder or Path(tempfile.gettempdir()))
        mapped, start = [], 0
        for state in states:
            end = start + state.numel() * state.element_size()
            view = torch.from_numpy(file[start:end]).view(state.dtype).view(state.shape)
            mapped.append(view.copy_(state))
            start = end
        return cls(mapped, file)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self._states

    def put(self, index: int, state: Tensor) -> None:
        """Replace one batch's states."""
        if self._file is None:
            self._states[index] = state
        else:
            self._states[index].copy_(state)

    def close(self) -> None:
        """Forget the states; a file's room on the disk is free again."""
        self._states, self._file = [], None


def _mapped(size: int, folder: Path) -> np.ndarray:
    try:
        return unnamed_file(size, folder)
    except OSError as error:
        raise ArchiverError(
            f"the hidden states of the calibration texts need {size / 1e6:.0f} MB, more than memory has room for, and "
            f"{folder} cannot hold them: {error.strerror}; free some space, set TMPDIR to another folder, or give the "
            "stage fewer `samples`"
        ) from error
