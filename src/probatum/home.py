"""Where probatum keeps what it makes: runs, records, artifacts, models."""

import os
import sys
from pathlib import Path

__all__ = ["home"]


def home() -> Path:
    """The user's data folder of probatum: PROBATUM_HOME, or the platform's own place."""
    given = os.environ.get("PROBATUM_HOME")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "probatum"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "probatum"
