"""Importing TensorFlow faster, without the dozen lines that it writes before anyone can ask it not to, and with Keras
as the kit needs it, whatever environment and keras.json say.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gti.errors import UsageError

log = logging.getLogger(__name__)

BACKEND = "tensorflow"
DTYPE = "float32"
_KERAS_VARIABLES = ("KERAS_BACKEND", "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH", "KERAS_NNX_ENABLED")
# A flag in them that TensorFlow does not know ends the process: what it says must be seen.
_FLAGS_OF_LIBRARIES = ("TF_XLA_FLAGS", "XLA_FLAGS")
_PLAIN = {"floatx": DTYPE, "epsilon": 1e-7, "image_data_format": "channels_last"}
_MAX_JSON_BYTES = 65536


def import_tensorflow() -> None:
    """Import TensorFlow and Keras; what they print meanwhile is shown only if that fails.

    Their C++ code writes straight to file descriptor 2, before any log level applies. Set TF_CPP_MIN_LOG_LEVEL=0 to see
    everything, as is done where flags of XLA are set. Settings of Keras that the kit cannot work with are overridden
    with a warning.

    Raises UsageError where Keras has been imported already with another backend.
    """
    if "tensorflow" not in sys.modules:
        _import_once()
    import keras

    if keras.backend.backend() != BACKEND:
        raise UsageError("Keras", "runs on another backend", expected=BACKEND, received=keras.backend.backend())
    # Of keras.json, or of a library that was imported before.
    keras.config.set_floatx(DTYPE)
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(DTYPE)


def _import_once() -> None:
    with _keras_environment(), _without_collecting():
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0" or any(map(os.environ.get, _FLAGS_OF_LIBRARIES)):
            _import()
        else:
            _import_quietly()


@contextmanager
def _keras_environment() -> Iterator[None]:
    # Keras reads all of this once, when it is imported.
    overridden = [
        f"{name}={os.environ[name]}"
        for name in _KERAS_VARIABLES
        if os.environ.get(name) not in (None, "", BACKEND if name == "KERAS_BACKEND" else None)
    ]
    for name in _KERAS_VARIABLES:
        os.environ.pop(name, None)
    os.environ["KERAS_BACKEND"] = BACKEND
    home = os.environ.get("KERAS_HOME")
    settings = _keras_json()
    with ExitStack() as stack:
        if settings is not None and not _is_plain(settings):
            overridden.append(f"{_keras_json_path()}")
            # Keras cannot even be imported with some values: it gets a folder without the file.
            os.environ["KERAS_HOME"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="gti-keras-"))
        try:
            yield
        finally:
            if home is not None:
                os.environ["KERAS_HOME"] = home
            else:
                os.environ.pop("KERAS_HOME", None)
    if overridden:
        log.warning("not used: %s; the kit needs Keras on %s in %s", ", ".join(overridden), BACKEND, DTYPE)


def _keras_json_path() -> str:
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    return os.path.join(home, "keras.json")


def _keras_json() -> Any:
    """Return what keras.json holds; None where there is none, "" where it is none."""
    try:
        with open(_keras_json_path(), encoding="utf-8") as file:
            return json.loads(file.read(_MAX_JSON_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ""


def _is_plain(settings: Any) -> bool:
    """Return whether Keras works as the kit needs it with these settings; the backend is overridden anyway."""
    if not isinstance(settings, dict):
        return False
    return all(settings.get(key, value) == value for key, value in _PLAIN.items())


@contextmanager
def _without_collecting() -> Iterator[None]:
    # An import makes some 360,000 objects that live as long as the program. Looking for garbage among them takes a
    # quarter of the time of the import, and 0.2 s again whenever Python looks through all objects later.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if collecting:
            gc.enable()


def _import() -> None:
    import keras  # noqa: F401
    import tensorflow as tf

    tf.config.list_physical_devices()  # looks for GPUs, and says so when there are none


def _import_quietly() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            _import()
        except BaseException:
            caught.seek(0)
            os.write(saved, caught.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
