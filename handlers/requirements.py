"""Python packages that an archive needs: imported when they are used, and a missing or old one named in one sentence."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from handlers.errors import UnsoundArchive

# OpenVINO imports its converter with itself, and does without where it is not there: 0.1 of the 0.17 s that the import
# takes, and 7 MB in each worker.
_NOT_SERVED = ("openvino.tools.ovc",)


def leave_out_converters() -> None:
    """From now on what only a build needs of the runtimes is not imported in this process, which serves."""
    for name in _NOT_SERVED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # what Python takes for "not there"


def require(package: str, requirement: str) -> ModuleType:
    """The imported package.

    Args:
        package: the name to import.
        requirement: what to install, as in requirements.txt: `name` or `name>=version`.
    Returns: the module.
    Raises: UnsoundArchive when it cannot be imported or is too old. Never an ImportError: that one sends TorchServe
        looking for a built-in handler and hides the cause.
    """
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UnsoundArchive(
            f"this archive needs {requirement}, which this host's Python cannot import ({error}): "
            f'run `pip install "{requirement}"` for the Python that runs TorchServe'
        ) from error
    wanted = requirement.partition(">=")[2].split(",")[0]
    found = str(getattr(module, "__version__", "0"))
    if wanted and _version(found) < _version(wanted):
        raise UnsoundArchive(
            f"this archive needs {requirement}, this host has {found}: "
            f'run `pip install "{requirement}"` for the Python that runs TorchServe'
        )
    return module


def required(folder: Path, package: str) -> str:
    """The line of an archive's requirements.txt for one package.

    Args:
        folder: the extracted archive.
        package: its name on PyPI.
    Returns: the line; the bare name where there is none.
    """
    path = folder / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line for line in lines if line.partition(">=")[0] == package), package)


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2026.4.1-21905-…` → (2026, 4, 1)."""
    numbers = []
    for part in text.replace("-", ".").replace("+", ".").split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
