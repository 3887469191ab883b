"""The wall between the wings: what travels in the archive imports nothing of what builds it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import handlers
from archiver.packaging.layout import GENERATION_RUNTIMES, HANDLERS, TORCH_ONLY, write_code
from archiver.spec import Recipe

FOLDER = Path(handlers.__file__).parent
FILES = sorted(FOLDER.glob("*.py"))
# Heavy, or only on hosts of one runtime: never while a module of `handlers` is imported.
LAZY = {
    "jinja2",
    "onnxruntime",
    "openvino",
    "openvino_genai",
    "transformers",
    "ts",
    "tokenizers",
    "torch",
    "safetensors",
}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Packages imported at the top of a module, and those imported inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = list(tree.body)
    found: tuple[set[str], set[str]] = (set(), set())
    for node in ast.walk(tree):
        where = found[0] if node in top else found[1]
        if isinstance(node, ast.Import):
            where |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide what is imported"
            where.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports(path):
    top, lazy = imports(path)
    assert "archiver" not in top | lazy
    allowed = set(sys.stdlib_module_names) | {"handlers", "numpy"}
    if path.name in TORCH_ONLY or GENERATION_RUNTIMES.get(path.name) == "torch":
        allowed |= {"torch", "safetensors"}
    assert top <= allowed
    assert lazy <= set(sys.stdlib_module_names) | {"handlers", "numpy"} | LAZY


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_pickle_and_no_foreign_code(path):
    text = path.read_text(encoding="utf-8")
    top, lazy = imports(path)
    assert not {"pickle", "joblib", "dill", "marshal", "shelve"} & (top | lazy)
    assert "torch.load" not in text
    assert "trust_remote_code" not in text


@pytest.mark.parametrize(
    ("task", "runtime"),
    [
        (task, runtime)
        for task in sorted(HANDLERS)
        for runtime in ("onnxruntime", "openvino")
        if (task, runtime) != ("text-generation", "onnxruntime")
    ],
)
def test_the_entry_of_an_archive_imports_alone_and_light(tmp_path, task, runtime):
    """In a process that sees the archive and not this repository, no heavy package comes with the entry module."""
    write_code(tmp_path, Recipe(name="m", version="1", task=task, model="embedded:x"), runtime)
    assert not TORCH_ONLY & {path.name for path in (tmp_path / "handlers").iterdir()}
    code = (
        "import sys; sys.path.insert(0, '.'); import marpress_entry, handlers, os\n"
        "assert os.path.dirname(os.path.abspath(handlers.__file__)) == os.path.abspath('handlers')\n"
        f"print(sorted({LAZY | {'archiver'}!r} & set(sys.modules)))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-P", "-s", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "[]"


def test_a_missing_package_is_one_sentence_and_no_import_error(tmp_path):
    """An ImportError would send TorchServe to its built-in handlers and hide the cause."""
    write_code(tmp_path, Recipe(name="m", version="1", task="text-classification", model="embedded:x"), "onnxruntime")
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')\n")
    code = "import sys; sys.path.insert(0, '.'); import marpress_entry"
    done = subprocess.run([sys.executable, "-P", "-s", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == (
        "RuntimeError: the archive's handler cannot be imported: no numpy here; "
        "install what requirements.txt in the archive lists"
    )
