"""Pack what `gti doctor --identify` found into one file for a bug report, with nothing personal in it.

    gti doctor --identify
    gti report-stick                     # stick_profile.json and its recording -> stick_report.zip
    gti report-stick --profile my.json --recording my.session.gz --out my.zip

The recording plays back without the stick: gti doctor --identify --device replay:session.gz
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gti import files
from gti.commands import flags
from gti.errors import UsageError


def parser() -> flags.Parser:
    """Return the flags."""
    result = flags.Parser("report-stick", __doc__)
    result.add_argument("--profile", default="stick_profile.json", metavar="FILE", help="default: stick_profile.json")
    result.add_argument(
        "--recording", metavar="FILE", help="default: the one beside the profile; a profile may be sent without"
    )
    result.add_argument("--out", default="stick_report.zip", metavar="FILE", help="default: stick_report.zip")
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Write the bundle."""
    args = parser().parse_args(words)
    from gti.chip.identify import profile, report

    if not Path(args.profile).is_file():
        raise UsageError(args.profile, "no such file", fix="let gti doctor --identify write it, or name it: --profile")
    loaded = profile.load(args.profile)
    beside = Path(args.profile).with_suffix(".session.gz")
    recording = args.recording or (str(beside) if beside.is_file() else None)
    files.check_writable(args.out, *filter(None, (args.profile, recording)))

    def broken_end() -> None:
        flags.note(f"note: {recording} breaks off, and is packed up to there: its run did not come to its end")

    data = report.bundle(files.read_json(args.profile), recording, loaded.serial, broken_end)
    files.write_atomic(args.out, data)
    print(f"{args.out}: {len(data):,} bytes, {'profile and recording' if recording else 'the profile alone'}")
    if recording is None:
        flags.note(f"note: no recording beside {args.profile}: --recording names one")
    return 0
