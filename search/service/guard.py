"""What every request passes before anything else: who asks, from where, how much is sent. Pure ASGI."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_READING = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_UPLOAD = "/api/uploads"
_JSON = ("application/json",)
_YAML = ("application/yaml", "application/x-yaml", "text/yaml")
#: content types of a mutating request by its path; elsewhere JSON
_TYPES = {_UPLOAD: ("application/octet-stream",), "/api/jobs": (*_JSON, *_YAML), "/api/specs/check": (*_JSON, *_YAML)}


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Attributes:
        body: bytes of a request.
        upload: bytes of an uploaded file.
        queued: jobs that wait.
        evaluations: of all trials of a job.
        trials: of a job.
    """

    body: int = 262_144
    upload: int = 512 * 2**20
    queued: int = 1000
    evaluations: int = 1_000_000
    trials: int = 1000


class TooLargeError(Exception):
    """More was sent than is taken."""


class Guard:
    """Refuses requests without the token, from other sites, of another host's name, of the wrong type, or too large.

    Args:
        app: what is guarded.
        token: that every request to /api must bear; None: none is needed, and the server's name must be a loopback's,
            so that no other site reaches it by a name that points here.
        limits: of the sizes.
    """

    def __init__(self, app: ASGIApp, token: str | None, limits: Limits) -> None:
        self._app, self._token, self._limits = app, token, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        limit = self._limits.upload if scope["path"] == _UPLOAD else self._limits.body
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _secure(MutableHeaders(scope=message))
            await send(message)

        try:
            await self._app(scope, _limited(receive, limit), with_headers)
        except TooLargeError:
            if started:
                raise
            await _answer(send, 413, f"more than {limit:,} bytes were sent; expected at most so many")

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Why a request is not let in."""
        host = headers.get("host", "")
        if self._token is None and _hostname(host) not in _LOOPBACK:
            return 421, f"this server answers to the names {', '.join(_LOOPBACK)} only"
        if scope["path"].startswith("/api/") and self._token is not None and not self._bears_token(headers):
            return 401, "expected the header 'Authorization: Bearer TOKEN' with this server's token"
        if scope["method"] in _READING:
            return None
        if not _same_site(headers, host):
            return 403, "requests from other sites are refused"
        return self._wrong_body(scope, headers)

    def _wrong_body(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        expected = _TYPES.get(scope["path"], _JSON)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] != "DELETE" and kind not in expected:
            return 415, f"expected content type {' or '.join(expected)}, got {kind or 'none'!r}"
        limit = self._limits.upload if scope["path"] == _UPLOAD else self._limits.body
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "the content length is no number"
        if int(length[:20]) > limit:
            return 413, f"{length[:20]} bytes; expected at most {limit:,}"
        return None

    def _bears_token(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), (self._token or "").encode())
        return same and kind.lower() == "bearer"


def _same_site(headers: Headers, host: str) -> bool:
    """Whether a browser, if it is one that asks, does so from this server's own page."""
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _limited(receive: Receive, limit: int) -> Receive:
    got = 0

    async def limited() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > limit:
            raise TooLargeError
        return message

    return limited


def _secure(headers: MutableHeaders) -> None:
    headers.setdefault("content-security-policy", PAGE_POLICY)
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    headers["cross-origin-resource-policy"] = "same-origin"
    headers.setdefault("cache-control", "no-store")


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
