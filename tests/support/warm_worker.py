"""The process in which torch's archives answer their examples, forked from one that has torch in memory already.

`archiver.packaging.verify` starts a Python for every archive. Torch's spends four seconds there on imports and a tenth of
one on the work, at every build of the suite. Here torch and transformers, and nothing of this repository, are imported once
by a Python that was started as verify starts it; each archive then gets a fork of that one. Archives of other runtimes, the
tests of verify itself, and whatever has changed the environment start a Python of their own as ever.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from types import SimpleNamespace
from typing import Any

from handlers.manifest import MANIFEST

FLAGS = ["-P", "-s", "-B", "-c"]

# A command a line: forks, says the fork's id, and how it ended. The fork goes on below as if it had been started so.
_ZYGOTE = """
import gc, json, os, sys
import numpy, torch, transformers.generation.utils, transformers.models.auto.modeling_auto
assert not [name for name in sys.modules if name.partition(".")[0] in ("archiver", "handlers")]
gc.freeze()
for line in iter(sys.stdin.readline, ""):
    asked = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
for target, name in enumerate([os.devnull, asked["stdout"], asked["stderr"]]):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT if target else os.O_RDONLY, 0o600), target)
os.environ.clear()
os.environ.update(asked["environment"])
os.chdir(asked["cwd"])
sys.argv[:] = ["-c", *asked["arguments"]]
exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
"""


class WarmPython:
    """Runs what `python -P -s -B -c CODE …` would, in forks of one Python that lives as long as this process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._environment: dict[str, str] = {}

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` as verify calls it, in the folder of an archive."""
        if not _on_torch(Path(options["cwd"])) or not self._started(options["env"]):
            return subprocess.run(command, **options)
        assert command[:5] == [sys.executable, *FLAGS]
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        code, *arguments = command[5:]
        asked = {"code": code, "arguments": arguments, "cwd": str(options["cwd"]), "environment": options["env"]}
        late: list[bool] = []
        with TemporaryDirectory() as folder:
            said = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
            self._process.stdin.write(json.dumps(asked | said) + "\n")
            self._process.stdin.flush()
            child = int(self._process.stdout.readline())
            timer = Timer(options["timeout"], lambda: (late.append(True), os.kill(child, 9)))  # type: ignore[func-returns-value]
            timer.start()
            status = int(self._process.stdout.readline())
            timer.cancel()
            out, err = (Path(name).read_text(encoding="utf-8", errors="replace") for name in said.values())
        if late:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, status, out, err)

    def _started(self, environment: dict[str, str]) -> bool:
        """Whether there is one that was started with this environment: the first that asks says with which."""
        lasting = {key: value for key, value in environment.items() if not key.startswith("PYTEST")}
        if self._process is None:
            self._environment = lasting
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(
                [sys.executable, *FLAGS, _ZYGOTE], cwd="/", env=lasting, text=True, **pipes
            )
            atexit.register(self._process.kill)
        return lasting == self._environment


def _on_torch(archive: Path) -> bool:
    return bool(json.loads((archive / MANIFEST).read_bytes()).get("runtime") == "torch")


# What verify has in the place of the module `subprocess`.
WARM = SimpleNamespace(**vars(subprocess) | {"run": WarmPython().run})
