"""Serving: one process, or several that share a socket and a database."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from contextlib import ExitStack

import uvicorn

from keysmith.server.logs import log_config
from keysmith.server.settings import Settings


def require_address(settings: Settings) -> None:
    """Raises `OSError` if the address cannot be listened on: uvicorn would only log it."""
    host, port = settings.host, settings.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except UnicodeError:
        raise OSError(errno.EINVAL, "not the name of a host", f"{host}, port {port}") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{host}, port {port}") from None


def run(settings: Settings) -> None:
    """Serves until told to stop, then finishes the requests that are under way."""
    # Each worker is a process that makes its own application, from the environment.
    os.environ.update(settings.environment())
    with ExitStack() as stack:
        if settings.workers > 1 and settings.metrics != "off":
            shared = tempfile.TemporaryDirectory(prefix="keysmith-metrics-")
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(shared)
        uvicorn.run(
            "keysmith.server.app:from_environment",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            log_config=log_config(settings),
            timeout_graceful_shutdown=settings.shutdown_timeout,
            # A worker that is slow to start on a busy machine would be killed, again and again.
            timeout_worker_healthcheck=60,
            # An address that a client made up would pass for its own: see `trusted_proxies`.
            proxy_headers=False,
            # No route is one, and their query strings would be logged.
            ws="none",
            server_header=False,
        )
