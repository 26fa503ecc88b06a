from __future__ import annotations

from hypothesis import settings

settings.register_profile("without-clock", deadline=None)  # the machine is shared: a slow example proves nothing
settings.load_profile("without-clock")
