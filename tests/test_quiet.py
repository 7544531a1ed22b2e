"""The import of TensorFlow: silent, without looking for garbage meanwhile, and only once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import gc, sys
from gti.quiet import import_tensorflow
assert "tensorflow" not in sys.modules
{before}
import_tensorflow()
frozen = gc.get_freeze_count()
assert "tensorflow" in sys.modules and "keras" in sys.modules
import_tensorflow()  # changes nothing
print(gc.isenabled(), frozen > 100_000, gc.get_freeze_count() <= frozen)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("before", "collects"), [("", "True"), ("gc.disable()", "False")])
def test_silent_and_outside_the_reach_of_the_collector(before, collects):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(before=before)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == [collects, "True", "True"]
    assert not done.stderr
