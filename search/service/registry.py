"""What a spec sent over HTTP may name. It names files; the folder in which a file is looked for follows from the key.

In the data folder, put there by whoever runs the server (links to other places are welcome):

- `models/NAME.pt`: weights, and `models/NAME.yaml` beside it the section `network` that fits them, without `weights`
- `data/NAME`: a file or folder of images, and `data/NAME.yaml` the section `data` that fits it, without `path`
- `tables/NAME.json`: latency tables
- `uploads/NAME.pt`: weights that came over HTTP
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from search.service.schemas import Registered, Upload

#: key of a spec -> the folders whose files it may name
FOLDERS: Mapping[str, tuple[str, ...]] = {
    "weights": ("models", "uploads"),
    "path": ("data",),
    "labels": ("data",),
    "table": ("tables",),
}
logger = logging.getLogger(__name__)
_EMBEDDED = Registered(name="digits", kind="digits", spec={"kind": "digits"})


class Registry:
    """The names under a data folder."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def find(self, key: str, name: str) -> Path | None:
        """The file or folder that a key of a spec names; only entries that stand there are compared."""
        for folder in FOLDERS.get(key, ()):
            found = next((entry for entry in self._entries(folder) if entry.name == name), None)
            if found is not None:
                return found
        return None

    def names(self, key: str) -> list[str]:
        """All names that a key of a spec may have."""
        return sorted(entry.name for folder in FOLDERS[key] for entry in self._entries(folder))

    def models(self) -> list[Registered]:
        """The networks with a described section, the embedded one first."""
        return [_EMBEDDED, *self._sections("models", "weights")]

    def data(self) -> list[Registered]:
        """The data sets with a described section, the embedded one first."""
        return [_EMBEDDED, *self._sections("data", "path")]

    def tables(self) -> list[Path]:
        """The files of latency tables."""
        return sorted(self._entries("tables"))

    def uploads(self) -> list[Upload]:
        """What was uploaded."""
        return [Upload(name=entry.name, bytes=entry.stat().st_size) for entry in sorted(self._entries("uploads"))]

    def _entries(self, folder: str) -> Iterator[Path]:
        place = self._data / folder
        for entry in place.iterdir() if place.is_dir() else ():
            if not entry.name.startswith(".") and entry.suffix != ".yaml":
                yield entry

    def _sections(self, folder: str, key: str) -> Iterator[Registered]:
        for entry in sorted(self._entries(folder)):
            described = entry.with_suffix(".yaml")
            if not described.is_file():
                continue
            try:
                section: dict[str, Any] = yaml.safe_load(described.read_text(encoding="utf-8"))
                yield Registered(name=entry.stem, kind=section["kind"], spec={**section, key: entry.name})
            except (ValueError, TypeError, KeyError, OSError, yaml.YAMLError) as error:
                logger.warning("%s is left out, for it is no section with a kind: %s", described, error)
