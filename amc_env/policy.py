"""A pruning policy: the fraction of each decision's channels that is removed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from hw.files import write_atomically


def is_number(value: object) -> bool:
    """Whether it is a real number, numpy's too; true and false are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class PruningPolicy(Mapping[str, float]):
    """Decision name -> ratio removed, each in [0, 1); the order is the order of the decisions.

    Raises:
        ValueError: a ratio is no number, or lies outside [0, 1).
    """

    ratios: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, ratio in self.ratios.items():
            if not (is_number(ratio) and 0.0 <= ratio < 1.0):
                raise ValueError(f"ratio of {name!r}: expected a fraction removed in [0, 1), got {ratio!r}")
        object.__setattr__(self, "ratios", {name: float(ratio) for name, ratio in self.ratios.items()})

    def __getitem__(self, name: str) -> float:
        return self.ratios[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ratios)

    def __len__(self) -> int:
        return len(self.ratios)

    def save(self, path: Path) -> None:
        """Write as JSON: {"version": 1, "ratios": {name: ratio}}."""
        write_atomically(path, json.dumps({"version": 1, "ratios": dict(self.ratios)}, indent=1))

    @classmethod
    def load(cls, path: Path) -> PruningPolicy:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a policy of version 1, or one of its ratios is none.
        """
        try:
            content = json.loads(path.read_text())
            version, ratios = content["version"], dict(content["ratios"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a pruning policy written by PruningPolicy.save ({error!r})") from error
        if version != 1:
            raise ValueError(f"{path}: expected a pruning policy of version 1, got version {version!r}")
        return cls(ratios)
