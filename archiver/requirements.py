"""What an archive asks of its host: lines of requirements.txt, from the versions installed here."""

from __future__ import annotations

import importlib.metadata


def requirement(package: str, least: str | None = None) -> str:
    """`package>=version`: the installed one's first two numbers, unless `least` says otherwise."""
    installed = importlib.metadata.version(package)
    return f"{package}>={least or '.'.join(installed.split('.')[:2])}"
