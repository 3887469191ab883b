"""Recordings for a model that hears windows of one length: their parts, each as a spectrogram."""

from collections.abc import Sequence

import numpy as np

from handlers.inputs.media.audio import Audio, Sound


class SoundWindows(Audio):
    """Items are parts of recordings, of at most the features' seconds; a part's size is its length in seconds."""

    def size(self, item: Sound) -> int:
        return max(1, round(len(item.samples) / self.features.rate))

    def collate(self, items: Sequence[Sound], size: int, rows: int) -> dict[str, np.ndarray]:
        made = [np.ascontiguousarray(self.features(item.samples).T) for item in items]
        return {"input_features": np.stack([*made, *[made[0]] * (rows - len(made))])}
