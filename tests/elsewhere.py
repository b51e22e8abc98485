"""Another process that changes things when told to, and says when it has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from keysmith import Engine, PolicyUpdate, SqliteStore, UsageCreate

ROOT = Path(__file__).parent.parent


class Elsewhere:
    """A process with an engine of its own on the same file."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.elsewhere", str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, deed: str, *arguments: str) -> str:
        """Has it done; returns when it is committed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(deed, *arguments, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline().strip()
        assert answer, f"{deed} failed"
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=120)


def _do(engine: Engine, deed: str, *arguments: str) -> str | None:
    store = engine.store
    match deed, *arguments:
        case "rotate", key_id:
            return engine.rotate_key(key_id, reason="compromise").raw_key
        case "renew", key_id:
            return engine.rotate_key(key_id).raw_key
        case (("suspend" | "reactivate" | "revoke"), key_id):
            getattr(engine, f"{deed}_key")(key_id)
        case "assign", key_id, scope:
            engine.assign_scopes(key_id, [scope])
        case "remove", key_id, scope:
            engine.remove_scopes(key_id, [scope])
        case "allow", policy_id, method:
            engine.update_policy(policy_id, PolicyUpdate(allowed_methods=[method]))
        case "use", key_id:
            usage = UsageCreate(key_id=key_id, endpoint="/", method="GET", status_code=200)
            engine.record_usage(usage)
            engine.flush()
        case ("migrate",):
            store.migrate()
        case ("lock",):
            transaction = store.transaction()
            transaction.__enter__()
            _held.append(transaction)
        case ("unlock",):
            _held.pop().__exit__(None, None, None)
        case _:
            raise AssertionError(deed)
    return None


_held: list = []

if __name__ == "__main__":
    with Engine(SqliteStore(sys.argv[1])) as engine:
        for line in sys.stdin:
            print(_do(engine, *line.split()) or "done", flush=True)
        while _held:
            _do(engine, "unlock")
