"""Settings of the whole test suite. Being here, it also lets every test import `golden.<module>`."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every machine and run; slow shared machines are no failure.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
