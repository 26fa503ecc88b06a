"""Latency tables as files: what is saved is what is loaded, and damage is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.host import UNKNOWN, Conditions, Host
from hw.latency_file import LatencyFileError, load_table, read_csv, save_table, table_schema, write_csv
from hw.latency_table import ANYTHING, Correction, Entry, LatencyTable, MeasuredNetwork, MissingEntryError
from hw.layers import LayerShape
from hw.timing import Timing

CONV = LayerShape(
    "stem", "conv", 3, 8, (3, 5), (2, 1), (1, 2), input_size=(9, 7), output_size=(5, 7), followed_by=("bn", "relu")
)  # fmt: skip
GROUPED = LayerShape("dw", "conv", 8, 8, (3, 3), (1, 1), (2, 2), (2, 2), 8, (5, 7), (5, 7), bias=True)
HEAD = LayerShape("head", "linear", 8, 10, bias=True, owns_weights=False)
MINIMAL = "op,in_channels,out_channels,input_height,input_width,latency_ms\n"

times = st.floats(0, 1e6)
timings = st.builds(Timing, st.integers(1, 10**6), times, times, times)
counts = st.lists(st.integers(1, 4096), max_size=4).map(tuple)
shapes = st.builds(
    replace,
    st.sampled_from([CONV, HEAD]),
    name=st.text(max_size=5),
    in_channels=st.integers(1, 4096),
    out_channels=st.integers(1, 4096),
    bias=st.booleans(),
    owns_weights=st.booleans(),
    followed_by=st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
entries = st.builds(Entry, shapes, st.integers(1, 10**6), st.floats(1e-9, 1e6), times, times, times)
finite = st.floats(allow_nan=False, allow_infinity=False)
corrections = st.builds(
    Correction, finite, finite, st.integers(0, 99),
    st.none() | finite, st.none() | finite, st.lists(finite, max_size=3).map(tuple),
)  # fmt: skip
tables = st.builds(
    LatencyTable,
    st.builds(Conditions, st.text(max_size=9), st.integers(1, 64), st.integers(1, 64), st.text(max_size=9)),
    st.builds(Host, st.text(max_size=5), st.integers(0, 512), versions=st.dictionaries(st.text(), st.text())),
    st.lists(entries, max_size=3).map(tuple),
    st.lists(shapes, max_size=3).map(tuple),
    st.none() | timings,
    st.lists(st.builds(MeasuredNetwork, counts, counts, timings), max_size=2).map(tuple),
    corrections,
)  # fmt: skip


def rich() -> LatencyTable:
    """A table in which every field differs from its default."""
    return LatencyTable(
        Conditions("torch", 2, 4, "float16"),
        Host("A CPU", 8, "performance", "Linux 6", "2026-01-02T03:04:05+00:00", {"torch": "2.14.0"}),
        (
            Entry(CONV, 12, 0.1, 0.11, 0.09, 0.3),
            Entry(GROUPED, 7, 1 / 3, 0.2, 0.1, 0.4),
            Entry(HEAD, 1, 2.0, 2.5, 2.0, 3.0),
        ),
        (CONV, GROUPED, HEAD),
        Timing(60, 2.0, 1.9, 2.7),
        (MeasuredNetwork((3, 4, 4), (4, 4, 10), Timing(60, 1.0, 0.9, 1.7)),),
        Correction(1.1, -0.02, 9, 0.05, 0.01, (0.25, -0.1)),
    )


def assert_equal(first: LatencyTable, second: LatencyTable) -> None:
    for field in fields(LatencyTable):
        assert getattr(first, field.name) == getattr(second, field.name), field.name


@settings(max_examples=25)
@given(table=tables)
def test_what_is_saved_is_loaded(table: LatencyTable, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "table.json"
    save_table(table, path)
    assert_equal(load_table(path), table)


def test_every_field_is_saved(tmp_path: Path) -> None:
    save_table(rich(), tmp_path / "table.json")
    loaded = load_table(tmp_path / "table.json")
    assert_equal(loaded, rich())
    assert loaded.predict((3, 8, 8), (8, 8, 10)) == rich().predict((3, 8, 8), (8, 8, 10))
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    assert (tmp_path / "table.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "table.json"
    save_table(rich(), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left on device"):
        save_table(replace(rich(), entries=()), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_that_cannot_be_saved_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    save_table(rich(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="finite number"):
        save_table(replace(rich(), correction=Correction(scale=float("nan"))), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def damaged(path: Path, damage: Callable[[dict[str, Any]], object]) -> Path:
    """A saved table after a change of its content."""
    save_table(rich(), path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda content: content.update(version=2), "version: Input should be 1"),
        (lambda content: content.update(format="other"), "format: Input should be 'amc-latency-table'"),
        (lambda content: content.pop("host"), "host: Field required"),
        (lambda content: content.update(more=1), "more: Extra inputs are not permitted"),
        (lambda content: content["entries"][1].pop("mean"), "entries.1.mean: Field required"),
        (
            lambda content: content["entries"][0].update(p10=-1),
            "entries.0.p10: Input should be greater than or equal to 0",
        ),
        (
            lambda content: content["layers"][2]["kernel_size"].pop(),
            "layers.2.kernel_size.1: Field required",
        ),
        (
            lambda content: content["conditions"].update(threads=0),
            "conditions.threads: Input should be greater than or equal to 1",
        ),
    ],
)
def test_damage_is_named(damage: Callable[[dict[str, Any]], object], fault: str, tmp_path: Path) -> None:
    path = damaged(tmp_path / "table.json", damage)
    with pytest.raises(LatencyFileError) as caught:
        load_table(path)
    assert str(caught.value) == (
        f"{path}: not a latency table of format 'amc-latency-table', version 1: {fault}; "
        f"make it anew with: amc lut build SPEC --out {path}"
    )


def test_a_shape_that_cannot_be_is_named(tmp_path: Path) -> None:
    path = damaged(tmp_path / "table.json", lambda content: content["layers"][1].update(groups=3))
    with pytest.raises(LatencyFileError, match="3 groups do not divide 8 input and 8 output channels"):
        load_table(path)


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    save_table(rich(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LatencyFileError) as caught:
        load_table(path)
    start = f"{path}: not a latency table of format 'amc-latency-table', version 1: Invalid JSON: EOF while parsing "
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(f"; make it anew with: amc lut build SPEC --out {path}")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"no json"])
def test_a_file_of_something_else_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(LatencyFileError, match="version 1: Invalid JSON: "):
        load_table(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(LatencyFileError) as caught:
        load_table(path)
    assert str(caught.value) == f"{path}: cannot be read as a latency table: No such file or directory"


def test_the_schema_asks_for_what_is_saved(tmp_path: Path) -> None:
    save_table(rich(), tmp_path / "table.json")
    saved = json.loads((tmp_path / "table.json").read_text())
    schema = table_schema()
    assert set(schema["properties"]) == set(schema["required"]) == set(saved)
    assert schema["additionalProperties"] is False
    assert (schema["properties"]["format"]["const"], schema["properties"]["version"]["const"]) == (
        "amc-latency-table",
        1,
    )
    entry = schema["$defs"][schema["properties"]["entries"]["items"]["$ref"].rpartition("/")[2]]
    assert set(entry["required"]) == set(saved["entries"][0])
    shape = schema["$defs"][entry["properties"]["shape"]["$ref"].rpartition("/")[2]]
    assert set(shape["properties"]) == set(saved["entries"][0]["shape"])


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "phone.csv"
    path.write_text(text)
    return path


def test_entries_survive_csv(tmp_path: Path) -> None:
    written = rich().entries
    conditions = Conditions("phone", 4)
    table = read_csv(csv_file(tmp_path, write_csv(written)), conditions, "Cortex-A76")
    assert table.entries == tuple(
        replace(entry, shape=replace(entry.shape, name="", owns_weights=True)) for entry in written
    )
    assert (table.conditions, table.host) == (conditions, Host(processor="Cortex-A76"))
    assert (table.layers, table.networks, table.reference, table.correction) == ((), (), None, Correction())


def test_csv_by_hand() -> None:
    assert write_csv([Entry(CONV, 12, 0.1, 0.11, 0.09, 0.3)]) == (
        "op,in_channels,out_channels,input_height,input_width,latency_ms,"
        "kernel_height,kernel_width,stride_height,stride_width,padding_height,padding_width,"
        "dilation_height,dilation_width,groups,bias,followed_by,n,median,p10,p90\n"
        "conv,3,8,9,7,0.1,3,5,2,1,1,2,1,1,1,0,bn+relu,12,0.11,0.09,0.3\n"
    )


def test_what_a_row_does_not_tell_has_a_default(tmp_path: Path) -> None:
    table = read_csv(csv_file(tmp_path, MINIMAL + "conv,16,32,14,7,0.25\n"), Conditions("phone"))
    shape = LayerShape("", "conv", 16, 32, input_size=(14, 7), output_size=(14, 7), followed_by=ANYTHING)
    assert table.entries == (Entry(shape, 1, 0.25, 0.25, 0.25, 0.25),)
    assert table.host == Host(processor=UNKNOWN)


def test_empty_cells_are_not_told(tmp_path: Path) -> None:
    text = MINIMAL.replace("\n", ",n,median,followed_by\n") + "linear,16,10,1,1,0.5,,,\n"
    entry = read_csv(csv_file(tmp_path, text), Conditions()).entries[0]
    assert (entry.n, entry.median, entry.p90, entry.shape.followed_by) == (1, 0.5, 0.5, ANYTHING)


def test_a_layer_that_is_not_told_what_follows_answers_for_any(tmp_path: Path) -> None:
    table = read_csv(csv_file(tmp_path, MINIMAL + "conv,16,32,14,7,0.25\n"), Conditions())
    layer = LayerShape("a", "conv", 16, 32, input_size=(14, 7), output_size=(14, 7), followed_by=("relu", "add"))
    assert table.layer_costs([layer, replace(layer, followed_by=())]).tolist() == [0.25, 0.25]


def test_a_layer_that_is_told_to_be_followed_by_nothing_answers_for_that_only(tmp_path: Path) -> None:
    text = MINIMAL.replace("\n", ",followed_by\n") + "conv,16,32,14,7,0.25,none\n"
    table = read_csv(csv_file(tmp_path, text), Conditions())
    layer = LayerShape("a", "conv", 16, 32, input_size=(14, 7), output_size=(14, 7))
    assert table.layer_costs([layer]).tolist() == [0.25]
    with pytest.raises(MissingEntryError, match="then relu"):
        table.layer_costs([replace(layer, followed_by=("relu",))])


EXPECTED = (
    "; expected op, in_channels, out_channels, input_height, input_width, latency_ms and perhaps kernel_height, "
    "kernel_width, stride_height, stride_width, padding_height, padding_width, dilation_height, dilation_width, "
    "groups, bias, followed_by, n, median, p10, p90"
)
REQUIRED = "op, in_channels, out_channels, input_height, input_width, latency_ms"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", f": columns: missing {REQUIRED}{EXPECTED}"),
        ("op,in_channels,out_channels,input_height\n", f": columns: missing input_width, latency_ms{EXPECTED}"),
        (MINIMAL.replace("\n", ",speed,Name\n"), f": columns: unknown 'speed', 'Name'{EXPECTED}"),
        (MINIMAL, ": no entries"),
        (MINIMAL + "conv,8,8,4,4,1\nconv,8,x,4,4,1\n", ", line 3: invalid literal for int() with base 10: 'x'"),
        (MINIMAL + "conv,8,8,4,4,fast\n", ", line 2: could not convert string to float: 'fast'"),
        (MINIMAL + "pool,8,8,4,4,1\n", ", line 2: op: expected conv or linear, got 'pool'"),
        (MINIMAL + "conv,8,,4,4,\n", ", line 2: expected a value for out_channels, latency_ms"),
        (MINIMAL + "conv,8,8,4\n", ", line 2: expected a value for input_width, latency_ms"),
        (
            MINIMAL.replace("\n", ",groups\n") + "conv,8,8,4,4,1,3\n",
            ", line 2: layer '': 3 groups do not divide 8 input and 8 output channels",
        ),
    ],
)
def test_faults_of_a_csv_are_named(text: str, fault: str, tmp_path: Path) -> None:
    path = csv_file(tmp_path, text)
    with pytest.raises(LatencyFileError) as caught:
        read_csv(path, Conditions())
    assert str(caught.value) == f"{path}{fault}"


@pytest.mark.parametrize("latency", ["nan", "inf", "-1"])
def test_a_latency_that_cannot_be_is_named_with_its_line(latency: str, tmp_path: Path) -> None:
    path = csv_file(tmp_path, MINIMAL + f"conv,8,8,4,4,{latency}\n")
    with pytest.raises(
        LatencyFileError, match=r"phone.csv, line 2: entry of conv 1x1 8->8, input 4x4, then [*]: expected"
    ):
        read_csv(path, Conditions())


@pytest.mark.parametrize("content", [None, b"op,\xff\n"])
def test_a_csv_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "phone.csv"
    if content:
        path.write_bytes(content)
    with pytest.raises(
        LatencyFileError, match=r"phone.csv: cannot be read as CSV: .*(No such file|can't decode byte 0xff)"
    ):
        read_csv(path, Conditions())


def test_a_row_with_too_many_values_is_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path, MINIMAL + "conv,8,8,4,4,1,5\n")
    with pytest.raises(LatencyFileError, match=r"phone.csv, line 2: "):
        read_csv(path, Conditions())


def test_blank_lines_count_in_the_line_of_a_fault(tmp_path: Path) -> None:
    path = csv_file(tmp_path, MINIMAL + "conv,8,8,4,4,1\n\n\nconv,8,8,4,4,fast\n")
    with pytest.raises(LatencyFileError, match=r"phone.csv, line 5: "):
        read_csv(path, Conditions())


def test_a_stride_of_zero_is_named_with_its_line(tmp_path: Path) -> None:
    path = csv_file(tmp_path, MINIMAL.replace("\n", ",stride_height\n") + "conv,8,8,4,4,1,0\n")
    with pytest.raises(LatencyFileError, match=r"phone.csv, line 2: "):
        read_csv(path, Conditions())
