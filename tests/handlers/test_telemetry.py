"""Nothing that a worker or a build does is reported to anybody, and nothing is forked beside it."""

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
