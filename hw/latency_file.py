"""Latency tables as files: versioned JSON, and CSV for entries that were measured elsewhere (a phone, a board)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hw.files import write_atomically
from hw.host import UNKNOWN, Conditions, Host
from hw.latency_table import ANYTHING, Correction, Entry, LatencyTable, MeasuredNetwork
from hw.layers import LayerOp, LayerShape
from hw.timing import Timing

FORMAT = "amc-latency-table"
VERSION = 1
Count = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[float, Field(ge=0)]
Pair = tuple[int, int]

#: columns of a CSV of entries; those of the second line may be left out
CSV_REQUIRED = ("op", "in_channels", "out_channels", "input_height", "input_width", "latency_ms")
CSV_OPTIONAL = (
    "kernel_height", "kernel_width", "stride_height", "stride_width", "padding_height", "padding_width",
    "dilation_height", "dilation_width", "groups", "bias", "followed_by", "n", "median", "p10", "p90",
)  # fmt: skip
_NOTHING = "none"  # what a layer is followed by that is the last


class LatencyFileError(ValueError):
    """The file is no latency table that this release reads; the message says which and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Conditions(_Part):
    runtime: str
    threads: Count
    batch: Count
    dtype: str


class _Host(_Part):
    processor: str
    cpus: int
    governor: str
    system: str
    created: str
    versions: dict[str, str]


class _Shape(_Part):
    name: str
    op: LayerOp
    in_channels: Count
    out_channels: Count
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: Count
    input_size: Pair
    output_size: Pair
    bias: bool
    owns_weights: bool = True
    followed_by: tuple[str, ...]


class _Timing(_Part):
    n: Count
    median: Milliseconds
    p10: Milliseconds
    p90: Milliseconds


class _Entry(_Timing):
    shape: _Shape
    mean: Milliseconds


class _Network(_Part):
    kept_in: tuple[Count, ...]
    kept_out: tuple[Count, ...]
    timing: _Timing


class _Correction(_Part):
    scale: float
    offset: float
    networks: int
    before: float | None
    after: float | None
    refinements: tuple[float, ...]


class _TableFile(_Part):
    """What a table's file holds; times are in milliseconds."""

    format: Literal["amc-latency-table"]
    version: Literal[1]
    conditions: _Conditions
    host: _Host
    entries: tuple[_Entry, ...]
    layers: tuple[_Shape, ...]
    reference: _Timing | None
    networks: tuple[_Network, ...]
    correction: _Correction


def save_table(table: LatencyTable, path: Path) -> None:
    """Write the table as JSON, whole or not at all."""
    content = {"format": FORMAT, "version": VERSION} | asdict(table)
    write_atomically(path, _TableFile.model_validate(content).model_dump_json(indent=None))


def load_table(path: Path) -> LatencyTable:
    """Read what `save_table` wrote.

    Raises:
        LatencyFileError: it cannot be read, or is no table of this version.
    """
    try:
        file = _TableFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise LatencyFileError(f"{path}: cannot be read as a latency table: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise LatencyFileError(
            f"{path}: not a latency table of format {FORMAT!r}, version {VERSION}: {where + ': ' if where else ''}"
            f"{fault['msg']}; make it anew with: amc lut build SPEC --out {path}"
        ) from error
    try:
        return _table(file)
    except ValueError as error:
        raise LatencyFileError(f"{path}: {error}; make it anew with: amc lut build SPEC --out {path}") from error


def _table(file: _TableFile) -> LatencyTable:
    return LatencyTable(
        conditions=Conditions(**file.conditions.model_dump()),
        host=Host(**file.host.model_dump()),
        entries=tuple(
            Entry(shape=LayerShape(**entry.shape.model_dump()), **entry.model_dump(exclude={"shape"}))
            for entry in file.entries
        ),
        layers=tuple(LayerShape(**shape.model_dump()) for shape in file.layers),
        reference=None if file.reference is None else Timing(**file.reference.model_dump()),
        networks=tuple(
            MeasuredNetwork(network.kept_in, network.kept_out, Timing(**network.timing.model_dump()))
            for network in file.networks
        ),
        correction=Correction(**file.correction.model_dump()),
    )


def table_schema() -> dict[str, Any]:
    """The JSON schema of a table's file."""
    return _TableFile.model_json_schema()


def read_csv(path: Path, conditions: Conditions, processor: str = UNKNOWN) -> LatencyTable:
    """A table of entries measured elsewhere.

    Columns: `CSV_REQUIRED`, and of `CSV_OPTIONAL` what is known. Kernels are 1x1, strides 1, paddings 0 and groups 1
    unless told; a layer that is not told what follows it answers for any. `latency_ms` is the mean or the median.

    Raises:
        LatencyFileError: the file cannot be read, a column is missing or unknown, or a value is wrong; with its line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = tuple(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LatencyFileError(f"{path}: cannot be read as CSV: {error}") from error
    missing = [name for name in CSV_REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in (*CSV_REQUIRED, *CSV_OPTIONAL)]
    if missing or unknown:
        fault = f"missing {', '.join(missing)}" if missing else f"unknown {', '.join(map(repr, unknown))}"
        raise LatencyFileError(
            f"{path}: columns: {fault}; expected {', '.join(CSV_REQUIRED)} and perhaps {', '.join(CSV_OPTIONAL)}"
        )
    entries = []
    for line, row in rows:
        try:
            if None in row:
                raise ValueError(f"expected {len(columns)} values, got {len(columns) + len(row[None])}")
            entries.append(_entry({name: value for name, value in row.items() if value not in ("", None)}))
        except ValueError as error:
            raise LatencyFileError(f"{path}, line {line}: {error}") from error
    if not entries:
        raise LatencyFileError(f"{path}: no entries")
    return LatencyTable(conditions, Host(processor=processor), tuple(entries))


def write_csv(entries: Iterable[Entry]) -> str:
    """Entries as CSV with all columns; `read_csv` reads it."""
    output = io.StringIO()
    writer = csv.DictWriter(output, (*CSV_REQUIRED, *CSV_OPTIONAL), lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        shape = entry.shape
        sides = {
            f"{name}_{side}": size
            for name, pair in (
                ("input", shape.input_size), ("kernel", shape.kernel_size), ("stride", shape.stride),
                ("padding", shape.padding), ("dilation", shape.dilation),
            )
            for side, size in zip(("height", "width"), pair, strict=True)
        }  # fmt: skip
        writer.writerow(
            {
                "op": shape.op, "in_channels": shape.in_channels, "out_channels": shape.out_channels,
                "groups": shape.groups, "bias": int(shape.bias), "followed_by": "+".join(shape.followed_by) or _NOTHING,
                "latency_ms": entry.mean, "n": entry.n, "median": entry.median, "p10": entry.p10, "p90": entry.p90,
            }
            | sides
        )  # fmt: skip
    return output.getvalue()


def _entry(row: Mapping[str, str]) -> Entry:
    def pair(name: str, default: int) -> Pair:
        return int(row.get(f"{name}_height", default)), int(row.get(f"{name}_width", default))

    absent = [name for name in CSV_REQUIRED if name not in row]
    if absent:
        raise ValueError(f"expected a value for {', '.join(absent)}")
    if row["op"] not in ("conv", "linear"):
        raise ValueError(f"op: expected conv or linear, got {row['op']!r}")
    kernel, stride, padding, dilation = pair("kernel", 1), pair("stride", 1), pair("padding", 0), pair("dilation", 1)
    size = pair("input", 1)
    if min(*kernel, *stride, *dilation, *size) < 1 or min(padding) < 0:
        raise ValueError(
            "expected kernels, strides, dilations and input sizes of at least 1, and paddings of at least 0"
        )
    height, width = ((size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    followed = row.get("followed_by")
    shape = LayerShape(
        "", row["op"], int(row["in_channels"]), int(row["out_channels"]),  # type: ignore[arg-type]
        kernel, stride, padding, dilation, int(row.get("groups", 1)), size, (height, width),
        bias=row.get("bias", "0") not in ("0", "false", "False"),
        followed_by=ANYTHING if followed is None else () if followed == _NOTHING else tuple(followed.split("+")),
    )  # fmt: skip
    latency = float(row["latency_ms"])
    median = float(row.get("median", latency))
    return Entry(
        shape, int(row.get("n", 1)), latency, median, float(row.get("p10", median)), float(row.get("p90", median))
    )
