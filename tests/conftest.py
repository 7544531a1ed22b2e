"""Settings of the whole test suite. Being here, it also lets every test import `golden.<module>`."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

# The same examples on every machine and run; slow shared machines are no failure.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

# Lock files of sticks: every process of tests has its own, so that none finds a stick in use by another.
_runtime = tempfile.TemporaryDirectory(prefix="gti-tests-")
os.environ["XDG_RUNTIME_DIR"] = _runtime.name
