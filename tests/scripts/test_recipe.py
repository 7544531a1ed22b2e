"""scripts/recipe_cifar10.sh: whose folders its paths are. Nothing is trained."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT

BASH = shutil.which("bash")


@pytest.mark.skipif(BASH is None, reason="no bash is installed")
@pytest.mark.parametrize("absolute", [False, True])
def test_paths_are_those_of_the_folder_it_is_started_in(tmp_path: Path, absolute: bool) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PWD" "$@" > "$SEEN"\nexit 3\n')  # the first step ends the recipe
    python.chmod(0o755)
    words = [str(tmp_path / name) if absolute else name for name in ("my data", "my work")]
    done = subprocess.run(
        [str(BASH), str(ROOT / "scripts" / "recipe_cifar10.sh"), *words],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "SEEN": str(tmp_path / "seen")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    seen = (tmp_path / "seen").read_text()
    assert seen.startswith(f"{ROOT} train.py ")
    assert f"--data_dir {tmp_path}/my data " in seen
    assert f"--checkpoint_dir {tmp_path}/my work/float " in seen
    assert (tmp_path / "my work" / "nets3" / "2801_cifar_dat.json").is_file()
