"""`make browser`: a person uses the OpenAPI pages, in a headless Chromium.

The service is the one of the README, run as it tells; and there is `keysmith serve`. What drives
the browser, and what the pages need, live in a folder of their own, next to which everything is
made: the first argument names it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keysmith import Engine, KeyCreate, SqliteStore
from tests.test_readme import blocks
from tests.test_server import keysmith_serve

BINARIES = Path(sys.executable).parent


@contextmanager
def readme_service(folder: Path) -> Iterator[str]:
    """The service of the README, on a free port; gives its URL."""
    [service] = blocks("In a FastAPI service", "python")[:1]
    (folder / "service.py").write_text(service)
    with (folder / "service.log").open("w") as log:
        process = subprocess.Popen(
            [BINARIES / "uvicorn", "service:app", "--port", "0"], cwd=folder, stderr=log, stdout=log
        )
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"http://\S+", (folder / "service.log").read_text())):
                assert process.poll() is None, (folder / "service.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield found[0]
        finally:
            process.terminate()
            process.wait(30)


def browse(tools: Path, url: str, operation: str, answer: str, raw_key: str) -> None:
    """Has a person call an operation of the page, whose answer is to hold this text."""
    subprocess.run(
        [tools / "bin" / "python", "-m", "tests.browser_page", url, operation, answer, tools],
        input=raw_key,
        text=True,
        check=True,
        timeout=300,
    )


def main(folder: Path, tools: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with readme_service(folder) as url, Engine(SqliteStore(folder / "keysmith.db")) as engine:
        raw_key = engine.create_key(KeyCreate(name="person", scopes=["users:read"])).raw_key
        browse(tools, url, "GET /users", "users of default", raw_key)
    with keysmith_serve(folder) as served:
        browse(tools, served.url(), "GET /v1/keys", '"name": "root"', served.root_key())


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    main(place.parent / "browser-run", place)
