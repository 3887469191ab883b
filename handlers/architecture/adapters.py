"""LoRA adapters on a torch module: y = W·x + B·(m ∘ (A·x)) at its linear layers, m by the adapter of each row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from handlers.storage.adapters import AdaptedLayer


class AdaptedModel:
    """Hooks on a model's linear layers, which add nothing outside of `use`.

    Args:
        model: its linear layers are called with [rows, length, in], or [rows · length, in] with the rows one by one.
        layers: by the name of the linear layer. count: adapters in all.
    """

    def __init__(self, model: torch.nn.Module, layers: Mapping[str, AdaptedLayer], count: int) -> None:
        self._rows: torch.Tensor | None = None
        device = next(model.parameters()).device
        self._hooks = []
        for name, layer in layers.items():
            a, b, masks = (torch.from_numpy(part).to(device) for part in (layer.a, layer.b, layer.masks(count)))
            self._hooks.append(model.get_submodule(name).register_forward_hook(self._hook(a, b, masks)))

    @contextmanager
    def use(self, numbers: Sequence[int]) -> Iterator[None]:
        """Inside, each row of a batch has the adapter of its number; handlers.storage.adapters.NONE for none."""
        self._rows = torch.tensor(list(numbers)) if any(numbers) else None
        try:
            yield
        finally:
            self._rows = None

    def __enter__(self) -> "AdaptedModel":
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, a: torch.Tensor, b: torch.Tensor, masks: torch.Tensor) -> Any:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if self._rows is None:
                return output
            x = inputs[0].reshape(len(self._rows), -1, inputs[0].shape[-1])
            found = ((x @ a.T) * masks[self._rows][:, None]) @ b.T
            return output + found.reshape(output.shape)

        return add
