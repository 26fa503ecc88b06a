"""What comes over HTTP as a spec: read within limits, freed of all that could reach beyond the data folder.

Over HTTP nobody names a path, a function, or code of any kind: files go by their names in `search.service.registry`,
networks and objectives by those that are built in.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml

from search.service.registry import FOLDERS, Registry
from search.service.schemas import Fault

#: bytes of a spec; the largest examples have two thousand
LARGEST_SPEC = 262_144
_DEEPEST = 24
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RefusedSpecError(ValueError):
    """A body is no spec, or says what it must not; `faults` says where."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(
            "; ".join(f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in faults)
        )
        self.faults = faults


def read_spec(body: bytes, content_type: str) -> dict[str, Any]:
    """The plain values of a body, JSON or YAML by its content type.

    Raises:
        RefusedSpecError: it is neither, or no mapping.
    """
    try:
        text = body.decode("utf-8")
        loaded = _json(text) if content_type == "application/json" else _yaml(text)
    except (ValueError, yaml.YAMLError, RecursionError, OverflowError) as error:
        message = "nested too deeply" if isinstance(error, RecursionError) else str(error).replace("\n", " ")
        raise _refused("", f"cannot be read as {content_type.partition('/')[2]}: {message}") from error
    if not isinstance(loaded, dict):
        raise _refused("", f"expected keys and values such as 'version: 1', got {type(loaded).__name__}")
    _check_plain(loaded)
    return loaded


def admit(raw: Mapping[str, Any], registry: Registry, clusters: Collection[str] = ()) -> dict[str, Any]:
    """The spec with the names of files replaced by the files.

    Args:
        raw: the spec.
        registry: the files that it may name.
        clusters: the addresses of Ray that it may name.

    Raises:
        RefusedSpecError: it names code, a path, a file that is not there, or a Ray that is not offered.
    """
    faults: list[Fault] = []
    admitted = _admit(raw, "", None, registry, faults)
    network, evaluation, resources = (raw.get(section) for section in ("network", "evaluation", "resources"))
    address = resources.get("address") if isinstance(resources, dict) else None
    if address is not None and address not in clusters:
        offered = ", ".join(clusters) or "there is none"
        message = f"expected a cluster that the server was started with by --cluster ({offered})"
        faults.append(Fault(path="resources.address", message=message))
    if isinstance(network, dict) and network.get("kind") == "function":
        faults.append(
            Fault(path="network.kind", message="a function of your own can be named by `amc run` only, not here")
        )
    if isinstance(evaluation, dict) and ":" in str(evaluation.get("objective", "")):
        faults.append(
            Fault(
                path="evaluation.objective", message="a function of your own can be named by `amc run` only, not here"
            )
        )
    if faults:
        raise RefusedSpecError(faults)
    return dict(admitted)


def _admit(value: Any, path: str, key: str | None, registry: Registry, faults: list[Fault]) -> Any:
    if isinstance(value, dict):
        return {name: _admit(entry, _join(path, name), name, registry, faults) for name, entry in value.items()}
    if isinstance(value, list):
        return [_admit(entry, _join(path, place), None, registry, faults) for place, entry in enumerate(value)]
    if key == "folder" and value is not None:
        faults.append(Fault(path=path, message="folders of code can be named by `amc run` only, not here"))
    elif key == "download" and value not in (None, False):
        faults.append(
            Fault(path=path, message="the server downloads nothing; whoever runs it puts data into its folder")
        )
    elif path.startswith("agents.") and key == "path" and value is not None:
        faults.append(Fault(path=path, message="state the plan itself: ratios: {layer: ratio}"))
    elif key is not None and key in FOLDERS and value is not None:
        return _file(key, value, path, registry, faults)
    return value


def _file(key: str, value: object, path: str, registry: Registry, faults: list[Fault]) -> str | None:
    found = registry.find(key, value) if isinstance(value, str) else None
    if found is None:
        known = ", ".join(registry.names(key)) or "there are none yet"
        shown = repr(value if isinstance(value, str) else type(value).__name__)[:120]
        faults.append(Fault(path=path, message=f"expected a name that the server knows, got {shown} (known: {known})"))
        return None
    return str(found)


def _join(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)


def _json(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def _yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):  # the loader itself would take minutes over deep nesting
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases (*name) are not taken here")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
    return yaml.load(text, Loader=_Loader)


def _check_plain(value: Any, path: str = "", depth: int = 0) -> None:
    """Refuse what no spec needs: keys that are no text, text that no file can hold, deep nesting."""
    if depth > _DEEPEST:
        raise _refused(path, f"nested more than {_DEEPEST} deep")
    for part, entry in _children(value):
        if isinstance(value, dict) and not isinstance(part, str):
            raise _refused(path, f"expected keys of text, got {part!r}")
        _check_text(part, path)
        _check_plain(entry, _join(path, part), depth + 1)
    _check_text(value, path)
    if not isinstance(value, str | int | float | bool | dict | list | None):
        raise _refused(path, f"expected text, a number, a list or keys and values, got a {type(value).__name__}")


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _check_text(value: object, path: str) -> None:
    if isinstance(value, str) and not value.isprintable():
        raise _refused(path.encode("utf-8", "replace").decode(), "holds characters that are not printable")


def _refused(path: str, message: str) -> RefusedSpecError:
    return RefusedSpecError([Fault(path=path, message=message.encode("utf-8", "replace").decode())])
