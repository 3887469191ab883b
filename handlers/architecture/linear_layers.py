"""One kind of linear layer: what transformers keeps in layers of other kinds becomes torch's Linear."""

import torch

from handlers.architecture.conv1d import conv1d_to_linear
from handlers.architecture.experts import experts_to_linear


def to_linear_layers(model: torch.nn.Module) -> torch.nn.Module:
    """Replace GPT-2's transposed layers and fused experts by Linear layers, in place; on the meta device as well.

    The build does so when it loads a model, and the archive's loader to the skeleton that it fills: names and shapes agree.
    Returns `model`.
    """
    return experts_to_linear(conv1d_to_linear(model))
