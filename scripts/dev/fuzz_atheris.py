#!/usr/bin/env python
"""Fuzz one parser under coverage guidance with Atheris (https://github.com/google/atheris), which is not a dependency:

    pip install atheris                       # Linux; versions of Python as its page says
    mkdir work
    python scripts/dev/fuzz_atheris.py model work tests/corpus/model -max_len=65536 -timeout=2 -rss_limit_mb=4096

The first argument is a target of scripts/dev/fuzzing/targets.py; all others go to libFuzzer. New inputs are collected
in the first folder and start from the files of the others; without a second folder, from the good files of the target.
What raises anything but a GtiError ends the run and is left as crash-*; look at it with scripts/dev/fuzz.py --again,
and give it a name in scripts/dev/make_corpus.py with its fix.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import cli
from gti.errors import GtiError, UsageError, sentence


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    try:
        import atheris
    except ImportError:
        raise UsageError(sentence("atheris", "is not installed", fix="pip install atheris")) from None
    # Only what is imported here is instrumented, NumPy and Pillow excepted.
    with atheris.instrument_imports(include=["gti", "json", "zipfile"]):
        from scripts.dev.fuzzing.targets import TARGETS
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        raise UsageError(sentence(f"target {name}", "is unknown", expected="one of " + ", ".join(TARGETS)))
    target = TARGETS[name]
    good = target.seeds()  # also makes what parsers need before the first input is timed
    folders = [Path(argument) for argument in sys.argv[2:] if not argument.startswith("-")]
    if len(folders) == 1:
        for index, data in enumerate(good):
            (folders[0] / f"seed-{index}").write_bytes(data)

    def one_input(data: bytes) -> None:
        try:
            target.run(data)
        except GtiError:
            return

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    cli.run(main)
