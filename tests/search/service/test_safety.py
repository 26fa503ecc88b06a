"""Tricks that the server must refuse, one test each."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from search.service.admission import read_spec
from search.service.guard import Limits
from search.service.registry import FOLDERS
from search.service.server import ServeError, is_loopback, serve
from search.service.service import Settings
from search.service.uploads import UploadError, convert
from search.spec import PATH_KEYS
from tests.search.service.helpers import SPEC, make_client

TOKEN = "0123456789abcdef-secret"
RESNET = {**SPEC, "network": {"kind": "cifar_resnet", "depth": 20, "weights": "w.pt"}, "data": {"kind": "digits"}}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[TestClient]:
    """A client of a server that has a token; it does not bear it yet."""
    with make_client(tmp_path / "data", token=TOKEN, max_running=0) as made:
        yield made


def faults(client: TestClient, spec: dict[str, Any]) -> dict[str, str]:
    refused = client.post("/api/jobs", json=spec)
    assert refused.status_code == 422, refused.text
    assert client.get("/api/jobs").json()["total"] == 0
    return {fault["path"]: fault["message"] for fault in refused.json()["errors"]}


# who asks


@pytest.mark.parametrize(
    "given",
    [None, "Bearer wrong", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}"],
)
def test_without_the_token_nothing_is_told(guarded: TestClient, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("GET", "/api/jobs"), ("GET", "/api/health"), ("POST", "/api/jobs"), ("GET", "/api/x")):
        refused = guarded.request(method, path, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in refused.text


def test_the_token_is_taken_from_the_header_alone(guarded: TestClient) -> None:
    assert guarded.get(f"/api/jobs?token={TOKEN}").status_code == 401
    assert guarded.get("/api/jobs", headers={"Cookie": f"token={TOKEN}"}).status_code == 401
    assert guarded.get("/api/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_page_itself_needs_no_token_and_holds_no_data(guarded: TestClient) -> None:
    assert guarded.get("/").status_code == 200
    assert guarded.get("/assets/theme.css").headers["content-type"].startswith("text/css")


def test_a_token_that_is_no_ascii_is_refused_not_an_error(guarded: TestClient) -> None:
    header = {b"Authorization": "Bearer \u00e9".encode()}
    assert guarded.get("/api/jobs", headers=header).status_code == 401


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_others_are_served_with_a_token_only(tmp_path: Path, host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    if not loopback:
        with pytest.raises(ServeError, match="expected a token when others can reach the server"):
            serve(Settings(tmp_path), host, 8710)


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="--token: expected at least 16 characters"):
        serve(Settings(tmp_path, token="short"), "127.0.0.1", 8710)


def test_the_token_is_in_no_log_and_in_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def run(app: Any, **options: Any) -> None:
        with TestClient(app) as served:
            served.get("/api/jobs", headers={"Authorization": f"Bearer {TOKEN}"})
            served.get(f"/api/jobs?token={TOKEN}")
        seen.update(options, environment=dict(os.environ))

    monkeypatch.setenv("AMC_TOKEN", TOKEN)
    monkeypatch.setattr(uvicorn, "run", run)
    settings = Settings(tmp_path, token=TOKEN, max_running=0)
    serve(settings, "0.0.0.0", 8710)
    told = capfd.readouterr()
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert TOKEN not in f"{told.out}{told.err}{seen['environment']}{settings!r}"
    assert TOKEN.encode() not in files
    assert seen["access_log"] is False


# from where


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_posts_of_other_sites_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    refused = client.post("/api/jobs", json=SPEC, headers=headers)
    assert (refused.status_code, refused.json()["detail"]) == (403, "requests from other sites are refused")
    own = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/jobs", json=SPEC, headers=own).status_code == 201


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_forms_that_browsers_send_without_asking_are_refused(client: TestClient, kind: str) -> None:
    refused = client.post("/api/jobs", content=json.dumps(SPEC), headers={"content-type": kind})
    assert refused.status_code == 415
    assert client.post("/api/jobs/x/cancel", content="{}", headers={"content-type": kind}).status_code == 415


def test_a_name_that_points_here_is_refused(client: TestClient) -> None:
    refused = client.get("/api/jobs", headers={"Host": "evil.example"})
    assert (refused.status_code, refused.json()["detail"]) == (
        421, "this server answers to the names 127.0.0.1, localhost, ::1 only",
    )  # fmt: skip


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/api/jobs", "/assets/theme.css"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
    assert (
        "access-control-allow-origin" not in client.get("/api/jobs", headers={"Origin": "http://evil.example"}).headers
    )


# how much


def test_oversized_bodies_are_refused_before_they_are_read(client: TestClient) -> None:
    body = json.dumps({**SPEC, "name": "x" * Limits().body}).encode()
    json_type = {"content-type": "application/json"}
    assert client.post("/api/jobs", content=body, headers=json_type).status_code == 413
    pieces = client.post(
        "/api/jobs", content=(body[at : at + 1000] for at in range(0, len(body), 1000)), headers=json_type
    )
    assert pieces.status_code == 413  # sent in pieces without a length


def test_an_oversized_upload_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with make_client(tmp_path / "data", limits=Limits(upload=1000), max_running=0) as client:
        kind = {"content-type": "application/octet-stream"}
        assert client.post("/api/uploads?name=a", content=b"x" * 2000, headers=kind).status_code == 413
        assert client.post("/api/uploads?name=a", content=iter([b"x" * 600] * 3), headers=kind).status_code == 413
    assert list((tmp_path / "data" / "uploads").iterdir()) == []


def test_too_many_jobs_trials_or_evaluations_are_refused(tmp_path: Path) -> None:
    with make_client(tmp_path / "data", limits=Limits(queued=1, evaluations=100, trials=4), max_running=0) as client:
        assert client.post("/api/jobs", json={**SPEC, "evaluations": 50}).json()["errors"][0]["path"] == "evaluations"
        assert client.post("/api/jobs", json={**SPEC, "seeds": [0, 1, 2, 3]}).json()["errors"][0]["path"] == "seeds"
        assert client.post("/api/jobs", json=SPEC).status_code == 201
        refused = client.post("/api/jobs", json=SPEC)
        assert (refused.status_code, refused.json()["detail"]) == (
            429, "1 jobs wait already, which is the limit; try again later",
        )  # fmt: skip


def test_a_name_that_no_folder_can_have_is_refused(client: TestClient) -> None:
    assert "agents" in faults(client, {**SPEC, "agents": [{"kind": "random", "name": "a" * 300}]})
    assert "agents" in faults(client, {**SPEC, "seeds": [10**150]})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
        ("[" * 100_000, "nested more than"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "nested more than"),
        ("a: 2001-01-01", "got a date"),
        ("1: 2", "expected keys of text"),
        ('a: "\\ud800"', "printable|cannot be read"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("- a", "expected keys and values"),
    ],
)
def test_yaml_that_is_no_spec(client: TestClient, body: str, message: str) -> None:
    refused = client.post("/api/jobs", content=body, headers={"content-type": "application/yaml"})
    assert refused.status_code == 422
    assert any(part in refused.json()["detail"] for part in message.split("|"))


@pytest.mark.parametrize(
    "body", [b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a": "\\ud800"}', b"1" * 5000, b"", b"null"]
)
def test_json_that_is_no_spec(client: TestClient, body: bytes) -> None:
    assert client.post("/api/jobs", content=body, headers={"content-type": "application/json"}).status_code == 422


# what is named


def test_every_key_that_names_a_file_is_looked_after() -> None:
    assert FOLDERS.keys() | {"folder"} == PATH_KEYS


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret.pt", "../../x", "w.pt/", "models/w.pt", ".hidden", "", "w.pt\u0000"]
)
def test_no_path_leaves_the_data_folder(client: TestClient, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.pt").touch()
    (tmp_path / "data" / "models" / ".hidden").touch()
    network = {"kind": "cifar_resnet", "depth": 20, "weights": name}
    assert set(faults(client, {**RESNET, "network": network})) & {"network.weights", ""}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"data": {"kind": "npz", "path": "/etc", "search_images": 1, "test_images": 1}}, "data.path"),
        ({"data": {"kind": "image_folder", "path": "a", "labels": "/etc/passwd"}}, "data.labels"),
        ({"budget": {"latency_ms": 1, "table": "../t.json"}}, "budget.table"),
        ({"agents": [{"kind": "plan", "path": "/etc/passwd"}]}, "agents.0.path"),
        ({"data": {"kind": "cifar10", "path": "a", "download": True}}, "data.download"),
    ],
)
def test_no_other_key_names_a_path(client: TestClient, change: dict[str, Any], place: str) -> None:
    assert place in faults(client, {**SPEC, **change})


def test_no_function_is_called_by_name(client: TestClient) -> None:
    function = {"kind": "function", "target": "os:getcwd", "folder": "/tmp"}
    assert {"network.kind", "network.folder"} <= faults(client, {**SPEC, "network": function}).keys()
    assert "evaluation.objective" in faults(client, {**SPEC, "evaluation": {"objective": "os:system"}})


def test_artifacts_are_those_of_the_list(client: TestClient, tmp_path: Path) -> None:
    job = client.post("/api/jobs", json=SPEC).json()["id"]
    folder = tmp_path / "data" / "jobs" / job
    (folder / "secret.txt").write_text("secret")
    for name in ("secret.txt", "request.json", "..%2f..%2findex.sqlite3", "lock", "%2e%2e", "report.html"):
        assert client.get(f"/api/jobs/{job}/artifacts/{name}").status_code == 404
    (folder / "results.json").symlink_to("/etc/passwd")
    assert client.get(f"/api/jobs/{job}/artifacts/results.json").status_code == 404
    assert client.get(f"/api/jobs/{job}/artifacts/spec.yaml").status_code == 200


@pytest.mark.parametrize("name", ["..%2Fapp.py", "%2e%2e", "app.py", "__init__.py", "..%5capp.py"])
def test_assets_are_those_of_the_page(client: TestClient, name: str) -> None:
    assert client.get(f"/assets/{name}").status_code == 404


# what is uploaded


class Trick:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("code was run",))


def upload(client: TestClient, content: bytes, name: str = "mine") -> Any:
    return client.post(
        f"/api/uploads?name={name}", content=content, headers={"content-type": "application/octet-stream"}
    )


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def safetensors(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def compressed_copy(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry))
    return stream.getvalue()


STATE = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}
HEADER = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(pickle.dumps(Trick()), "got neither", id="pickle"),
        pytest.param(pickle.dumps({"w": np.zeros(3)}), "got neither", id="harmless pickle"),
        pytest.param(saved(Trick()), "holds more than tensors, and reading it could run code", id="pickle in a zip"),
        pytest.param(saved(torch.nn.Linear(2, 2)), "holds more than tensors", id="whole module"),
        pytest.param(saved({"a": {"b": 1}}), "expected a state_dict", id="no tensors"),
        pytest.param(compressed_copy(saved({"w": torch.zeros(10**6)})), "this file is compressed", id="zip bomb"),
        pytest.param(b"", "got neither", id="empty"),
        pytest.param(b"\xff" * 100, "got neither", id="noise"),
        pytest.param(safetensors({"w": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 8]}}, b"x" * 8),
                     "which is not its shape", id="larger than it is"),
        pytest.param(safetensors({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 99]}}, b"x" * 8),
                     "lies outside the file", id="beyond its end"),
        pytest.param(safetensors({"w": {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 8]}}, b"x" * 8),
                     "its header is damaged", id="unknown type"),
    ],
)  # fmt: skip
def test_uploads_that_are_no_weights(
    client: TestClient, tmp_path: Path, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    refused = upload(client, content)
    assert refused.status_code == 422
    assert message in refused.json()["detail"]
    assert str(tmp_path) not in refused.text
    assert "code was run" not in capfd.readouterr().out
    assert list((tmp_path / "data" / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(saved(STATE), STATE, id="state_dict"),
        pytest.param(
            safetensors({"__metadata__": {"a": "b"}, **HEADER}, struct.pack("<ff", 1.5, -2.0)),
            {"w": torch.tensor([1.5, -2.0])}, id="safetensors",
        ),
    ],
)  # fmt: skip
def test_weights_are_kept_as_the_server_wrote_them(
    client: TestClient, tmp_path: Path, content: bytes, expected: dict[str, torch.Tensor]
) -> None:
    assert upload(client, content).json()["name"] == "mine.pt"
    kept = torch.load(tmp_path / "data" / "uploads" / "mine.pt", weights_only=True)
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    assert [each["name"] for each in client.get("/api/uploads").json()] == ["mine.pt"]
    network = {"kind": "cifar_resnet", "depth": 20, "weights": "mine.pt"}
    assert client.post("/api/specs/check", json={**RESNET, "network": network}).json()["valid"]
    refused = upload(client, content)
    assert (refused.status_code, "there are weights mine.pt already" in refused.text) == (409, True)


def test_an_upload_does_not_hide_behind_a_model_of_its_name(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "data" / "models" / "mine.pt").write_bytes(b"")
    refused = upload(client, saved(STATE))
    assert (refused.status_code, "there are weights mine.pt already" in refused.text) == (409, True)


def test_of_two_uploads_of_a_name_the_first_stays(tmp_path: Path) -> None:
    (tmp_path / "incoming").write_bytes(saved(STATE))
    (tmp_path / "mine.pt").write_bytes(b"first")
    with pytest.raises(UploadError, match=r"^there are weights mine\.pt already; take another name$"):
        convert(tmp_path / "incoming", tmp_path / "mine.pt")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == {"mine.pt": b"first"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "", "a" * 100, "a.pt"])
def test_uploads_have_plain_names(client: TestClient, name: str) -> None:
    refused = client.post(
        "/api/uploads", params={"name": name}, content=b"", headers={"content-type": "application/octet-stream"}
    )
    assert refused.status_code == 422


# and nothing heavier than it needs


def test_the_server_loads_no_torch() -> None:
    code = (
        "import sys, search.service.server; print(sorted({'torch', 'ray', 'gymnasium', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_spec_is_read_within_limits() -> None:
    assert read_spec(b'{"version": 1}', "application/json") == read_spec(b"version: 1", "application/yaml")


def test_a_spec_names_only_clusters_that_the_server_offers(tmp_path: Path) -> None:
    spec = {**SPEC, "resources": {"address": "http://169.254.169.254"}}
    with make_client(tmp_path, clusters=("http://head:8265", "head:6379")) as client:
        fault = client.post("/api/specs/check", json=spec).json()["errors"][0]
        assert fault == {
            "path": "resources.address",
            "message": "expected a cluster that the server was started with by --cluster (http://head:8265, head:6379)",
        }
        assert client.post("/api/jobs", json=spec).status_code == 422
        offered = {**SPEC, "resources": {"address": "http://head:8265"}}
        assert client.post("/api/specs/check", json=offered).json()["valid"]
