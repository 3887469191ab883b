"""The wall between the wings: what travels in the archive imports nothing of what builds it, and nothing heavy at once."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import handlers
from archiver.packaging.closure import import_closure
from archiver.packaging.layout import write_code
from archiver.runtimes import RUNTIMES
from archiver.tasks import FORWARD, TASKS

FOLDER = Path(handlers.__file__).parent
FILES = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.py"))}
# Heavy, or only on hosts of one runtime: never while a module of `handlers` is imported.
LAZY = {
    "jinja2",
    "llguidance",
    "onnxruntime",
    "opentelemetry",
    "openvino",
    "openvino_genai",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "ts",
    "vllm",
}
# These compute on torch tensors themselves, and are imported where the runtime is torch.
ON_TORCH = {"runtimes/torch_device.py", "runtimes/torch_generation.py"}
# Families of models of our own, made as transformers makes its: they are imported where one is built or loaded.
ON_TRANSFORMERS = {"architecture/outputs/sasrec.py"}
ARCHIVES = [
    (name, runtime.ways[task.execution].session.removeprefix("handlers.runtimes."))
    for name, task in TASKS.items()
    for runtime in RUNTIMES.values()
    if task.execution in runtime.ways
]


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Modules imported at the top of a module, and those imported inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = list(tree.body)
    found: tuple[set[str], set[str]] = (set(), set())
    for node in ast.walk(tree):
        where = found[0] if node in top else found[1]
        if isinstance(node, ast.Import):
            where |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide what is imported"
            where.add(node.module or "")
    return found


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("name", FILES)
def test_imports(name):
    top, lazy = (packages(found) for found in imports(FILES[name]))
    allowed = set(sys.stdlib_module_names) | {"handlers", "numpy"}
    if name in ON_TORCH or name.startswith("architecture/"):
        allowed |= {"torch"}
    if name in ON_TRANSFORMERS:
        allowed |= {"transformers"}
    assert top <= allowed
    assert lazy <= set(sys.stdlib_module_names) | {"handlers", "numpy"} | LAZY


@pytest.mark.parametrize("name", FILES)
def test_no_pickle_and_no_foreign_code(name):
    text = FILES[name].read_text(encoding="utf-8")
    top, lazy = (packages(found) for found in imports(FILES[name]))
    assert not {"pickle", "joblib", "dill", "marshal", "shelve"} & (top | lazy)
    assert "torch.load" not in text
    assert "trust_remote_code" not in text


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("torchserve/")])
def test_torchserve_is_touched_in_one_place(name):
    top, lazy = imports(FILES[name])
    assert "ts" not in packages(top | lazy)


def test_the_life_of_a_batch_knows_no_tokenizer():
    found = import_closure("handlers.base")
    assert "handlers/inputs/base.py" in found
    assert "handlers/inputs/text.py" not in found
    assert not [name for name in found if name.startswith(("handlers/generation/", "handlers/tasks/"))]


def stage(folder: Path, task: str, session: str) -> None:
    more: dict[str, Any] = {"handler": TASKS[task].handler, "session": f"handlers.runtimes.{session}"}
    write_code(folder, name="m", version="1", requirements=[], config={}, **more)


@pytest.mark.parametrize(("task", "session"), ARCHIVES)
def test_the_entry_of_an_archive_imports_alone_and_light(tmp_path, task, session):
    """In a process that sees the archive and not this repository, no heavy package comes with the entry module."""
    stage(tmp_path, task, session)
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
    assert done.stdout.strip() == ("['torch']" if session.startswith("torch_generation") else "[]")


BESIDE = {  # what a runtime's module needs of others
    "openvino": {"openvino_config.py"},
    "openvino_paged": {"openvino_adapters.py"},
    "openvino_seq2seq": {"openvino_config.py"},
}


@pytest.mark.parametrize(("task", "session"), ARCHIVES)
def test_an_archive_carries_what_it_needs_and_no_more(tmp_path, task, session):
    stage(tmp_path, task, session)
    carried = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "handlers").rglob("*.py")}
    generates, on_torch = TASKS[task].execution != FORWARD, session.startswith("torch")
    assert any(name.startswith("handlers/generation/") for name in carried) is generates
    assert any(name.startswith("handlers/architecture/") for name in carried) is on_torch
    runtimes = {name.removeprefix("handlers/runtimes/") for name in carried if name.startswith("handlers/runtimes/")}
    own = {"base.py", f"{session.partition(':')[0]}.py"} | BESIDE.get(session.partition(":")[0], set())
    assert runtimes == {"__init__.py"} | own | ({"torch_device.py"} if on_torch else set())
    # Nothing that it imports is missing, wherever the import stands.
    for name in carried:
        for wanted in set.union(*imports(tmp_path / name)):
            if wanted.partition(".")[0] == "handlers":
                path = wanted.replace(".", "/")
                assert {f"{path}.py", f"{path}/__init__.py"} & carried, f"{name} imports {wanted}"


def test_a_missing_package_is_one_sentence_and_no_import_error(tmp_path):
    """An ImportError would send TorchServe to its built-in handlers and hide the cause."""
    stage(tmp_path, "text-classification", "onnxruntime:OnnxRuntimeSession")
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')\n")
    code = "import sys; sys.path.insert(0, '.'); import marpress_entry"
    done = subprocess.run([sys.executable, "-P", "-s", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == (
        "RuntimeError: the archive's handler cannot be imported: no numpy here; "
        "install what requirements.txt in the archive lists"
    )
