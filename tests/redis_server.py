"""A Redis of our own, for tests of limits that several machines count together."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

with_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="takes the redis-server binary"
)


@contextmanager
def redis_server(folder: Path, password: str = "") -> Iterator[str]:
    """Runs it on a socket in this folder; gives its URI."""
    path = folder / "s"
    process = subprocess.Popen(
        [
            *("redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder),
            *(("--requirepass", password) if password else ()),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not _answers(path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"redis+unix://{f':{password}@' if password else ''}{path}"
    finally:
        process.terminate()
        process.wait(60)


def _answers(path: Path) -> bool:
    """The socket is there a moment before anybody listens on it."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
