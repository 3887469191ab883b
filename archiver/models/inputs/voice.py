"""The network that finds speech, where it lies on this host: it travels in archives that skip silence."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from handlers.inputs.media.voice import FILE, RATE

_PACKAGE = "silero_vad"


def voice_problems(rate: int) -> list[str]:
    """What keeps silence from being skipped here, one sentence each.

    Args:
        rate: samples a second that the model takes.
    """
    problems = []
    if rate != RATE:
        problems.append(f"serve.skip_silence needs a model that takes {RATE} samples a second; this one takes {rate}")
    if _found() is None:
        problems.append(
            "serve.skip_silence needs the package silero-vad, of which its network is taken: run "
            "`pip install --no-deps silero-vad`, or remove the key"
        )
    return problems


def voice_file() -> Path:
    """The network's file. `voice_problems` has said that it is there."""
    found = _found()
    assert found is not None
    return found


def _found() -> Path | None:
    """The package is not imported: it would bring torch's audio libraries."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    files = [Path(place) / "data" / FILE for place in places or ()]
    return next((file for file in files if file.is_file()), None)
