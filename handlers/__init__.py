"""The serve-time wing: everything in this package travels inside the archive and imports nothing from `archiver`.

Inside a `.mar` it has the same name, so `from handlers.batching import ...` means the same there and in the repository.
"""

import sys

# OpenVINO and NNCF tell a server of each import, unless the package that does so cannot be imported. It forks a process
# from a thread of its own, beside whatever runs: a fork in the middle of a matrix product left numpy waiting forever
# (openvino-telemetry 2025.2, OpenBLAS). No variable of the environment declines it.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what Python takes for "not there"
