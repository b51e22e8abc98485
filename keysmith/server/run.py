"""Serving: one process, or several that share a socket and a database."""

from __future__ import annotations

import os

import uvicorn

from keysmith.server.app import DATABASE_VARIABLE


def run(database_url: str, *, host: str, port: int, workers: int) -> None:
    """Serves until told to stop, then finishes the requests that are under way."""
    os.environ[DATABASE_VARIABLE] = database_url  # each worker is a process that makes its own app
    uvicorn.run(
        "keysmith.server.app:from_environment",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        # An address that a client made up would pass for its own: see `trusted_proxies`.
        proxy_headers=False,
        server_header=False,
    )
