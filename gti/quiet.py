"""Importing TensorFlow faster, and without the dozen lines that it writes before anyone can ask it not to."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def import_tensorflow() -> None:
    """Import TensorFlow and Keras; what they print meanwhile is shown only if that fails.

    Their C++ code writes straight to file descriptor 2, before any log level applies. Set TF_CPP_MIN_LOG_LEVEL=0 to see
    everything.
    """
    if "tensorflow" in sys.modules:
        return
    with _without_collecting():
        if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
            _import()
        else:
            _import_quietly()


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
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
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
