"""Nothing that a build does is reported to anybody."""

from __future__ import annotations

import subprocess
import sys

from places import ROOT

CODE = """
from archiver.export.telemetry import decline_telemetry
decline_telemetry()
import nncf
from openvino_telemetry import Telemetry
print(Telemetry("app", "1").consent)
"""


def test_telemetry_is_declined_before_anything_is_converted() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False"), done.stderr
