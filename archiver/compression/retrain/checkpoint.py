"""Checkpoints of a training on disk: an interruption, also by kill -9, loses at most a minute of it.

Two files, both safetensors, replaced in one step: NAME.partial (weights, the optimiser's moments, the best epoch's weights)
while it runs, NAME.done (weights) when it has finished. Their name holds the digest of all that leads to this training, so
a changed recipe, model or data set never meets them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

Tensor = torch.Tensor


class Checkpoint:
    """The state of one training, in memory and on disk.

    Args:
        path: without suffix; None keeps nothing on disk.
        parameters: what is trained, by name, written to in place.
        optimizer: AdamW over these parameters.
    """

    every = 60.0  # seconds

    def __init__(self, path: Path | None, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.path = path
        self.parameters = parameters
        self.optimizer = optimizer
        self.finished = False
        self.best_score: float | None = None
        self._best: dict[str, Tensor] = {}

    def load(self) -> tuple[int, list[float], int | None]:
        """Put parameters and the optimiser's moments back as an interrupted run left them.

        Returns: (steps done, losses of the epochs, best epoch); (0, [], None) when there is nothing that fits.
        """
        for suffix in (".done", ".partial"):
            file = self._file(suffix)
            if file is None or not file.is_file():
                continue
            try:
                with safe_open(file, framework="pt") as stored:
                    meta = json.loads(stored.metadata()["state"])
                    tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                self._put(tensors, moments=suffix == ".partial")
            except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError):
                file.unlink(missing_ok=True)  # half-written, or of another version: what it held is computed again
                continue
            self.finished = suffix == ".done"
            self.best_score = meta["best_score"]
            return meta["steps"], meta["losses"], meta["best"]
        return 0, [], None

    def keep_best(self, score: float) -> None:
        """Remember the parameters as they are now as the best so far, with their score on validation."""
        self.best_score = score
        self._best = {name: value.detach().cpu().clone() for name, value in self.parameters.items()}

    def save(self, steps: int, losses: list[float], best: int | None) -> None:
        """Write everything that is needed to go on from here."""
        tensors = {f"weight/{name}": value for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            for moment, tensor in self.optimizer.state.get(value, {}).items():
                tensors[f"{moment}/{name}"] = tensor
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        self._write(".partial", tensors, steps, losses, best)

    def finish(self, steps: int, losses: list[float], best: int | None) -> None:
        """Put the best epoch's weights in place where one was kept, and write the result."""
        with torch.no_grad():
            for name, value in self._best.items():
                self.parameters[name].copy_(value)
        self._write(".done", {f"weight/{name}": value for name, value in self.parameters.items()}, steps, losses, best)
        if (partial := self._file(".partial")) is not None:
            partial.unlink(missing_ok=True)
        self.finished = True

    def _file(self, suffix: str) -> Path | None:
        return self.path.with_name(self.path.name + suffix) if self.path is not None else None

    def _write(
        self, suffix: str, tensors: Mapping[str, Tensor], steps: int, losses: list[float], best: int | None
    ) -> None:
        file = self._file(suffix)
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        meta = {"steps": steps, "losses": losses, "best": best, "best_score": self.best_score}
        part = file.with_name(f"{file.name}.{os.getpid()}")
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, part, metadata={"state": json.dumps(meta)})
        os.replace(part, file)

    def _put(self, tensors: Mapping[str, Tensor], *, moments: bool) -> None:
        weights = {name: tensors[f"weight/{name}"] for name in self.parameters}
        wrong = [name for name, value in weights.items() if value.shape != self.parameters[name].shape]
        if wrong:
            raise ValueError(f"shapes differ: {wrong[:3]}")
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(weights[name])
                if moments:
                    found = {
                        kind: tensors[f"{kind}/{name}"].to(value.device if kind != "step" else "cpu")
                        for kind in ("step", "exp_avg", "exp_avg_sq")
                        if f"{kind}/{name}" in tensors
                    }
                    if found:
                        self.optimizer.state[value] = found
        self._best = {
            name.removeprefix("best/"): value.clone() for name, value in tensors.items() if name.startswith("best/")
        }
