"""`make browser`: a person uses the OpenAPI pages, in a headless Chromium.

The service is the one of the README, run as it tells; and there is `keysmith serve`. What drives
the browser, and what the pages need, live in a folder of their own, next to which everything is
made: the first argument names it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from keysmith import Engine, KeyCreate, SqliteStore
from tests.test_readme import fastapi_service
from tests.test_server import keysmith_serve


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
    with fastapi_service(folder) as url, Engine(SqliteStore(folder / "keysmith.db")) as engine:
        raw_key = engine.create_key(KeyCreate(name="person", scopes=["users:read"])).raw_key
        browse(tools, url, "GET /users", "users of default", raw_key)
    with keysmith_serve(folder) as served:
        browse(tools, served.url(), "GET /v1/keys", '"name": "root"', served.root_key())


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    main(place.parent / "browser-run", place)
