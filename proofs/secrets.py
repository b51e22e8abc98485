"""Raw keys, hashes and peppers, looked for wherever they must not be: `--only secrets`."""

from __future__ import annotations

import asyncio
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from starlette.requests import Request

from keysmith import (
    AsyncEngine,
    Engine,
    Hasher,
    HmacSha256Hasher,
    KeyCreate,
    KeyUpdate,
    PolicyCreate,
    SqliteStore,
)
from keysmith.fastapi import APIKeyAuth
from keysmith.plugins import AuditLog, Metrics, Webhooks
from keysmith.testing import TurnableClock
from proofs.doors import use_the_command, use_the_server
from proofs.searching import Search
from proofs.showing import everything_logged, variables
from tests.adversity import read_only
from tests.conftest import START, Recorder
from tests.test_plugins_webhooks import Receiver

PROMISE = (
    "No raw key, hash or pepper, nor half of one, is in a log at DEBUG, an error, a repr, a "
    "metric, a webhook, an audit entry, the output of a process, an answer of the server, or the "
    "variables of Keysmith's frames in a traceback; and no raw key in a database, its log or a "
    "backup. A new raw key is shown once, where it was asked for."
)
BROKEN = (
    "an error left `validate_key` with its frames as they were; `CreatedKey` showed its raw key; "
    "SQLAlchemy showed the parameters of statements in its log; a hasher logged all of a raw key "
    "but its end, or a hash as bytes; `keys create` printed the raw key twice; an answer had its "
    "end in a header; it was in a page of the database; `keys validate` ended with another code"
)

PEPPER = "pepper-that-nobody-may-ever-read"

Call = Callable[..., object]


class Trouble(Exception):
    """What nobody expects, raised by a part that a host has replaced."""


class Turning(HmacSha256Hasher, TurnableClock):
    """A clock and a hasher that fail on demand."""

    def __init__(self) -> None:
        HmacSha256Hasher.__init__(self, PEPPER)
        TurnableClock.__init__(self, START)
        self.broken: str = ""

    def __call__(self) -> Any:
        if self.broken == "clock":
            raise Trouble
        return self.now

    def hash(self, raw_key: str) -> str:
        if self.broken == "hasher":
            raise Trouble
        return super().hash(raw_key)


class Tour:
    """Does all that can be done, rightly and wrongly, and keeps what was shown of it."""

    def __init__(self, engine: Engine, parts: Turning) -> None:
        self._engine = engine
        self._parts = parts
        self._asynchronous = AsyncEngine(engine)
        self._auth = APIKeyAuth(self._asynchronous)
        self.raw_keys: list[str] = []
        self.shown: list[str] = []
        self.errors = 0

    def go(self, rounds: int) -> None:
        """Once for each kind of trouble, the first time for none."""
        engine = self._engine
        engine.ensure_scopes(["read"])
        office = engine.create_policy(PolicyCreate(name="p", allowed_ips=["10.0.0.0/8"]))
        once = engine.create_policy(PolicyCreate(name="q", rate_limit=1, daily_quota=9))
        troubles = [self._none, self._read_only, self._no_clock, self._no_hasher, self._no_tables]
        for number in range(rounds):
            key_id = self._issue()
            for trouble in troubles[: number + 1]:
                with trouble():
                    self._use(key_id, self.raw_keys[-2:], office.id, once.id)
            self._end(key_id)

    def _issue(self) -> str:
        created = self._engine.create_key(KeyCreate(name="k", scopes=["read"]))
        rotated = self._engine.rotate_key(created.key.id)
        self.raw_keys += [created.raw_key, rotated.raw_key]
        self.shown += [repr(created), repr(rotated), repr(created.key), str(rotated.key)]
        return created.key.id

    def _use(self, key_id: str, raw_keys: list[str], office: str, once: str) -> None:
        engine, other = self._engine, self._engine.for_tenant("other")
        for raw_key in (*raw_keys, raw_keys[0][:-1]):
            self._validate(raw_key)
            self._validate(raw_key, scopes=["nope"])
            self._validate(raw_key, cost=-1)
            self._attempt(other.validate_key, raw_key)
            for call in (engine.get_key, engine.revoke_key, engine.get_policy, engine.get_scope):
                self._attempt(call, raw_key)
            self._attempt(engine.assign_scopes, raw_key, [raw_key])
            with suppress(Trouble):
                self._import(engine._context.hasher.hash(raw_key))  # noqa: SLF001
        self._attempt(engine.create_key, KeyCreate(name="k"))
        self._attempt(engine.create_key, KeyCreate(name="k", scopes=["nope"]))
        self._attempt(engine.rotate_key, key_id, grace=timedelta(days=400_000))
        for policy_id in (office, once):
            self._attempt(engine.update_key, key_id, KeyUpdate(policy_id=policy_id))
            self._validate(raw_keys[1], ip="11.0.0.1")
            self._validate(raw_keys[1], ip="11.0.0.1", cost=2)
        self._attempt(engine.suspend_key, key_id)
        self._validate(raw_keys[1])
        self._attempt(engine.reactivate_key, key_id)
        self._attempt(engine.update_key, key_id, KeyUpdate(policy_id=None))
        self._attempt(engine.list_rotations)
        self._attempt(engine.flush)

    def _import(self, key_hash: str) -> None:
        for call in (self._engine.import_key, self._wait(self._asynchronous.import_key)):
            self._attempt(call, KeyCreate(name="again"), key_hash=key_hash, hint="abcd")

    def _end(self, key_id: str) -> None:
        engine = self._engine
        self._parts.turn(days=2)
        self._validate(self.raw_keys[-2])
        self._attempt(engine.cleanup_grace_expired)
        self._attempt(engine.revoke_key, key_id, reason="leaked")
        self._validate(self.raw_keys[-1])
        self._attempt(engine.delete_key, key_id)
        self._validate(self.raw_keys[-1])

    def _validate(self, raw_key: str, **asked: Any) -> None:
        """By every door that is in this process."""
        self._attempt(self._engine.validate_key, raw_key, **asked)
        self._attempt(self._wait(self._asynchronous.validate_key), raw_key, **asked)
        authenticate = self._wait(self._auth.authenticate)
        for headers in ((_bearer(raw_key),), (_bearer(raw_key), _bearer(raw_key))):
            scope = {"type": "http", "path": "/", "method": "GET", "headers": headers}
            client = asked.get("ip", "10.0.0.1"), 1
            request = Request({**scope, "client": client})
            self._attempt(authenticate, request, asked.get("scopes", ()))

    def _wait(self, call: Call) -> Call:
        def waited(*given: Any, **named: Any) -> object:
            coroutine = call(*given, **named)
            del given, named  # these frames are the caller's
            return asyncio.run(coroutine)  # type: ignore[arg-type]

        return waited

    def _attempt(self, call: Call, *given: Any, **named: Any) -> None:
        # What is in this frame would be in the traceback, too.
        self._asked = partial(call, *given, **named)
        del call, given, named
        try:
            self.shown.append(repr(self._asked()))
        except Exception as error:  # noqa: BLE001  whatever it is, it is looked at
            self.errors += 1
            self.shown += traceback.format_exception(error)
            chain: BaseException | None = error
            while chain is not None:  # also what is suppressed, which some error trackers show
                self.shown += [f"{chain!r} {chain}", *variables(chain)]
                chain = chain.__context__

    # ------------------------------------------------------------------ troubles

    @contextmanager
    def _none(self) -> Iterator[None]:
        yield

    @contextmanager
    def _read_only(self) -> Iterator[None]:
        with read_only(self._engine.store):  # type: ignore[arg-type]
            yield

    @contextmanager
    def _no_clock(self) -> Iterator[None]:
        self._parts.broken = "clock"
        yield
        self._parts.broken = ""

    @contextmanager
    def _no_hasher(self) -> Iterator[None]:
        self._parts.broken = "hasher"
        yield
        self._parts.broken = ""

    @contextmanager
    def _no_tables(self) -> Iterator[None]:
        with self._engine.store.db.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE keysmith_rotations RENAME TO gone")
        yield
        with self._engine.store.db.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE gone RENAME TO keysmith_rotations")


def _bearer(raw_key: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {raw_key}".encode()


def trial(quick: bool = False) -> str:
    """Tells how much was looked through, and for how many secrets."""
    rounds = 2 if quick else 5
    registry, recorder, parts, receiver = CollectorRegistry(), Recorder(), Turning(), Receiver()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        receiver.up()
        stack.callback(receiver.down)
        log = stack.enter_context(everything_logged())
        plugins = [
            recorder,
            Metrics(registry),
            AuditLog(folder / "audit.jsonl", successes=True),
            Webhooks(receiver.url, Webhooks.new_secret()),
        ]
        store = SqliteStore(folder / "keys.db")
        with Engine(store, clock=parts, plugins=plugins, hasher=parts) as engine:
            store.migrate()
            tour = Tour(engine, parts)
            tour.go(rounds)
            engine.flush()
            store.backup(folder / "backup.db")
            files = {file.name: file.read_bytes() for file in folder.iterdir()}
        files |= {f"{file.name} at the end": file.read_bytes() for file in folder.iterdir()}
        texts = {
            "log": log.getvalue(),
            "what calls showed": "\n".join(tour.shown),
            "events": repr(recorder.events),
            "metrics": generate_latest(registry).decode(),
            "webhooks": repr([request.__dict__ for request in receiver.requests]),
            "reprs": repr((parts, engine, store, plugins)),
        }
        raw_keys = list(tour.raw_keys)
        if not quick:
            command = use_the_command(folder / "command", tour.raw_keys[0])
            server = use_the_server(folder / "server", tour.raw_keys)
            for door in (command, server):
                texts[f"what the {door.folder.name} said"] = door.shown
                files |= door.files
                raw_keys += door.raw_keys
    _check_what_there_is(texts, files, parts.hash(tour.raw_keys[1]))
    _look(texts, files, raw_keys, parts)
    size = sum(map(len, texts.values())) + sum(map(len, files.values()))
    return (
        f"{len(raw_keys)} raw keys, their hashes and a pepper, none of them nor half of one in "
        f"{size / 2**20:.0f} MiB of logs, events, output, files and {tour.errors:,} tracebacks"
    )


def _check_what_there_is(texts: dict[str, str], files: dict[str, bytes], key_hash: str) -> None:
    assert "INSERT INTO keysmith_keys" in texts["log"], "the log was off"
    assert "self = <proofs.secrets.Tour" in texts["what calls showed"], "no variables were shown"
    assert files["audit.jsonl"], "nothing was audited"
    assert len(texts["webhooks"]) > 1_000, "nothing was sent"
    assert any(key_hash.encode() in content for content in files.values()), "no page was read"


def _look(
    texts: dict[str, str], files: dict[str, bytes], raw_keys: list[str], hasher: Turning
) -> None:
    # The command and the server have no pepper.
    hashes = [each.hash(raw_key) for each in (hasher, Hasher()) for raw_key in raw_keys]
    anywhere = Search(
        ("a raw key", [raw_key.rpartition("_")[2].encode() for raw_key in raw_keys]),
        ("the pepper", [PEPPER.encode()]),
    )
    outside = Search(("a hash", [bytes.fromhex(key_hash) for key_hash in hashes]))
    for where, text in texts.items():
        content = text.encode(errors="backslashreplace")
        anywhere.refuse(where, content)
        outside.refuse(where, content)
    for where, content in files.items():
        anywhere.refuse(where, content)
        if where.startswith("audit"):
            outside.refuse(where, content)


def main() -> None:
    """Prints the figure."""
    print(trial())
