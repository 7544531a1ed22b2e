"""What was found out about a stick, as a file: settings for the driver, behaviours for the emulator."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from gti import __version__, files
from gti.chip.emulator.behaviours import ASSUMED, TABLE, Behaviours
from gti.chip.identify.identify import Identity
from gti.chip.usb.transport import Settings
from gti.errors import FormatError, UsageError

log = logging.getLogger(__name__)

FORMAT = "gti-stick-profile 1"
# Of the examination, not of the stick.
_PASSING = ("retries", "read_timeout_ms", "check_end_ms", "eusb_path", "reappear_ms")
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Profile:
    """How one stick is to be driven, and what it computes."""

    name: str  # of the file, for messages
    bridge: str
    serial: str
    settings: Mapping[str, Any]  # those that are not the driver's defaults
    behaviours: Behaviours

    def applied(self, base: Settings) -> Settings:
        """Return `base` with what this stick needs."""
        return base.changed(**self.settings, behaviours=self.behaviours.of_the_chip.text)


def settings_of(identity: Identity) -> dict[str, Any]:
    """Return the settings that the stick needs, where they are not the driver's defaults."""
    if identity.settings is None:
        return {}
    found, base = asdict(identity.settings), asdict(identity.base)
    changes = {name: value for name, value in found.items() if name not in _PASSING and value != base[name]}
    answers = {one.question: one.answers for one in identity.findings}
    # A shorter pause than the default gains nothing that a user notices.
    if changes.get("settle_ms", 0.0) <= Settings().settle_ms:
        changes.pop("settle_ms", None)
    if answers.get("fc_low_bits") != ("zero",):
        changes["check_low_bits"] = False
    if len(answers.get("ten_bit", ())) == 1:
        changes["ten_bit_layout"] = answers["ten_bit"][0]
    changes.pop("behaviours", None)
    return changes


def to_json(identity: Identity) -> dict[str, Any]:
    """Return the JSON object of a profile."""
    return {
        "format": FORMAT,
        "kit": __version__,
        "bridge": identity.kind,
        "serial": identity.serial,
        "settings": settings_of(identity),
        "behaviours": dict(identity.behaviours.others),
        "questions": [
            {
                "question": one.question,
                "asks": TABLE[one.question].asks,
                "answers": list(one.answers),
                "how sure": one.sure,
                "why": one.why,
                "follows": one.follows,
            }
            for one in identity.findings
        ],
        "failing cases": [one.lines for one in identity.failing],
        "tried": identity.tried,
        "counts": {name: identity.counts[name] for name in ("loads", "frames", "faults")},
    }


def load(path: str | os.PathLike[str]) -> Profile:
    """Return the profile in a file, and say where another version of the kit has written it.

    Raises FormatError for anything else.
    """
    name = os.fspath(path)
    value = files.parse_json(files.read_bytes(path, limit=_MAX_BYTES), name)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FormatError(name, "is no profile of a stick", expected=FORMAT, fix="write one: gti doctor --identify")
    settings, behaviours = value.get("settings"), value.get("behaviours")
    kinds = {one.name: type(one.default) for one in fields(Settings)}
    if not isinstance(settings, dict) or not all(
        name in kinds and isinstance(one, (int, float) if kinds[name] is float else kinds[name])
        for name, one in settings.items()
    ):
        raise FormatError(name, '"settings" is wrong', expected="settings of docs/device.md with their values")
    if not isinstance(behaviours, dict) or not all(isinstance(one, str) for one in behaviours.values()):
        raise FormatError(name, '"behaviours" is wrong', expected="an alternative for each question")
    try:
        Settings().changed(**settings)
        found = ASSUMED.changed(**behaviours)
    except UsageError as problem:
        raise FormatError(f"{name}: {problem}") from None
    kit = value.get("kit", __version__)
    if kit != __version__:
        log.warning("%s: written by gti %s, this is %s: gti doctor --identify renews it", name, kit, __version__)
    return Profile(name, str(value.get("bridge", "")), str(value.get("serial", "")), settings, found)
