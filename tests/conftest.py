"""Settings of the whole test suite. Being here, it also lets every test import `golden.<module>`."""

from __future__ import annotations

import os
import tempfile

# Side by side, every process has one thread for its matrices: more only wait for each other. Set before NumPy is there.
if "PYTEST_XDIST_WORKER" in os.environ:
    for _library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(_library, "1")

from hypothesis import settings

# The same examples on every machine and run; slow shared machines are no failure.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

# Lock files of sticks: every process of tests has its own, so that none finds a stick in use by another.
_runtime = tempfile.TemporaryDirectory(prefix="gti-tests-")
os.environ["XDG_RUNTIME_DIR"] = _runtime.name
