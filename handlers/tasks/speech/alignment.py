"""When each token of a transcript was said, by where the decoder looked while it wrote it.

Source: the word times of OpenAI's Whisper, as transformers computes them (dynamic time warping over cross-attention).
"""

import numpy as np

MEDIAN = 7  # frames


def token_times(attention: np.ndarray, frames: int, seconds: float = 0.02) -> np.ndarray:
    """When each token began.

    Args:
        attention: [heads, tokens, length], of the heads that follow the sound. frames: of the recording itself, from 1.
        seconds: of a frame.
    Returns: [tokens] seconds, not falling.
    """
    weights = attention[:, :, : max(1, frames)].astype(np.float64)
    deviation = weights.std(axis=1, keepdims=True)
    weights = (weights - weights.mean(axis=1, keepdims=True)) / np.where(deviation > 0, deviation, 1.0)
    matrix = _smooth(weights).mean(axis=0)
    rows, columns = warped(-matrix)
    first = np.concatenate([[True], np.diff(rows) > 0])
    found: np.ndarray = columns[first] * seconds
    return found


def _smooth(weights: np.ndarray) -> np.ndarray:
    """The median of MEDIAN neighbours along the last axis, mirrored at the edges."""
    side = MEDIAN // 2
    if weights.shape[-1] <= side:
        return weights
    padded = np.pad(weights, [(0, 0), (0, 0), (side, side)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, MEDIAN, axis=-1)
    found: np.ndarray = np.median(windows, axis=-1)
    return found


def warped(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest way through a matrix from its first to its last field, by steps down, right and diagonal.

    Args:
        cost: [rows, columns].
    Returns: (rows, columns) of the fields on the way, in order. Computed along diagonals, whose fields depend on the two
        before only.
    Source: Sakoe & Chiba 1978, dynamic time warping.
    """
    height, width = cost.shape
    total = np.full((height + 1, width + 1), np.inf, np.float32)
    total[0, 0] = 0.0
    came = np.full((height + 1, width + 1), 2, np.int8)
    came[1:, 0] = 1
    for diagonal in range(2, height + width + 1):
        i = np.arange(max(1, diagonal - width), min(height, diagonal - 1) + 1)
        j = diagonal - i
        both, down, right = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
        choice = np.where((both < down) & (both < right), 0, np.where((down < both) & (down < right), 1, 2))
        total[i, j] = cost[i - 1, j - 1] + np.choose(choice, (both, down, right))
        came[i, j] = choice
    rows, columns, i, j = [], [], height, width
    while i > 0 or j > 0:
        rows.append(i - 1)
        columns.append(j - 1)
        step = came[i, j]
        i, j = i - (step != 2), j - (step != 1)
    return np.array(rows[::-1]), np.array(columns[::-1])
