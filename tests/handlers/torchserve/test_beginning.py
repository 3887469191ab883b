"""What Python reads before TorchServe's worker begins, in Pythons of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from handlers.torchserve import beginning


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive's folder, and beside it a torch of our own and another sitecustomize."""
    folder = tmp_path / "archive"
    folder.mkdir()
    shutil.copyfile(beginning.__file__, folder / "sitecustomize.py")
    host = tmp_path / "host"
    (host / "torch").mkdir(parents=True)
    (host / "torch/__init__.py").write_text("print('imported')\n__version__ = '9'\nvalue = 5\n")
    (host / "torch/part.py").write_text("import torch\nfound = torch.value\n")
    (host / "sitecustomize.py").write_text("print('the host, too')\n")
    return folder


def run(archive: Path, code: str, name: str = beginning.WORKER) -> list[str]:
    script = archive.parent / name
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": f"{archive}:{archive.parent / 'host'}:"},
        cwd=archive,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_torch_is_imported_when_it_is_used(archive: Path) -> None:
    code = """
import importlib.util, inspect, sys
import torch
inspect.getmodule(inspect.currentframe())  # looks at all modules
assert importlib.util.find_spec("torch").origin.endswith("__init__.py") and not hasattr(torch, "__file__")
print("not yet")
print(torch.value)
print(torch.__version__, sys.modules["torch"] is torch, torch.__path__ == sys.modules["torch"].__path__)
"""
    assert run(archive, code) == ["the host, too", "not yet", "imported", "5", "9 False True"]


@pytest.mark.parametrize("how", ["import torch.part; found = torch.part.found", "from torch.part import found"])
def test_its_parts_can_be_imported_first(archive: Path, how: str) -> None:
    assert run(archive, f"{how}\nprint(found)") == ["the host, too", "imported", "5"]


def test_where_it_cannot_be_imported_that_is_told_each_time(archive: Path) -> None:
    (archive.parent / "host/torch/__init__.py").write_text("raise ImportError('broken')\n")
    code = """
import torch
for use in ("torch.value", "__import__('torch')"):
    try:
        eval(use)
    except ImportError as error:
        print(error)
"""
    assert run(archive, code) == ["the host, too", "broken", "broken"]


def test_other_pythons_are_left_alone(archive: Path) -> None:
    assert run(archive, "import torch", "other.py") == ["the host, too", "imported"]


def test_nothing_stands_for_what_is_not_there_or_imported_already() -> None:
    beginning.put_off("marpress_is_no_module")
    assert "marpress_is_no_module" not in sys.modules
    beginning.put_off("pathlib")
    assert sys.modules["pathlib"].Path is Path
