"""Memory of the host: what is mapped counts until it is dropped."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from archiver.host import drop_mapped, map_file

LOOK = """
import sys
from pathlib import Path
from archiver.host import drop_mapped, map_file

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

mapped = map_file(Path(sys.argv[1]))
before = resident()
total = int(mapped.sum(dtype="int64"))
looked = resident()
drop_mapped()
print(total, looked - before > 50, resident() - before < 10, int(mapped.sum(dtype="int64")) == total)
"""


def test_a_mapped_file_is_in_memory_until_it_is_dropped(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes([1, 2]) * (32 << 20))
    done = subprocess.run([sys.executable, "-c", LOOK, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(96 << 20), "True", "True", "True"]


def test_what_is_written_into_a_mapping_stays_out_of_the_file(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    mapped = map_file(path)
    mapped[0] = ord("x")
    assert bytes(mapped) == b"xbc" and path.read_bytes() == b"abc"
    drop_mapped()
    assert bytes(mapped) == b"abc"
    assert isinstance(mapped, np.ndarray)
