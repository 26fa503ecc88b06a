from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("without-clock", deadline=None)  # the machine is shared: a slow example proves nothing
settings.load_profile("without-clock")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody's own cache is read or filled; the processes of pytest-xdist share one, whose files are written whole."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", str(folder / "cache"))
        yield
