"""A masked language model as one torch module: the words at asked places, and no others, are scored.

The head's projection onto the vocabulary costs as much as the layers below it: at one place of a text of 30 tokens it is a
thirtieth of that.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from handlers.architecture.outputs.encoder import padding_out_of_convolutions, takes_type_ids


class MaskedModel(torch.nn.Module):
    """input_ids, attention_mask [rows, length], places [rows, masks], token_type_ids [rows, length] int64 → [rows, masks,
    words] float32.

    Args:
        model: one of transformers' classes ForMaskedLM, whatever its family: its head is found as what runs behind the
            base model, so that this module only passes on fewer vectors than the base model gives.

    `places` are positions in a row; rows that ask for fewer than others repeat any of them, and the logits there are not
    used. Padding stands behind a row's tokens and has no part in its answer.

    inputs: names of the tensors that `forward` takes. settings: what it was made with, beside the model.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        base: Any = getattr(model, "base_model", model)
        if base is model:
            raise ValueError(f"{type(model).__name__} has no base model, or no head behind it")
        self.model = model
        self.takes_type_ids = takes_type_ids(model)
        types = ("token_type_ids",) if self.takes_type_ids else ()
        self.inputs = ("input_ids", "attention_mask", "places", *types)
        self.settings: dict[str, Any] = {}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        places: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.takes_type_ids and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        with padding_out_of_convolutions(self.model, attention_mask), _only(self.model, places):
            logits: torch.Tensor = self.model(**inputs).logits
        return logits


@contextlib.contextmanager
def _only(model: Any, places: torch.Tensor) -> Iterator[None]:
    """Inside the block the base model gives its vectors at `places` alone.

    Heads read them as the output's first element or by name: an output of transformers has both, and setting the name
    sets the element.
    """

    def gather(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output[0]  # [rows, length, width]
        chosen = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[-1]))
        if isinstance(output, tuple):
            return (chosen, *output[1:])
        output[next(iter(output.keys()))] = chosen
        return output

    hook = model.base_model.register_forward_hook(gather)
    try:
        yield
    finally:
        hook.remove()
