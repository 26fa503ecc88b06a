"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The environment variable AMC_CACHE, else ~/.cache/amc-search."""
    return Path(os.environ.get("AMC_CACHE") or "~/.cache/amc-search").expanduser()
