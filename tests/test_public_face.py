"""What `import archiver` gives, lazily, and where modules of before have gone."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import archiver
from archiver.moved import MODULES, PACKAGES

ROOT = Path(archiver.__file__).resolve().parent.parent
FACE = {
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
}


def test_the_names_are_these_and_no_others():
    assert set(archiver.__all__) == FACE
    assert set(dir(archiver)) == FACE | {"__version__"}
    for name in FACE:
        assert callable(getattr(archiver, name))
    with pytest.raises(AttributeError, match="archiver has no 'search'; it has ArchiverError, DataError"):
        _ = archiver.search


def test_no_room_bears_the_name_of_a_function():
    rooms = {path.stem for path in (ROOT / "archiver").iterdir()}
    assert not rooms & FACE


def test_importing_it_loads_nothing_heavy():
    code = "import sys, archiver; print(sorted({'torch', 'transformers', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_dictionaries_need_no_torch():
    code = (
        "import sys; from archiver.tasks import TASKS; from archiver.runtimes import RUNTIMES\n"
        "from archiver.compression import METHODS; print(sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_that_has_moved_says_where_to(name):
    for target in MODULES[name].split(" and "):
        assert importlib.util.find_spec(target) is not None
    with pytest.raises(ModuleNotFoundError, match=f"{name} has moved: import {MODULES[name]}"):
        importlib.import_module(name)


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_a_name_of_a_module_that_is_a_package_now(name):
    package = importlib.import_module(name)
    with pytest.raises(ImportError, match=f"{name} has no Anything; what it held as a module lies in archiver"):
        package.Anything  # noqa: B018
