"""Nothing that a worker or a build does is reported to anybody, and nothing is forked beside it.

A worker leaves out what only a build needs.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from places import ROOT

CODE = """
import importlib, os, sys, threading
os.register_at_fork(before=lambda: print("forked"))
for name in sys.argv[1:]:
    importlib.import_module(name)
loaded = sorted(name for name in sys.modules if "telemetry" in name.split(".")[0])
print([thread.name for thread in threading.enumerate()], loaded)
print(sys.modules["openvino_telemetry"])
"""


@pytest.mark.parametrize(
    "names",
    [
        ("handlers", "openvino"),
        ("archiver", "openvino", "nncf"),
        ("archiver.export.openvino_decoder", "openvino_genai"),
    ],
)
def test_openvino_tells_nobody_that_it_was_imported(names: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "forked" not in done.stdout
    assert done.stdout.splitlines()[-2:] == ["['MainThread'] ['openvino_telemetry']", "None"]


@pytest.mark.parametrize("package", ["openvino", "openvino_genai"])
def test_a_worker_does_not_import_the_converter(package: str) -> None:
    code = (
        "import importlib, sys; from handlers.requirements import leave_out_converters; leave_out_converters()\n"
        f"importlib.import_module({package!r}); import openvino; openvino.Core()\n"
        "print([name for name in sys.modules if name.startswith('openvino.tools.ovc.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
