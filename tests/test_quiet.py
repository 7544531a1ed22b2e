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


@pytest.mark.slow
def test_the_last_word_of_a_library_that_ends_the_process_is_seen():
    code = "from gti.quiet import import_tensorflow; import_tensorflow()"
    environment = os.environ | {"TF_XLA_FLAGS": "--nonsense"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode
    assert "Unknown flag in TF_XLA_FLAGS: --nonsense" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"floatx": "bfloat16", "backend": "torch", "image_data_format": "channels_first"}', True),
        ("no json", True),
        ('{"floatx": "float32", "backend": "jax"}', False),  # KERAS_BACKEND overrides it anyway
    ],
)
def test_what_keras_is_told_elsewhere_changes_nothing(tmp_path, text, told):
    (tmp_path / "keras.json").write_text(text)
    unfit = {"KERAS_BACKEND": "torch", "KERAS_MAX_EPOCHS": "x", "KERAS_NNX_ENABLED": "1"} if told else {}
    code = (
        "from gti.quiet import import_tensorflow; import_tensorflow(); import keras, os\n"
        "print(keras.config.backend(), keras.config.floatx(), keras.config.dtype_policy().name,"
        " keras.config.image_data_format(), os.environ['KERAS_HOME'])"
    )
    environment = os.environ | unfit | {"KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["tensorflow", "float32", "float32", "channels_last", str(tmp_path)]
    assert (tmp_path / "keras.json").read_text() == text
    assert ("keras.json" in done.stderr) == told
    assert all(f"{name}={value}" in done.stderr for name, value in unfit.items())
    assert "Traceback" not in done.stderr
