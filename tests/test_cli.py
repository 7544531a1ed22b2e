"""What every script does around its work: exit statuses, lost output, packages that are not installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from gti import cli, errors

# Python leaves what could not be written in its buffers, but only where it has buffers.
BUFFERED = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
ENVIRONMENTS = [BUFFERED, BUFFERED | {"PYTHONUNBUFFERED": "1"}]


def code(body: str, options: str = "") -> list[str]:
    indented = body.replace("\n", "\n    ")
    return [
        sys.executable,
        "-c",
        f"import sys\nfrom gti.cli import run\ndef main():\n    {indented}\nrun(main{options})",
    ]


def unheard(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run `command` with a stdout whose reader has left; return exit status and stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    os.close(writer)
    return done.returncode, done.stderr


STATUSES = [
    ("pass", 0, ""),
    ("return 1", 1, ""),
    ("sys.exit(3)", 3, ""),
    ("from gti.errors import UsageError\nraise UsageError('x: is wrong.')", 2, "error: x: is wrong.\n"),
    ("raise KeyboardInterrupt", 130, "interrupted\n"),
]


@pytest.mark.parametrize(("body", "status", "text"), STATUSES)
def test_exit_status(body: str, status: int, text: str) -> None:
    done = subprocess.run(code(body), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, text)


def test_ctrl_c_before_the_work_begins():
    body = (
        "import gti.cli\n\ndef interrupted():\n    raise KeyboardInterrupt\n\ngti.cli._warn_of_memory = interrupted\n"
    )
    command = [sys.executable, "-c", f"{body}gti.cli.run(lambda: 0)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("body", ["print('x')", "print('x', flush=True)\nraise AssertionError", "print('x' * 100_000)"])
def test_output_without_a_reader_ends_like_any_tool(body: str, environment: dict[str, str]) -> None:
    assert unheard(code(body), environment) == (141, "")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_work_that_needs_no_listener_goes_on(environment: dict[str, str]) -> None:
    body = "for _ in range(3): print('x', flush=True)\nprint('done', file=sys.stderr)"
    assert unheard(code(body, ", needs_listener=False"), environment) == (0, "done\n")


def test_the_pipe_of_a_worker_is_no_lost_output() -> None:
    status, text = unheard(code("raise BrokenPipeError(32, 'of a worker')"), BUFFERED)
    assert status == 1
    assert text.endswith("BrokenPipeError: [Errno 32] of a worker\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("arguments", [["--help"], ["nets/2801_vgg16_dat.json"]])
def test_a_full_disk_is_one_sentence(arguments: list[str], environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "scripts/check.py", *arguments],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment,
        )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(r"error: stdout: cannot be written \(.*\)\. Fix: .*\.\n", done.stderr)


MISSING = [
    ("tensorflow", "import tensorflow", "tensorflow", ".[train]"),
    ("sklearn", "import sklearn.datasets", "scikit-learn", ".[train]"),
    ("jinja2", "from gti.report import page", "jinja2", ".[train]"),
    ("PIL", "from PIL import Image", "pillow", ".[images]"),
    ("numba", "from gti.chip.emulator import engine_numba", "numba", "numba"),
    ("usb", "from gti.chip.usb import usb_bus\nusb_bus.libusb()", "pyusb", "pyusb"),
]


@pytest.mark.parametrize(("name", "body", "package", "fix"), MISSING)
def test_a_package_that_is_not_installed(name: str, body: str, package: str, fix: str) -> None:
    command = code(f"sys.modules['{name}'] = None\n{body}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    fix = f'"{fix}"' if "[" in fix else fix
    assert done.stderr.endswith(f"error: {package}: is not installed. Fix: pip install {fix}.\n")
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


def test_a_missing_module_of_the_kit_is_a_defect() -> None:
    done = subprocess.run(code("import gti.nothing"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_every_package_stands_in_the_extra_that_is_named() -> None:
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    lists = {
        "": re.search(r"numba = ((?s:.*)install_requires=\[.*\])", text),  # numba has a line of its own
        "train": re.search(r"train = \[(.*)\]", text),
        "images": re.search(r'"images": \[(.*)\]', text),
        "import": re.search(r'"import": \[(.*)\]', text),
    }
    through_others = {"h5py", "markupsafe"}  # of keras and jinja2
    for package, extra in cli.PACKAGES.values():
        found = lists[extra]
        assert package in through_others or (found and re.search(rf"[\"']{package}>=", found[1])), package


@pytest.mark.parametrize("script", ["set_relu_caps.py", "convert_to_chip.py", "scripts/compare.py"])
def test_a_report_without_jinja2_is_refused_before_the_work(script: str, tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise ModuleNotFoundError(name='jinja2')")
    words = ["--net", "digits", "--chip", "2801", "--report", str(tmp_path / "report")]
    words += [] if "compare" in script else ["--checkpoint", "none"]
    done = subprocess.run(
        [sys.executable, script, *words],
        cwd=ROOT, capture_output=True, text=True, check=False, env=BUFFERED | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, 'error: jinja2: is not installed. Fix: pip install ".[train]".\n')


SAY = "from gti import cli; cli.run(lambda: {})"


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_an_encoding_lacks_is_escaped(environment, stream):
    code = SAY.format(f"print('\\u00fcber \\udce4', file=__import__('sys').{stream})")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0
    assert getattr(done, stream) == "\\xfcber \\udce4\n"


def test_warnings_of_libraries_are_one_line():
    # numba warns of what it cannot read with a traceback in the text.
    code = SAY.format("__import__('warnings').warn('NUMBA_OPT cannot be read\\nTraceback (most recent call last)')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "warning: NUMBA_OPT cannot be read\n")


@pytest.mark.parametrize("variable", ["TQDM_NCOLS=x", "TQDM_MININTERVAL=x", "TQDM_MINITERS=often"])
def test_variables_that_tqdm_cannot_read_are_left_out(variable):
    name, _, value = variable.partition("=")
    code = "from gti.progress import progress_over; print(*progress_over([1, 2], 2, 'work'))"
    environment = os.environ | {name: value}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1 2\n")
    assert f"not used: {variable}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("MemoryError()", "memory"),
        ("MemoryError('Unable to allocate 3 GiB')", "3 GiB"),
        ("OSError(24, 'Too many open files', 'a.dat')", "ulimit -n"),
        ("OSError(28, 'No space left on device', 'a.dat')", "a.dat"),
        ("OSError(27, 'File too large')", "ulimit -f"),
        ("OSError(30, 'Read-only file system', '/x')", "write elsewhere"),
        ("PermissionError(13, 'Permission denied', '/locked/x')", "/locked/x"),
        ("OSError(36, 'File name too long', 'xxx')", "shorter"),
        ("BlockingIOError(11, 'Resource temporarily unavailable')", "ulimit -u"),
        ('RuntimeError("can\'t start new thread")', "ulimit -u"),
        ("ImportError('x.so: failed to map segment from shared object', name='x')", "ulimit -v"),
    ],
)
def test_limits_of_the_system_are_one_sentence(error, words):
    code = SAY.format(f"(_ for _ in ()).throw({error})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_real_limit_of_open_files_is_one_sentence():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); from gti import cli\n"
        "cli.run(lambda: [open('/dev/null') for _ in range(30)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_how_extras_are_installed(monkeypatch):
    assert errors.install("train") == 'pip install ".[train]"'  # the tests run in a checkout
    monkeypatch.setattr(errors, "IS_CHECKOUT", False)
    name = re.search(r'name="([\w-]+)"', (ROOT / "setup.py").read_text())[1]
    assert errors.install("train") == f'pip install "{name}[train]"'


def test_other_errors_keep_their_traceback():
    for error in ("RuntimeError('a defect')", "OSError(5, 'Input/output error')", "ImportError('cannot import name')"):
        done = subprocess.run(
            [sys.executable, "-c", SAY.format(f"(_ for _ in ()).throw({error})")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" in done.stderr


@pytest.mark.parametrize(("mebibytes", "warned"), [(2000, True), (8000, False)])
def test_little_memory_is_told_before_a_library_ends_the_program(mebibytes, warned):
    code = (
        "import resource; limit = resource.getrlimit(resource.RLIMIT_AS)[1]\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({mebibytes} << 20, limit)); {SAY.format('print(1)')}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert ("ulimit -v" in done.stderr) == warned
