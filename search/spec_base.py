"""What all parts of a spec are made of."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """Values that are checked; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    #: keys that are not written while they are at their defaults: specs from before them keep their ids
    younger: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _as_older_releases_wrote_it(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        fields = type(self).model_fields
        same = {key for key in self.younger if getattr(self, key) == fields[key].default}
        return {key: value for key, value in written.items() if key not in same}


def nearest(name: str, known: Any) -> str:
    """A hint for people: "; did you mean 'seeds'?", or nothing if no known name is near."""
    close = difflib.get_close_matches(name, [str(entry) for entry in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
