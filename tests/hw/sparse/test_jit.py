"""What is compiled is kept on disk, until a source changes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from hw.sparse import jit


def hits(path: Path) -> int:
    """How often a call of a fresh import was answered from disk."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.twice(2) == 4
    return sum(module.twice.stats.cache_hits.values())


def test_a_change_of_any_source_compiles_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.py"
    path.write_text("from hw.sparse.jit import compiled\n\n@compiled\ndef twice(x):\n    return 2 * x\n")
    assert [hits(path), hits(path)] == [0, 1]
    monkeypatch.setattr(jit, "_SOURCES", "others")
    assert [hits(path), hits(path)] == [0, 1]
