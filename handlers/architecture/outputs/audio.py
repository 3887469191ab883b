"""A model over sound with its head as one torch module: samples in, numbers for each frame or for the whole out.

The exporters trace this module, the torch runtime serves it and the evaluation takes it as the fp32 original, so all
of them mean the same by «the model's answer». What stands behind a recording's end changes no number of it: a recording
is answered in a batch as it is alone, by models that were trained without an attention mask too.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

Tensor = torch.Tensor


class SamplesWithHead(torch.nn.Module):
    """input_values [rows, samples] float32, attention_mask [rows, samples] int64 (1 = real) → logits float32.

    The logits are [rows, frames, vocabulary] of a model for CTC, [rows, labels] of a classifier.

    Args:
        model: transformers' …ForCTC or …ForSequenceClassification over samples (Wav2Vec2, HuBERT, WavLM, …).
    """

    inputs = ("input_values", "attention_mask")

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.settings: dict[str, Any] = {}

    def real_places(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[rows, frames] bool of a batch of its inputs: which frames are no padding."""
        model: Any = self.model
        mask = batch["attention_mask"]
        longest = int(model._get_feat_extract_output_lengths(torch.tensor(mask.shape[1])))
        return _is_real(model._get_feat_extract_output_lengths(mask.sum(dim=1)), longest)

    def forward(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        with _ends_kept(self.model, attention_mask.sum(dim=1)):
            logits: Tensor = self.model(input_values=input_values, attention_mask=attention_mask).logits
        return logits


class SpectrogramWithHead(torch.nn.Module):
    """input_values [rows, frames, mel bins] float32, all of one length → logits [rows, labels] float32.

    Args:
        model: transformers' …ForAudioClassification over a spectrogram (AST).
    """

    inputs = ("input_values",)

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.settings: dict[str, Any] = {}

    def forward(self, input_values: Tensor) -> Tensor:
        logits: Tensor = self.model(input_values=input_values).logits
        return logits


def with_head(model: torch.nn.Module) -> torch.nn.Module:
    """The module that suits a model: over samples where it makes frames of them itself, else over a spectrogram."""
    return SamplesWithHead(model) if hasattr(model, "_get_feat_extract_output_lengths") else SpectrogramWithHead(model)


@contextlib.contextmanager
def _ends_kept(model: Any, lengths: Tensor) -> Iterator[None]:
    """While it runs, nothing of a row depends on what stands behind its end.

    The first convolution's norm takes its mean over the row's own frames; every later convolution sees zeros behind the
    end, as beyond the end of a row that stands alone; and attention leaves out the frames behind it.

    Args:
        model: transformers' model with its head. lengths: [rows] int64, samples of each row.
    """
    frames = model._get_feat_extract_output_lengths(lengths)
    base = getattr(model, "base_model", model)
    extractor = base.feature_extractor
    places: list[tuple[dict[str, Any], str]] = []

    def put(module: Any, name: str, function: Any) -> None:
        vars(module)[name] = function
        places.append((vars(module), name))

    def mask_of(count: int, given: Tensor, add_adapter: bool | None = None) -> Tensor:
        return _is_real(frames, count)

    def zeros_behind(module: torch.nn.Module, x: Tensor) -> Tensor:  # [rows, width, frames]
        real = _is_real(frames, x.shape[2])[:, None].to(x.dtype)
        return torch.nn.Conv1d.forward(module, x * real)  # type: ignore[arg-type]

    try:
        for layer in extractor.conv_layers:
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, torch.nn.GroupNorm):
                kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
                own = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
                put(norm, "forward", partial(_norm_over_real, norm, own))
        inside = {id(module) for module in extractor.modules()}
        for module in base.modules():
            if isinstance(module, torch.nn.Conv1d) and id(module) not in inside and module.kernel_size[0] > 1:
                put(module, "forward", partial(zeros_behind, module))
        for module in (model, base):
            if "_get_feature_vector_attention_mask" not in vars(module):
                put(module, "_get_feature_vector_attention_mask", mask_of)
        yield
    finally:
        for values, name in places:
            del values[name]


def _is_real(counts: Tensor, size: int) -> Tensor:
    """[rows] frames of each row → [rows, size] bool, true before a row's end."""
    return torch.arange(size, device=counts.device)[None] < counts[:, None]


def _norm_over_real(norm: torch.nn.GroupNorm, counts: Tensor, x: Tensor) -> Tensor:
    """A norm of each channel over time, [rows, channels, frames], whose mean and variance are those of the real frames."""
    real = _is_real(counts, x.shape[2])[:, None].to(x.dtype)
    share = 1.0 / counts.to(x.dtype)[:, None, None]
    centred = (x - (x * real).sum(dim=2, keepdim=True) * share) * real
    variance = (centred * centred).sum(dim=2, keepdim=True) * share
    return centred * torch.rsqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]
