"""An archive's entry module: one class, made of the task's handler and the runtime's session, or several runtimes'.

All are named as `package.module:Class`. The same class is made in this process for the build, and by the entry module in
the worker.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archiver.errors import PackagingError
from handlers.base import TaskHandler
from handlers.manifest import ENTRY

_SOURCE = '''"""TorchServe looks for `handle` in the archive's root: it is one instance of the class named here."""

import os
import sys

# Another `handlers` package on the host must not hide the one in this archive.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

try:
{imports}
except ImportError as error:  # an ImportError would send TorchServe to its built-in handlers and hide the cause
    raise RuntimeError(
        f"the archive's handler cannot be imported: {{error}}; install what requirements.txt in the archive lists"
    ) from error


class Handler({bases}):
    {runtimes}
'''
CHOOSING = "handlers.choosing:ChoosingHandler"


def entry_source(handler: str, session: str | Mapping[str, str]) -> str:
    """The source of an entry module.

    Args:
        handler: a subclass of handlers.base.TaskHandler.
        session: a class that its `load` can open; or several by the names of their runtimes, of which the worker takes one.
    Returns: the module's text.
    """
    imports = [f"    from {module} import {found}" for module, found in map(split_name, named_in(handler, session))]
    if isinstance(session, str):
        bases, runtimes = [handler], f"runtime = {split_name(session)[1]}"
    else:
        named = ", ".join(f'"{name}": {split_name(one)[1]}' for name, one in session.items())
        bases, runtimes = [CHOOSING, handler], "runtimes = {" + named + "}"
    return _SOURCE.format(
        imports="\n".join(imports), bases=", ".join(split_name(base)[1] for base in bases), runtimes=runtimes
    )


def named_in(handler: str, session: str | Mapping[str, str]) -> list[str]:
    """What an entry imports, as `module:Class`; arguments as `entry_source` has them."""
    return [handler, session] if isinstance(session, str) else [CHOOSING, handler, *session.values()]


def make_handler(handler: str, session: str) -> TaskHandler[Any]:
    """The handler that the entry module of the same names would make, not opened, in this process."""
    made: TaskHandler[Any] = type("Handler", (_named(handler),), {"runtime": _named(session)})()
    return made


def handler_of(folder: Path) -> TaskHandler[Any]:
    """The handler of an archive, made by its own entry from the `handlers` of this process; not opened.

    Args:
        folder: an extracted archive that is trusted: its entry module runs here.
    Returns: a handler to `open` on the same folder.
    Raises: PackagingError when the entry names what this version does not have: `verify` loads such an archive by itself.
    """
    spec = importlib.util.spec_from_file_location("marpress_entry", folder / ENTRY)
    if spec is None or spec.loader is None:
        raise PackagingError(f"{folder.name} has no entry module {ENTRY}: it is no marpress archive")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
        made: TaskHandler[Any] = module.Handler()
    except (OSError, RuntimeError, AttributeError) as error:
        raise PackagingError(
            f"the archive's entry cannot be loaded by this version ({error}): rebuild the archive, or use the version that "
            "built it"
        ) from error
    finally:
        sys.path[:] = path
    if not hasattr(made, "runtime") and not hasattr(made, "runtimes"):
        raise PackagingError("the archive was built by an earlier version, whose entry names no session: rebuild it")
    return made


def split_name(name: str) -> tuple[str, str]:
    """(module, class) of `module:Class`."""
    module, _, found = name.partition(":")
    if not found.isidentifier():
        raise PackagingError(f"{name!r} names no class; write module:Class")
    return module, found


def _named(name: str) -> Any:
    module, found = split_name(name)
    return getattr(importlib.import_module(module), found)
