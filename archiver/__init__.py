"""marpress: compress a Hugging Face model, prove what that cost, package it as a self-contained TorchServe archive."""

import os

__version__ = "0.1.0"

# torch's OpenMP threads wait for each other by spinning, by default for so long that on a host with other work two of them
# starve: 2.7 to 14.7 s instead of 0.25 s for a generation of a small model, measured on two busy cores. A short spin costs
# a quiet host nothing. Read when torch is loaded, so it is set before anything is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
