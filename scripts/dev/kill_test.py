#!/usr/bin/env python
"""Kill training at random moments (SIGKILL) and see that it always goes on from a sound checkpoint:

    python scripts/dev/kill_test.py --trials 50

Every trial starts train.py on the net digits, in a folder of its own, from the checkpoints that the trial before left,
and kills it somewhere between its start and a few epochs later. Checked after each kill: every checkpoint that is there
can be read whole, no epoch that was reported as done is lost, and the next run goes on from the newest one. Exit status
1 if anything of that fails.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gti import arguments
from gti.chip.spec import CHIP
from gti.cli import run

ROOT = Path(__file__).resolve().parents[2]
NET = "digits"
# More than any trial reaches: a run ends by the kill.
EPOCHS = 100_000
STARTUP_LIMIT_S = 300
# Writing a checkpoint of this net takes some milliseconds, publishing it some more.
SAVING_WINDOW_S = 0.02
_DONE = re.compile(r"epoch (\d+)/\d+: training loss")
_RESUMED = re.compile(r"going on after epoch (\d+),")


@dataclass
class Counts:
    """What happened in all trials."""

    trials: int = 0
    killed_while_starting: int = 0
    killed_while_training: int = 0
    left_half_a_checkpoint: int = 0  # swept by the next run
    resumed: int = 0
    started_anew: int = 0  # there was no checkpoint yet
    epochs: int = 0
    unsound_checkpoints: int = 0
    lost_epochs: int = 0
    not_resumed: int = 0

    @property
    def failures(self) -> int:
        """Number of things that must never happen."""
        return self.unsound_checkpoints + self.lost_epochs + self.not_resumed


class Started:
    """A started program with the lines it has printed; `seen` is set by a line with `pattern`, and at its end."""

    def __init__(self, command: Sequence[object], environment: Mapping[str, str], pattern: re.Pattern[str]) -> None:
        self.process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.seen = threading.Event()
        self._pattern = pattern
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if self._pattern.search(line):
                self.seen.set()
        self.seen.set()

    @property
    def output(self) -> str:
        """Everything it has printed so far."""
        return "".join(self.lines)

    def finish(self, timeout: float | None = None) -> int | None:
        """Wait for the end; return the exit status, or None where it had to be killed after `timeout` seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
        finally:
            self._reader.join()


class Run(Started):
    """One train.py of the trials; `seen`: its first epoch is done."""

    def __init__(self, folder: Path, data: Path, resume: bool, epochs: int) -> None:
        words = (
            f"--net {NET} --chip {CHIP} --keep 3 --steps_per_epoch 2 --train_batch_size 8 --val_batch_size 400".split()
        )
        places = ["--data_dir", data, "--checkpoint_dir", folder, "--log_dir", folder.parent / "logs"]
        command = [sys.executable, ROOT / "train.py", *words, *places, "--num_epochs", epochs]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        super().__init__([*command, *(["--resume_from", folder] if resume else [])], environment, _DONE)

    def kill(self) -> None:
        """Kill the process at once and take what it had printed."""
        self.process.send_signal(signal.SIGKILL)
        self.finish()

    def number(self, pattern: re.Pattern[str]) -> int | None:
        """Return the last number that `pattern` finds in the output."""
        found = pattern.findall(self.output)
        return int(found[-1]) if found else None


def parser() -> arguments.Parser:
    """Return the flags."""
    flags = arguments.Parser("Kill training at random moments and check that it always goes on.")
    share = arguments.number(0, 1)
    seconds = arguments.number(0, above=True)
    flags.add_argument("--trials", type=arguments.count(1), default=50, metavar="N", help="kills")
    flags.add_argument("--seed", type=arguments.count(0), default=0, metavar="N", help="of the moments")
    flags.add_argument("--window", type=seconds, default=3.0, metavar="S", help="seconds of training")
    flags.add_argument(
        "--starting", type=share, default=0.1, metavar="SHARE", help="killed before the first epoch is done"
    )
    flags.add_argument(
        "--saving", type=share, default=0.4, metavar="SHARE", help="killed while a checkpoint is written"
    )
    flags.add_argument("--json", metavar="FILE", help="write the counts as JSON")
    return flags


def sound(folder: Path, counts: Counts) -> int | None:
    """Count what is unsound in `folder` and its best/; return the epoch of the newest checkpoint, None without one."""
    from gti.training import checkpoint, checkpoint_folder

    for index in [*folder.glob("*.index"), *(folder / checkpoint_folder.BEST).glob("*.index")]:
        if not checkpoint.is_sound(str(index).removesuffix(".index")):
            counts.unsound_checkpoints += 1
            print(f"unsound: {index}", file=sys.stderr)
    newest = checkpoint_folder.latest(folder, net=NET)
    metadata = checkpoint.read_metadata(newest) if newest else None
    return metadata.epoch if metadata else None


def trial(folder: Path, data: Path, counts: Counts, before: int | None, *, when: str, delay: float) -> int | None:
    """Train from epoch `before`, kill, check; return the epoch of the newest checkpoint.

    `when`: `delay` seconds after the "start", after the first epoch ("training"), or after a checkpoint begins to be
    written behind that ("saving").
    """
    training = Run(folder, data, before is not None, EPOCHS)
    if when != "start":
        training.seen.wait(STARTUP_LIMIT_S)
    limit = time.monotonic() + STARTUP_LIMIT_S
    while when == "saving" and training.process.poll() is None and time.monotonic() < limit:
        if any(folder.glob(".saving-*")):
            break
        time.sleep(0.0002)
    time.sleep(delay)
    training.kill()
    done, resumed = training.number(_DONE), training.number(_RESUMED)
    counts.trials += 1
    counts.epochs += (done or before or 0) - (before or 0)
    if done is None:
        counts.killed_while_starting += 1
    else:
        counts.killed_while_training += 1
        counts.started_anew += before is None
        counts.resumed += before is not None and resumed == before
        counts.not_resumed += before is not None and resumed != before
    if done is None and when != "start":
        counts.not_resumed += 1
        print(training.output, file=sys.stderr)
    halves = [p for p in folder.glob("*.data-*") if not (folder / f"{p.name.split('.data-')[0]}.index").exists()]
    counts.left_half_a_checkpoint += bool(halves) or any(folder.glob(".saving-*"))
    newest = sound(folder, counts)
    counts.lost_epochs += (newest or 0) < max(done or 0, before or 0)
    return newest


def main() -> int:
    args = parser().parse_args()
    import random

    from gti import files
    from gti.progress import progress_bar
    from gti.quiet import import_tensorflow

    import_tensorflow()
    moments = random.Random(args.seed)
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="gti-kill-") as work:
        subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "make_digits.py"), "--output_directory", work],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        folder, data = Path(work) / "checkpoints", Path(work) / NET
        start = time.monotonic()
        newest = trial(folder, data, counts, None, when="training", delay=0.0)
        startup = time.monotonic() - start
        with progress_bar(args.trials, "trials", "kill") as bar:
            bar.update()
            for _ in range(args.trials - 1):
                shares = (args.starting, args.saving, max(0.0, 1 - args.starting - args.saving))
                when = moments.choices(("start", "saving", "training"), shares)[0]
                longest = {"start": startup, "saving": SAVING_WINDOW_S, "training": args.window}[when]
                newest = trial(folder, data, counts, newest, when=when, delay=moments.uniform(0, longest))
                bar.set_postfix_str(f"epoch {newest}, failures {counts.failures}", False)
                bar.update()
        last = Run(folder, data, newest is not None, 1)
        if last.finish() != 0 or last.number(_RESUMED) != newest:
            counts.not_resumed += 1
            print(last.output, file=sys.stderr)
    for name, value in asdict(counts).items():
        print(f"{name.replace('_', ' ')}: {value}")
    if args.json:
        files.write_json(args.json, asdict(counts))
    return 1 if counts.failures else 0


if __name__ == "__main__":
    run(main)
