"""Settings of the whole test suite. Being here, it also lets every test import `golden.<module>`."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

# Side by side, every process has one thread for its matrices: more only wait for each other. Set before NumPy is there.
for _library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
    os.environ.setdefault(_library, "1")

# The same examples on every machine and run; slow shared machines are no failure.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("quick", settings.get_profile("fixed"), max_examples=20)  # of `make quick`; else 100
settings.load_profile("fixed")

# Lock files of sticks: every process of tests has its own, so that none finds a stick in use by another.
_runtime = tempfile.TemporaryDirectory(prefix="gti-tests-")
os.environ["XDG_RUNTIME_DIR"] = _runtime.name
