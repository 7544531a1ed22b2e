"""Where the profile of a user's stick lies; apart from `profile`, which takes long to import for a mere look."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "stick_profile.json"
FOLDER_VARIABLE = "XDG_CONFIG_HOME"


def own_profile() -> Path:
    """Return where a user's profile is looked for: ~/.config/gti/stick_profile.json."""
    folder = os.environ.get(FOLDER_VARIABLE) or str(Path.home() / ".config")
    return Path(folder) / "gti" / NAME
