"""What tasks share that answer recordings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handlers.base import BatchHandler
from handlers.inputs.media.audio import Audio
from handlers.inputs.media.audio_file import Recording
from handlers.protocols.request import Request


class AudioHandler(BatchHandler[Recording]):
    """A handler whose inputs are recordings, of which one request may hold `max_seconds`."""

    input: Audio

    def make_input(self, folder: Path) -> Audio:
        return Audio.open(folder, self.serving)

    def accept(self, row: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[Request, list[Sequence[Any]]]:
        with self.input.one_request():
            return super().accept(row, headers)
