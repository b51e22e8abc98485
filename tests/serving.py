"""Real HTTP for the tests: an application on a loopback port, and clients for it."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free port of loopback for a server, which on Linux nobody else is given meanwhile."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        if sys.platform != "linux":
            reserved.close()  # other systems would keep it from the server, too
        yield port


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serves the application from a thread; gives its URL.

    Clients may pause: it keeps their connections, so that none is closed as it is used again.
    """
    kept = {"timeout_keep_alive": 300}
    config = uvicorn.Config(app, log_config=None, proxy_headers=False, **(kept | options))
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)


def client(url: str, raw_key: str | None = None, **options: Any) -> httpx.Client:
    """A client that sends this key with every request."""
    headers = {} if raw_key is None else {"Authorization": f"Bearer {raw_key}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60, **options)


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Asserts that the answer is a problem of RFC 9457 with this status and code; gives it."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) >= {"type", "title", "status", "detail", "code"}
    assert problem["status"] == status
    assert ("www-authenticate" in answer.headers) >= (status == 401)
    return problem
