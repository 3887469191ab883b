"""What an archive carries: the import closure of its entry, read from the source."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import handlers.tasks
from archiver.errors import PackagingError
from archiver.packaging.closure import import_closure
from archiver.packaging.entry import handler_of, make_handler
from archiver.packaging.layout import write_code
from handlers.tasks.text.classification import TextClassificationHandler

TOY = '''"""A toy task: how long each text is."""

from typing import TYPE_CHECKING, ClassVar

from handlers.base import BatchHandler
from handlers.inputs.text import Text
from . import toy_words as words

if TYPE_CHECKING:
    from handlers.runtimes.vllm import VllmBackend
else:
    import handlers.batching


class ToyHandler(BatchHandler):
    parameters: ClassVar[dict] = {}

    def make_input(self, folder):
        return Text.open(folder, self.serving)

    def answers(self, outputs, items, parameters):
        from handlers.examples import largest_share

        return [words.NAME] * len(outputs)

    def compare(self, stored, found):
        return 0.0 if stored == found else float("inf")
'''


@pytest.fixture
def toy(tmp_path, monkeypatch) -> str:
    """A task in a folder that is appended to the path of `handlers.tasks`."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "toy.py").write_text(TOY)
    (folder / "toy_words.py").write_text('NAME = "toy"\n')
    monkeypatch.setattr(handlers.tasks, "__path__", [*handlers.tasks.__path__, str(folder)])
    yield "handlers.tasks.toy:ToyHandler"
    for name in ("toy", "toy_words"):
        sys.modules.pop(f"handlers.tasks.{name}", None)
        if hasattr(handlers.tasks, name):
            delattr(handlers.tasks, name)


@pytest.fixture
def module(tmp_path, monkeypatch) -> Callable[[str], set[str]]:
    """The closure of a module with this source, without what every closure of it has."""
    monkeypatch.setattr(handlers.tasks, "__path__", [*handlers.tasks.__path__, str(tmp_path)])

    def closure(source: str) -> set[str]:
        (tmp_path / "example.py").write_text(source)
        found = set(import_closure("handlers.tasks.example"))
        own = {"handlers/__init__.py", "handlers/tasks/__init__.py", "handlers/tasks/example.py"}
        assert own <= found
        return found - own

    return closure


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import json, numpy.linalg\nfrom handlersque import x\n", set()),
        ("import handlers.errors\n", {"errors.py"}),
        ("from handlers.errors import BadRequest\n", {"errors.py"}),
        ("from handlers import errors, cpu\n", {"errors.py", "cpu.py"}),
        ("from handlers.errors import *\n", {"errors.py"}),
        ("def f():\n    if True:\n        import handlers.errors as e\n", {"errors.py"}),
        ("try:\n    import handlers.cpu\nexcept ImportError:\n    import handlers.errors\n", {"cpu.py", "errors.py"}),
        ("from handlers.storage import bit_packing\n", {"storage/__init__.py", "storage/bit_packing.py"}),
        ("from ..storage.bit_packing import pack\n", {"storage/__init__.py", "storage/bit_packing.py"}),
        ("from .. import errors\n", {"errors.py"}),
        ("from handlers.requirements import require\n", {"requirements.py", "errors.py"}),  # what that imports, too
        (
            "import typing\nif typing.TYPE_CHECKING:\n    import handlers.cpu\nelse:\n    import handlers.errors\n",
            {"errors.py"},
        ),
    ],
)
def test_closure_by_hand(module, source, found):
    assert module(source) == {f"handlers/{name}" for name in found}


def test_what_cannot_travel_is_refused(module):
    with pytest.raises(PackagingError, match="handlers.tasks.no_such is needed in the archive and is not found"):
        import_closure("handlers.tasks.no_such")
    with pytest.raises(PackagingError, match="handlers.no_such is needed in the archive and is not found"):
        module("import handlers.no_such\n")
    with pytest.raises(PackagingError, match="archiver.cli cannot travel in an archive: only modules of the package"):
        import_closure("archiver.cli")
    with pytest.raises(PackagingError, match="'handlers.base' names no class; write module:Class"):
        make_handler("handlers.base", "handlers.base:X")


def test_a_task_beside_the_package_travels_with_all_it_imports(toy, tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    session = "handlers.runtimes.onnxruntime:OnnxRuntimeSession"
    write_code(folder, name="m", version="v1", handler=toy, session=session, requirements=["numpy"], config={})
    names = {path.relative_to(folder / "handlers").as_posix() for path in (folder / "handlers").rglob("*.py")}
    assert {"tasks/toy.py", "tasks/toy_words.py", "runtimes/onnxruntime.py", "examples.py", "batching.py"} <= names
    assert not {name for name in names if "vllm" in name or "generation" in name or "architecture" in name}
    # Here, where the folder is on the path of the package, and in a process that sees the archive alone.
    assert type(handler_of(folder)).__mro__[1].__name__ == "ToyHandler"
    code = (
        "import sys; sys.path.insert(0, '.'); import json, marpress_entry as entry; made = entry.Handler()\n"
        "print(json.dumps([type(made).__mro__[1].__module__, entry.Handler.runtime.name, made.answers([0], [0], {})]))"
    )
    done = subprocess.run([sys.executable, "-P", "-s", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    assert json.loads(done.stdout) == ["handlers.tasks.toy", "onnxruntime", ["toy"]]


def test_the_entry_makes_the_class_that_the_build_makes(tmp_path):
    names = {
        "handler": "handlers.tasks.text.classification:TextClassificationHandler",
        "session": "handlers.runtimes.openvino:OpenVinoSession",
    }
    write_code(tmp_path, name="m", version="v1", requirements=[], config={}, **names)
    path = list(sys.path)
    served, built = handler_of(tmp_path), make_handler(**names)
    assert sys.path == path
    assert isinstance(served, TextClassificationHandler) and isinstance(built, TextClassificationHandler)
    assert type(served).runtime is type(built).runtime
    assert type(built).__name__ == "Handler"


def test_an_archive_of_another_version_is_not_opened_in_this_process(tmp_path: Path):
    with pytest.raises(PackagingError, match="the archive's entry cannot be loaded by this version .*No such file"):
        handler_of(tmp_path)
    entry = tmp_path / "marpress_entry.py"
    entry.write_text("from handlers.base import TaskHandler\n\nclass Handler:\n    pass\n")
    with pytest.raises(PackagingError, match="built by an earlier version, whose entry names no session"):
        handler_of(tmp_path)
    entry.write_text("raise RuntimeError('the archive\\'s handler cannot be imported')\n")
    with pytest.raises(PackagingError, match="handler cannot be imported.*: rebuild the archive, or use the version"):
        handler_of(tmp_path)
