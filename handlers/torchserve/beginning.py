"""What Python does in a worker before TorchServe's own code begins: PyTorch is imported when it is used, and not before.

TorchServe (0.12) puts an archive's folder on its worker's path, where Python finds a copy of this file as sitecustomize.py.
Its worker imports torch to look whether an answer is a tensor, which costs 130 MB and most of a second also where the model
runs on another runtime. This file imports nothing of ours: it is read before anything else.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
import types
from typing import Any

WORKER = "model_service_worker.py"
_USES = (
    "__path__",
    "__version__",
)  # of what is asked of a module only in passing, like __file__, these need the real one
_lock = threading.RLock()


class Later(types.ModuleType):
    """Stands for a module that is imported when something of it is used.

    Args:
        spec: the module's.
    """

    def __init__(self, spec: importlib.machinery.ModuleSpec) -> None:
        super().__init__(spec.name)
        self.__spec__ = spec

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _USES:
            raise AttributeError(f"{self.__name__} is not imported yet and has no {name}")
        return getattr(self._real(), name)

    def _real(self) -> types.ModuleType:
        with _lock:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return importlib.import_module(self.__name__)


def put_off(name: str) -> None:
    """Let a module that is not imported yet be imported when it is used; nothing where there is none of this name."""
    if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
        sys.modules[name] = Later(spec)


def hand_over(folder: str) -> None:
    """Run the sitecustomize.py that Python would have found without the one in `folder`."""
    others = [path for path in sys.path if os.path.realpath(path or ".") != os.path.realpath(folder)]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    if any(os.path.basename(argument) == WORKER for argument in sys.orig_argv):
        put_off("torch")
    hand_over(os.path.dirname(os.path.abspath(__file__)))
