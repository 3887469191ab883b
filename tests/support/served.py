"""What the live tests serve, and with which bounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from handlers.tasks.encoder import EncoderHandler

MAX_LENGTH = 32
MAX_INPUTS = 8
BATCH = 16


@dataclass
class Served:
    """A built archive: its file, its settings, and its handler in this process, which says what is right."""

    name: str
    path: Path
    handler: EncoderHandler

    @property
    def tolerance(self) -> float:
        return float(self.handler.serving["tolerance"])
