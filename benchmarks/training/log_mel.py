"""Ears for a small Wav2Vec2: its first three convolutions as the logarithm of mel bands' magnitudes, and how these change.

A model that is trained from four voices does not find out by itself what recognisers start from. Convolutions, layer norms
and GELU can compute it, so that it travels in the model's own weights:

1. A windowed wave of four phases for each band. The norm divides by the frame's own loudness (its epsilon is the floor:
   what is softer counts as silent), and GELU leaves of the phases ± what adds up to the band's magnitude.
2. Ramps that begin at magnitudes THRESHOLDS, a factor of six apart, of which the third layer makes a logarithm in straight
   pieces. Each ramp's negative stands beside it and two large constants behind all, so that the norm of this layer changes
   nothing: the mean is 0, and the deviation that of the constants.
3. The logarithm and its negative, the change and its negative, smoothed over 25 ms, one frame in 20 ms.
"""

import math
from typing import Any

import numpy as np
import torch

RATE = 16_000
BANDS, WINDOW, STEP = 24, 256, 80  # mel bands; samples of a window, and from one to the next
RANGE = (80.0, 3900.0)  # Hz: telephone recordings hold no more
THRESHOLDS = (0.2, 1.2, 7.0, 42.0)
GAIN = 30.0  # magnitudes are counted in thirtieths of the frame's mean one
LOUDNESS = 0.6  # of the waves: puts the floor some 35 dB below a loud frame
CONSTANT = 3e4
MIDDLE, SCALE = 3.3, 0.6  # the logarithm's middle becomes 0
SMOOTHED, CHANGE = (0.1, 0.25, 0.3, 0.25, 0.1), (-0.5, -0.25, 0.0, 0.25, 0.5)
RAMPS = BANDS * len(THRESHOLDS)
LAYERS: dict[str, Any] = {
    "feat_extract_norm": "layer", "conv_bias": True, "conv_dim": (4 * BANDS, 2 * RAMPS + 2, 4 * BANDS),
    "conv_kernel": (WINDOW, 1, len(SMOOTHED)), "conv_stride": (STEP, 1, 4),
}  # fmt: skip


def listen(model: Any) -> None:
    """Set the first three convolutions, and leave them out of training.

    Args:
        model: a Wav2Vec2ForCTC whose first layers are LAYERS.
    """
    layers = model.wav2vec2.feature_extractor.conv_layers[:3]
    with torch.no_grad():
        for layer in layers:
            for part in (layer.conv, layer.layer_norm):
                part.weight.zero_()
                part.bias.zero_()
        _waves(layers[0])
        _ramps(layers[1])
        _logarithms(layers[2])
    for parameter in layers.parameters():
        parameter.requires_grad_(False)
    # Else transformers asks for gradients of the samples themselves, through all that does not learn: twice the time.
    model.wav2vec2.feature_extractor._requires_grad = False


def _waves(layer: Any) -> None:
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in RANGE)
    centres = 700 * (10 ** (np.linspace(low, high, BANDS) / 2595) - 1)
    phases = np.arange(4)[None, :, None] * np.pi / 2
    places = np.arange(WINDOW) - WINDOW / 2
    waves = np.cos(2 * np.pi * centres[:, None, None] * places / RATE + phases) * np.hanning(WINDOW) / WINDOW
    layer.conv.weight.copy_(torch.from_numpy(4 * LOUDNESS * waves.reshape(4 * BANDS, 1, WINDOW)))
    layer.layer_norm.weight.fill_(GAIN)


def _ramps(layer: Any) -> None:
    weight, bias = layer.conv.weight, layer.conv.bias
    for band in range(BANDS):
        for number, threshold in enumerate(THRESHOLDS):
            ramp = band * len(THRESHOLDS) + number
            weight[ramp, 4 * band : 4 * band + 4] = 0.5 * 3 / threshold  # half the sum of the phases is the magnitude
            bias[ramp] = -3.0
    weight[RAMPS : 2 * RAMPS] = -weight[:RAMPS]
    bias[RAMPS : 2 * RAMPS] = -bias[:RAMPS]
    bias[2 * RAMPS], bias[2 * RAMPS + 1] = CONSTANT, -CONSTANT
    layer.layer_norm.weight[:RAMPS] = CONSTANT * math.sqrt(2 / (2 * RAMPS + 2))


def _logarithms(layer: Any) -> None:
    bends, before = [], 0.0
    for threshold, beyond in zip(THRESHOLDS, (*THRESHOLDS[1:], 3 * THRESHOLDS[-1]), strict=True):
        slope = math.log(beyond / threshold) / (beyond - threshold)
        bends.append((slope - before) * threshold / 3)
        before = slope
    logarithm = torch.tensor(bends)[:, None]
    smoothed, change = logarithm * torch.tensor(SMOOTHED), logarithm * torch.tensor(CHANGE)
    for band in range(BANDS):
        ramps = slice(band * len(THRESHOLDS), (band + 1) * len(THRESHOLDS))
        for place, taps in enumerate((SCALE * smoothed, -SCALE * smoothed, change, -change)):
            layer.conv.weight[place * BANDS + band, ramps] = taps
        layer.conv.bias[band], layer.conv.bias[BANDS + band] = -MIDDLE * SCALE, MIDDLE * SCALE
    layer.layer_norm.weight.fill_(1.0)
