"""What `gti doctor --identify` does with its flags: examine, print a table, write profile and recording."""

from __future__ import annotations

import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from gti import files
from gti.commands import flags
from gti.errors import UsageError

if TYPE_CHECKING:
    from gti.chip.identify.identify import Identity

_STEPS = 14  # bringing up, and the stages


def run(args: argparse.Namespace) -> int:
    """Identify the stick of --device; return the exit status."""
    for name in ("set", "profile"):
        if getattr(args, name):
            raise UsageError(f"--{name}", "has no meaning with --identify, which finds settings out")
    from gti.chip.identify import bench, identify, place, profile
    from gti.progress import progress_bar

    out = Path(args.out or place.NAME)
    replayed = args.device.startswith("replay:")
    record = flags.record(args) or (None if replayed else str(out.with_suffix(".session.gz")))
    # The recording of an earlier run stays beside its profile until there is a new one.
    written = record if record is None or args.record else str(out.with_suffix(".unfinished.session.gz"))
    files.check_writable(out)
    quiet = logging.getLogger("gti.chip")
    try:
        with ExitStack() as held:
            # Silence of the stick in software, faults and repetitions are findings here, told below.
            held.callback(quiet.setLevel, quiet.level)
            quiet.setLevel(logging.CRITICAL)
            stick = bench.connect(args.device, held, written)
            with progress_bar(None, "identify" if sys.stderr.isatty() else "", unit="step") as bar:
                found = identify.identify(stick, lambda text: (bar.set_postfix_str(text[:60]), bar.update())[1])
    except KeyboardInterrupt:
        if written is not None:
            flags.note(
                f"\nstopped; no profile was written, the recording up to here is {written}\nwhat it tells: gti doctor"
                f" --identify --device replay:{written} --out {out}; all of it: run gti doctor --identify again"
            )
        raise
    files.write_json(out, profile.to_json(found))
    if written is not None and record is not None and written != record:
        files.move(written, record)
    if args.json:
        print(flags.json_line(profile.to_json(found)))
    else:
        print(table(found))
        print(f"\nprofile: {out}" + (f"; recording: {record}" if record else ""))
        print(f"to use it always: copy the profile to {place.own_profile()}")
    complete = found.settings is not None and all(
        one.sure in (identify.CERTAIN, identify.EITHER) or one.why == identify.NO_QUESTION for one in found.findings
    )
    return 0 if complete else 1


def table(found: Identity) -> str:
    """Return the findings as text."""
    head = ("question", "what this stick does", "how sure", "what follows")
    rows = [(one.question, one.does, f"{one.sure} ({one.why})", one.follows) for one in found.findings]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(2)]
    lines = [f"{found.name}: {found.counts['loads']} loads, {found.counts['frames']} frames", ""]
    for question, does, sure, follows in [head, *rows]:
        lines.append(f"{question:<{widths[0]}}  {does:<{widths[1]}}  {'; '.join(filter(None, (sure, follows)))}")
    for one in found.failing:
        lines += ["", "nothing in the table explains this:", *(f"  {line}" for line in one.lines)]
    if found.settings is None:
        lines += ["", "the known frame was not answered; tried:", *(f"  {line}" for line in found.tried)]
    return "\n".join(lines)
