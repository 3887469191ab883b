"""Checks that the locked dependencies resolve for every Python that `make setup` takes: `make check-lock`.

pip's dry run finds a wheel for each pinned version (those of torch are downloaded once into pip's cache, about 2 GB for
each Python without a local CPU build). It evaluates environment markers for the Python that runs it, so what the chosen
packages require is compared with the lock once more here, with the markers of the Python that is asked about.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
LOCK, NO_DEPS = ROOT / "requirements.lock", ROOT / "requirements-no-deps.lock"
# What torch brings with its CUDA build; a CPU build brings none of it.
PLATFORM = re.compile(r"nvidia-|cuda-|triton$")


def main() -> int:
    """Print one line for each Python and each problem. Returns: 0 where all resolve, else 1."""
    failed = False
    for python in PYTHONS:
        problems = check(python)
        print(f"Python {python}: {'does not resolve' if problems else 'resolves'}")
        for problem in problems:
            print(f"  {problem}")
        failed = failed or bool(problems)
    return int(failed)


def check(python: str) -> list[str]:
    """What keeps both lock files from being installed under one Python.

    Args:
        python: "major.minor".
    Returns: sentences, none where everything resolves.
    """
    try:
        found, alone = dry_run(python, LOCK, "--only-binary=:all:"), dry_run(python, NO_DEPS, "--no-deps")
    except subprocess.CalledProcessError as error:
        return [line for line in error.stderr.splitlines() if line.startswith("ERROR")] or [error.stderr]
    pinned = {
        canonicalize_name(line.split("==")[0]) for line in LOCK.read_text(encoding="utf-8").splitlines() if "==" in line
    }
    versions = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in found + alone}
    problems = [
        f"{name}=={version} is required but not in {LOCK.name}: add it"
        for item in found
        for name, version in [(canonicalize_name(item["metadata"]["name"]), item["metadata"]["version"])]
        if name not in pinned and not PLATFORM.match(name)
    ]
    environment = {name: str(value) for name, value in default_environment().items()}
    environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    for item in found:
        for text in item["metadata"].get("requires_dist", ()):
            need = Requirement(text)
            extras = ("", *item.get("requested_extras", ()))
            if need.marker and not any(need.marker.evaluate({**environment, "extra": extra}) for extra in extras):
                continue
            version = versions.get(canonicalize_name(need.name))
            if version is None or not need.specifier.contains(version, prereleases=True):
                problems.append(f"{item['metadata']['name']} requires {need}, the lock has {version or 'none'}")
    return problems


def dry_run(python: str, lock: Path, *options: str) -> list[dict[str, Any]]:
    """What pip would install.

    Args:
        python: "major.minor".
        lock: a requirements file.
        options: more options of `pip install`.
    Returns: the entries of pip's installation report.
    Raises: subprocess.CalledProcessError where pip finds no solution; its stderr has the reasons.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check"]
        command += ["--ignore-installed", "--python-version", python, "--target", folder]
        command += ["--report", str(report), *options, "-r", str(lock)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        installed: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return installed


if __name__ == "__main__":
    sys.exit(main())
