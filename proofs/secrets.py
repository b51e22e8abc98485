"""Raw keys, hashes and peppers, looked for wherever they must not be: `--only secrets`."""

from __future__ import annotations

import asyncio
import io
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from rich.traceback import Traceback
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
from proofs.doors import shown_by_the_command, shown_by_the_server
from tests.adversity import read_only
from tests.conftest import START, Recorder
from tests.test_plugins_webhooks import Receiver

PROMISE = (
    "No raw key, hash or pepper is in a log at DEBUG, an error, a repr, a metric, a webhook, an "
    "audit entry, the output of a process, or the variables of Keysmith's frames in a traceback; "
    "and no raw key in a database, its log or a backup."
)
BROKEN = (
    "an error left `validate_key` with its frames as they were; `CreatedKey` showed its raw key; "
    "SQLAlchemy showed the parameters of statements in its log"
)

PEPPER = "pepper-that-nobody-may-read"
LOGGERS = ("", "sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "alembic", "keysmith")

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
        with self._engine.store.db.begin() as connection:  # type: ignore[attr-defined]
            connection.exec_driver_sql("ALTER TABLE keysmith_rotations RENAME TO gone")
        yield
        with self._engine.store.db.begin() as connection:  # type: ignore[attr-defined]
            connection.exec_driver_sql("ALTER TABLE gone RENAME TO keysmith_rotations")


def _bearer(raw_key: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {raw_key}".encode()


def variables(error: BaseException) -> Iterator[str]:
    """The variables of every frame as rich shows them, in full; to colour the source takes long."""
    trace = Traceback.extract(
        type(error),
        error,
        error.__traceback__,
        show_locals=True,
        locals_max_length=None,  # type: ignore[arg-type]
        locals_max_string=None,  # type: ignore[arg-type]
        locals_hide_dunder=False,
    )
    for stack in trace.stacks:
        for frame in stack.frames:
            yield f"{frame.filename}:{frame.lineno}, in {frame.name}"
            yield from (f"{name} = {node}" for name, node in (frame.locals or {}).items())


@contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """Every logger at DEBUG, into one text."""
    text = io.StringIO()
    handler, levels = logging.StreamHandler(text), {}
    logging.getLogger().addHandler(handler)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        levels[logger] = logger.level
        logger.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level in levels.items():
            logger.setLevel(level)


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
        if not quick:
            texts["output of the command"] = shown_by_the_command(folder, tour.raw_keys)
            texts["output of the server"] = shown_by_the_server(folder, tour.raw_keys)
    _look(texts, files, tour.raw_keys, parts)
    size = sum(map(len, texts.values())) + sum(map(len, files.values()))
    return (
        f"{len(tour.raw_keys)} raw keys, their hashes and a pepper, none of them in "
        f"{size / 2**20:.0f} MiB of logs, events, output, files and {tour.errors:,} tracebacks"
    )


def _look(
    texts: dict[str, str], files: dict[str, bytes], raw_keys: list[str], hasher: Turning
) -> None:
    assert "INSERT INTO keysmith_keys" in texts["log"], "the log was off"
    assert "self = <proofs.secrets.Tour" in texts["what calls showed"], "no variables were shown"
    assert files["audit.jsonl"], "nothing was audited"
    assert len(texts["webhooks"]) > 1_000, "nothing was sent"
    hashes = [hasher.hash(raw_key) for raw_key in raw_keys]
    assert any(hashes[1].encode() in content for content in files.values()), "no page was read"
    hashes += [Hasher().hash(raw_key) for raw_key in raw_keys]  # the server has no pepper
    secrets = {
        **{raw_key.rpartition("_")[2]: "a raw key" for raw_key in raw_keys},
        **dict.fromkeys(hashes, "a hash"),
        PEPPER: "the pepper",
    }
    for where, text in texts.items():
        for secret, what in secrets.items():
            assert secret not in text, f"{what} is in {where}: {_about(text, secret)}"
    for where, content in files.items():
        for secret, what in secrets.items():
            told = what != "a hash" or where.startswith("audit")
            assert not told or secret.encode() not in content, f"{what} is in {where}"


def _about(text: str, secret: str) -> str:
    """What is before it, to find it by, without it."""
    at = text.index(secret)
    return text[max(0, at - 2_000) : at].replace(secret, "…")


def main() -> None:
    """Prints the figure."""
    print(trial())
