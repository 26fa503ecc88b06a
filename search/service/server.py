"""`amc serve`: one server on one data folder."""

from __future__ import annotations

import ipaddress
import logging
import os

import uvicorn

from search.errors import UserError
from search.locking import acquire
from search.service.app import create_app
from search.service.service import Service, Settings


class ServeError(UserError):
    """The server cannot run as asked; the message says why."""


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until a signal ends it. Jobs that run then go on.

    Raises:
        ServeError: another server is at work on the data folder, or the address needs a token.
    """
    if settings.token is None and not is_loopback(host):
        raise ServeError(
            f"--host {host}: expected a token when others can reach the server: set AMC_TOKEN, or give --token"
        )
    if settings.token is not None and len(settings.token) < 16:
        raise ServeError("--token: expected at least 16 characters, such as those of: openssl rand -hex 16")
    os.environ.pop("AMC_TOKEN", None)  # what the server starts, the code of users among it, needs no secret
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (settings.data / "server.lock").open("ab") as lock:
        if not acquire(lock, 1.0):
            raise ServeError(f"another server is at work on {settings.data}")
        app = create_app(Service(settings))
        # requests are not logged: a log of every poll helps nobody, and it must never hold what a client sent
        uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning", timeout_graceful_shutdown=2)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
