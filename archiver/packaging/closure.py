"""Which of our modules an archive must carry: those that its entry imports, directly or through others.

The import statements are read from the source, so nothing is imported to find out, and no list is kept by hand.
"""

import ast
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from archiver.errors import PackagingError

PACKAGE = "handlers"


def import_closure(*modules: str) -> dict[str, Path]:
    """The source files that `modules` need of the package `handlers`.

    Imports inside functions count: they run when the archive serves. Those under `if TYPE_CHECKING:` do not.

    Args:
        modules: names such as `handlers.tasks.text.classification`. A module may lie outside this repository, on a folder
            that was appended to the `__path__` of a package of `handlers`.
    Returns: path inside the archive (`handlers/…/x.py`) → file, with every package's `__init__.py`, sorted by path.
    Raises: PackagingError when a module is not in `handlers`, or cannot be found.
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        spec = _spec(name)
        if spec is None or spec.origin is None:
            raise PackagingError(f"the module {name} is needed in the archive and is not found as a Python source file")
        source, is_package = Path(spec.origin), spec.submodule_search_locations is not None
        path = name.replace(".", "/") + ("/__init__.py" if is_package else ".py")
        found[path] = source
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        waiting += _imports(source, name if is_package else name.rpartition(".")[0])
    return dict(sorted(found.items()))


def _spec(name: str) -> ModuleSpec | None:
    """Where a module lies; its parents are imported for it, which are empty packages."""
    if name.partition(".")[0] != PACKAGE:
        raise PackagingError(f"the module {name} cannot travel in an archive: only modules of the package {PACKAGE} do")
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    return spec if spec is not None and (spec.origin or "").endswith(".py") else None


def _imports(source: Path, package: str) -> Iterator[str]:
    """The modules of `handlers` that a file imports; package: the one that relative imports start from."""
    for node in _statements(ast.parse(source.read_text(encoding="utf-8"), str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            if _is_ours(base):
                yield base
                # `from package import name`: the name may be a module.
                names = (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
                yield from (name for name in names if _is_package(base) and _spec(name) is not None)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node` but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                yield other
                yield from _statements(other)
        else:
            yield child
            yield from _statements(child)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The module that a `from … import` names."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def _is_package(name: str) -> bool:
    spec = _spec(name)
    return spec is not None and spec.submodule_search_locations is not None
