"""A bug report about a stick: profile, recording and a page, with nothing in them that tells whose stick it is."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

from gti import __version__, files
from gti.chip.identify import place
from gti.chip.usb import trace
from gti.errors import FormatError

PROFILE, RECORDING, PAGE = place.NAME, "session.gz", "README.txt"
_FIXED = (1980, 1, 1, 0, 0, 0)  # times of the files are nobody's business


def bundle(
    profile: Mapping[str, Any],
    recording: str | os.PathLike[str] | None,
    serial: str,
    broken_end: Callable[[], None] = lambda: None,
) -> bytes:
    """Return a zip of the profile, the recording (None: there is none) and a page, without the stick's `serial`.

    `broken_end` is called where the recording breaks off, which the page says too.
    """
    cut: list[str] = []
    parts: dict[str, bytes] = {}
    if recording is not None:
        parts[RECORDING] = without_serial(recording, serial, lambda: cut.append(RECORDING))
    for _ in cut:
        broken_end()
    parts[PAGE] = _page(profile, recording is not None, bool(cut)).encode()
    parts[PROFILE] = files.json_bytes({**profile, "serial": _masked(serial)})
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name, _FIXED), data, zipfile.ZIP_DEFLATED)
    return target.getvalue()


def _masked(serial: str) -> str:
    return "0" * len(serial)


def without_serial(
    recording: str | os.PathLike[str], serial: str, broken_end: Callable[[], None] = lambda: None
) -> bytes:
    """Return a recording with zeros in place of `serial`, as long: it plays back as before.

    The serial is what names the stick in the session, in descriptors and in the text of USB errors. `broken_end` is
    called where the recording breaks off. Raises FormatError where the file is no recording.
    """
    target = io.BytesIO()
    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=6, mtime=0) as packed:
        for entry in trace.read(recording, broken_end):
            packed.write(json.dumps(_without(entry, serial)).encode() + b"\n")
    return target.getvalue()


def _without(entry: dict[str, Any], serial: str) -> dict[str, Any]:
    if not serial:
        return entry
    words, zeros = serial.encode("utf-16-le"), _masked(serial).encode("utf-16-le")
    result = dict(entry)
    if "device" in entry:
        result["device"] = str(entry["device"]).replace(serial, _masked(serial))
    if entry.get("call") == "ctrl_transfer" and isinstance(entry.get("result"), str):
        data = base64.b64decode(entry["result"])
        result["result"] = base64.b64encode(data.replace(words, zeros)).decode()
    if "error" in entry:
        result["error"] = [
            one.replace(serial, _masked(serial)) if isinstance(one, str) else one for one in entry["error"]
        ]
    return result


def _page(profile: Mapping[str, Any], recorded: bool, cut: bool) -> str:
    """Return what the bundle holds and where it is wanted, for whoever opens it."""
    try:
        open_questions = [
            f"  {one['question']}: {one['how sure']} ({one['why']})"
            for one in profile["questions"]
            if one["how sure"] not in ("certain", "either")
        ]
        found = [
            f"  {one['question']}: {' or '.join(one['answers'])}" for one in profile["questions"] if one["answers"]
        ]
        cases = [f"  {line}" for lines in profile.get("failing cases", []) for line in lines]
        counts, bridge = profile["counts"], profile["bridge"]
    except (KeyError, TypeError, AttributeError):
        raise FormatError("profile", "has no table of questions", fix="write it: gti doctor --identify") from None
    lines = [
        f"A GTI 2801 behind {bridge}, examined by gti {__version__}: {counts['loads']} loads,"
        f" {counts['frames']} frames, {counts['faults']} faults on the bus.",
        "",
        "Send this file with a line about the stick: what is printed on it, what computer and cable it was used with.",
        "It holds no file, picture, name or path of yours; the networks and images in it are the kit's own. The serial",
        "number of the stick is replaced by zeros.",
        "",
        f"{PROFILE}: what was found out.",
        *([f"{RECORDING}: every USB transfer. It plays back, and leads to the same profile:"] if recorded else []),
        *([f"  gti doctor --identify --device replay:{RECORDING} --out again.json"] if recorded else []),
        *(["It breaks off: the run that wrote it did not come to its end."] if cut else []),
        "",
        "Found:",
        *found,
        *(["", "Open:", *open_questions] if open_questions else []),
        *(["", "Not explained by anything in the table:", *cases] if cases else []),
    ]
    return "\n".join(lines) + "\n"
