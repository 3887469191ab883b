"""marpress: compress a Hugging Face model, prove what that cost, package it as a self-contained TorchServe archive.

The public face, loaded when it is asked for: `build`, `check`, `verify`, `inspect`, `load_recipe`, `Recipe` and the errors.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

import handlers  # noqa: F401 - before anything of OpenVINO: see there
from archiver.moved import put_up_signpost
from archiver.version import __version__ as __version__

if TYPE_CHECKING:
    from archiver.errors import (
        ArchiverError,
        DataError,
        GateFailed,
        PackagingError,
        RecipeError,
        UnsupportedModelError,
    )
    from archiver.packaging.verify import verify
    from archiver.pipeline.build import build
    from archiver.pipeline.build import check_only as check
    from archiver.recipe.load import load_recipe
    from archiver.report.inspection import inspect_mar as inspect
    from archiver.spec import Recipe


# torch's OpenMP threads wait for each other by spinning, by default for so long that on a host with other work two of them
# starve: 2.7 to 14.7 s instead of 0.25 s for a generation of a small model, measured on two busy cores. A short spin costs
# a quiet host nothing. Read when torch is loaded, so it is set before anything is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

put_up_signpost()

_FACE = {
    "build": "archiver.pipeline.build:build",
    "check": "archiver.pipeline.build:check_only",
    "verify": "archiver.packaging.verify:verify",
    "inspect": "archiver.report.inspection:inspect_mar",
    "load_recipe": "archiver.recipe.load:load_recipe",
    "Recipe": "archiver.spec:Recipe",
    "ArchiverError": "archiver.errors:ArchiverError",
    "DataError": "archiver.errors:DataError",
    "GateFailed": "archiver.errors:GateFailed",
    "PackagingError": "archiver.errors:PackagingError",
    "RecipeError": "archiver.errors:RecipeError",
    "UnsupportedModelError": "archiver.errors:UnsupportedModelError",
}

__all__ = [
    "ArchiverError",
    "DataError",
    "GateFailed",
    "PackagingError",
    "Recipe",
    "RecipeError",
    "UnsupportedModelError",
    "build",
    "check",
    "inspect",
    "load_recipe",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"archiver has no {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _FACE[name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
