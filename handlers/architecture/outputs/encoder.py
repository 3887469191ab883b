"""An encoder with its head as one torch module: token ids in, one row of numbers per input out.

The exporters trace this module, the torch runtime serves it and the evaluation takes it as the fp32 original, so all
of them mean the same by «the model's answer».
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

POOLING = ("mean", "cls", "max", "last")


class EncoderWithHead(torch.nn.Module):
    """input_ids, attention_mask, token_type_ids [rows, length] int64 → [rows, width] float32.

    text-classification: the logits. feature-extraction: the token vectors pooled by `pooling` (mean over the real tokens,
    the first token, the maximum over the real tokens, or the last real token), not normalised: a request may choose that.
    Padding stands behind a row's tokens and has no part in its answer.

    inputs: names of the tensors that `forward` takes. settings: what it was made with, beside the model.
    """

    def __init__(self, model: torch.nn.Module, pooling: str | None = None) -> None:
        super().__init__()
        if pooling is not None and pooling not in POOLING:
            raise ValueError(f"pooling is {pooling!r}; allowed: {', '.join(POOLING)}")
        self.model = model
        self.pooling = pooling
        self.takes_type_ids = takes_type_ids(model)
        types = ("token_type_ids",) if self.takes_type_ids else ()
        self.inputs = ("input_ids", "attention_mask", *types)
        self.settings = {"pooling": pooling}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.takes_type_ids and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        with padding_out_of_convolutions(self.model, attention_mask):
            if self.pooling is None:
                return self._logits(inputs)
            hidden: torch.Tensor = self.model(**inputs).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            return _last_token(hidden, attention_mask)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "max":
            return (hidden + (mask - 1) * 1e9).amax(dim=1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def _logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Classifiers of decoders score the last token.

        transformers takes for it the last id that is not the padding's: another one where a text ends with that id, which
        often is the end-of-text token. Without a padding id it refuses batches.
        """
        score = getattr(self.model, "score", None)
        base = getattr(self.model, "base_model", self.model)
        if score is None or base is self.model:
            logits: torch.Tensor = self.model(**inputs).logits
            return logits
        hidden = base(**inputs, use_cache=False).last_hidden_state
        scored: torch.Tensor = score(_last_token(hidden, inputs["attention_mask"]))
        return scored


def takes_type_ids(model: torch.nn.Module) -> bool:
    """Whether token_type_ids tell the model anything: GPT-2 would add words' vectors for them, RoBERTa knows one type."""
    config = getattr(model, "config", None)
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes and getattr(config, "type_vocab_size", 0) > 1


def _last_token(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """hidden [rows, length, width], attention_mask (1 = real) [rows, length] → [rows, width] of the last real token."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask * places).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


@contextlib.contextmanager
def padding_out_of_convolutions(model: torch.nn.Module, attention_mask: torch.Tensor) -> Iterator[None]:
    """ConvBERT's convolutions run over padding as over words: zeros there, as beyond the end of a row that stands alone."""

    def behind(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:  # [rows, length, width]
        return output * attention_mask[:, :, None].to(output.dtype)

    def before(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] * attention_mask[:, None].to(inputs[0].dtype), *inputs[1:])  # [rows, width, length]

    hooks = []
    for module in model.modules():
        if hasattr(module, "key_conv_attn_layer") and hasattr(module, "conv_out_layer"):
            hooks += [module.conv_out_layer.register_forward_hook(behind)]  # type: ignore[union-attr]
            hooks += [module.key_conv_attn_layer.register_forward_pre_hook(before)]  # type: ignore[union-attr]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
