"""What every script does around its work: errors become one sentence and exit status 2."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from gti import old_kit
from gti.errors import GtiError, install, sentence

# By the name to import: the package to install, and the extra of setup.py that brings it ("" = the kit itself).
PACKAGES = {
    "PIL": ("pillow", "images"),
    "h5py": ("h5py", "train"),
    "jinja2": ("jinja2", "train"),
    "keras": ("keras", "train"),
    "markupsafe": ("markupsafe", "train"),
    "numba": ("numba", ""),
    "numpy": ("numpy", ""),
    "onnx": ("onnx", "import"),
    "sklearn": ("scikit-learn", "train"),
    "tensorflow": ("tensorflow", "train"),
    "tqdm": ("tqdm", ""),
    "usb": ("pyusb", ""),
}
_ENOUGH_ADDRESSES = 4 << 30  # bytes; TensorFlow's threads take 3 of them
_MORE_MEMORY = "raise `ulimit -v`, end other programs, or work on smaller batches"
_LIMITS = {
    errno.EMFILE: ("open files", "raise `ulimit -n`"),
    errno.ENFILE: ("open files", "end other programs"),
    errno.ENOMEM: ("memory", _MORE_MEMORY),
    errno.EAGAIN: ("processes or threads", "raise `ulimit -u`, or end other programs"),
    errno.ENOSPC: ("disk", "free space, or write elsewhere"),
    errno.EDQUOT: ("disk", "free space, or write elsewhere"),
    errno.EFBIG: ("size of a file", "raise `ulimit -f`"),
    errno.EROFS: ("disk", "write elsewhere"),
    # Where a look at a path is refused, pathlib raises in place of answering no.
    errno.EACCES: ("permission", "check the permissions of the path and of the folders above it"),
    errno.ENAMETOOLONG: ("name of a file", "take a shorter one"),
}
_NOT_LOADED = re.compile(r"failed to map segment|[Cc]annot allocate memory|cannot open shared object|not enough space")
CUT_OFF = 141  # what a shell reports of a program that wrote into a pipe without a reader: 128 + SIGPIPE


def run(main: Callable[[], int | None], *, needs_listener: bool = True) -> None:
    """Run a script's `main` and leave the process with its exit status.

    0 for None; 2 for a `GtiError` (a user's mistake, said in one sentence without a traceback), for a package that is
    not installed, for output that cannot be written and for limits of the system (memory, open files, threads, disk);
    130 for Ctrl-C; 141 where the reader of the output left (`| head`). What an output's encoding lacks is written with
    backslash escapes, and of warnings of libraries the first line. Without `needs_listener` the work goes on when its
    output is lost. Anything else is a defect of the kit and keeps its traceback.
    """
    outputs: list[_Output] = []
    status: int | str | None
    try:
        outputs += _guarded_outputs(needs_listener)
        warnings.showwarning = _show_warning
        _warn_of_memory()
        for note in old_kit.notes(os.environ):
            print(f"note: {note}", file=sys.stderr)
        status = main()
    except SystemExit as leaving:  # of argparse after its help, or of a lost output
        status = leaving.code
    except GtiError as error:
        status = _complain(str(error))
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in PACKAGES:
            raise
        status = _complain(missing(name))
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        sentence_ = limit(error)
        if not sentence_:
            raise
        status = _complain(sentence_)
    except KeyboardInterrupt:
        with contextlib.suppress(SystemExit):
            print("interrupted", file=sys.stderr)
        status = 130
    for output in outputs:
        with contextlib.suppress(SystemExit):
            output.flush()
    sys.exit(status or max((output.status for output in outputs), default=0))


def _guarded_outputs(needs_listener: bool) -> list[_Output]:
    """Put an `_Output` in the place of stdout and of stderr; return those that there were."""
    outputs = []
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is not None:
            with contextlib.suppress(AttributeError, OSError, ValueError):  # streams of other programs
                getattr(sys, name).reconfigure(errors="backslashreplace")
            outputs.append(_Output(getattr(sys, name), name, needs_listener))
            setattr(sys, name, outputs[-1])
    return outputs


def missing(name: str) -> str:
    """Return the sentence that says that the package with the import name `name`, of `PACKAGES`, is not installed."""
    package, extra = PACKAGES[name]
    return sentence(package, "is not installed", fix=install(extra) if extra else f"pip install {package}")


def limit(error: BaseException) -> str:
    """Return the sentence that says which limit of the system `error` ran into, or "" for any other error."""
    text = str(error)
    if isinstance(error, MemoryError):
        return sentence("memory", f"is not enough{f' ({text})' if text else ''}", fix=_MORE_MEMORY)
    if isinstance(error, OSError) and error.errno in _LIMITS:
        what, fix = _LIMITS[error.errno]
        where = str(error.filename or "")
        return sentence(where or what, f"{what}: {error.strerror}" if where else str(error.strerror), fix=fix)
    if "start new thread" in text:
        return sentence("threads", text, fix="raise `ulimit -u`, or end other programs")
    if isinstance(error, ImportError) and _NOT_LOADED.search(text):
        line = next(line for line in text.splitlines() if _NOT_LOADED.search(line))
        return sentence(error.name or "a library", f"cannot be loaded ({line.strip()})", fix=_MORE_MEMORY)
    return ""


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    # numba for one adds a traceback to what it says of a variable in the environment that it cannot read.
    print(f"warning: {str(message).partition(chr(10))[0]}", file=sys.stderr)


def _warn_of_memory() -> None:
    # Libraries in C++ end the process without a word where they get no memory: said before it.
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
        if allowed != resource.RLIM_INFINITY and allowed < _ENOUGH_ADDRESSES:
            least = _ENOUGH_ADDRESSES >> 20
            print(
                f"warning: `ulimit -v` allows {allowed >> 20} MiB, with less than {least} MiB libraries may end "
                "this program without a word",
                file=sys.stderr,
            )


class _Output:
    """stdout or stderr: what cannot be written ends the program, or silences it where no listener is needed."""

    def __init__(self, stream: TextIO, title: str, needs_listener: bool) -> None:
        self._stream, self._title = stream, title
        self._needs_listener = needs_listener
        self.status = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._guarded(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, function: Callable[..., object], *arguments: str) -> None:
        try:
            function(*arguments)
        except OSError as problem:
            # From here on writing succeeds, also when Python writes what is left on its way out.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            status = CUT_OFF
            if not isinstance(problem, BrokenPipeError):
                what = f"cannot be written ({problem.strerror})"
                status = _complain(sentence(self._title, what, fix="make room, or write elsewhere"))
            if self._needs_listener:
                self.status = status
                raise SystemExit(status) from None


def _complain(text: str) -> int:
    with contextlib.suppress(SystemExit):  # nobody reads that either
        print(f"error: {text}", file=sys.stderr)
    return 2
