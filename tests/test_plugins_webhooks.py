"""Webhooks, to real receivers: signed, in order, and there once the receiver is back."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from keysmith import (
    Engine,
    InvalidKeyError,
    KeyCreate,
    KeysmithError,
    KeySuspendedError,
    PolicyCreate,
    ScopeNotFoundError,
    SqliteStore,
)
from keysmith.plugins import Webhooks
from keysmith.plugins.events import EVENT_TYPES, VALIDATIONS
from keysmith.plugins.receiver import Answer
from keysmith.plugins.webhooks import WebhookStatistics
from keysmith.raw_keys import mask
from tests.conftest import START, TurnableClock
from tests.plugin_helpers import HAPPENED, everything_happens
from tests.recording import PROMPT, wait_until
from tests.serving import reserved_port

pytestmark = pytest.mark.usefixtures("unhurried")

SECRET = Webhooks.new_secret()
QUICKLY = {"first_retry": timedelta(milliseconds=10), "longest_retry": timedelta(milliseconds=20)}


class Request:
    def __init__(self, headers: dict[str, str], body: bytes) -> None:
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body
        self.json = json.loads(body)
        self.type: str = self.json["type"]

    @property
    def name(self) -> str:
        return str(self.json["data"]["key"]["name"])


class Receiver:
    """A real HTTP server. `answer` says what to do with a request; it can be down."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.requests: list[Request] = []
        self.answer: Callable[[Request], int | tuple[int, dict[str, str]]] = lambda _: 204
        self.server: ThreadingHTTPServer | None = None
        reserved = ExitStack()
        self.port = reserved.enter_context(reserved_port())
        weakref.finalize(self, reserved.close)  # also while it is down

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://127.0.0.1:{self.port}/hooks/private-part?token=private-too"

    def up(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = Request(dict(self.headers), body)
                receiver.requests.append(request)
                answer = receiver.answer(request)
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        if self.tls is not None:
            self.server.socket = self.tls.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def names(self) -> list[str]:
        return [request.name for request in self.requests]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    server.up()
    yield server
    server.down()


def told(store: SqliteStore, webhooks: Webhooks, **options: Any) -> Engine:
    return Engine(store, plugins=[webhooks], **options)


def migrated() -> SqliteStore:
    store = SqliteStore(":memory:")
    store.migrate()
    return store


def create(engine: Engine, *names: str) -> list[str]:
    return [engine.create_key(KeyCreate(name=name)).key.id for name in names]


def rests(webhooks: Webhooks) -> bool:
    """Whether nothing is on its way, nor due."""
    with webhooks._changed:
        outbox = webhooks._outbox
        under_way = len(outbox._lanes) - len(outbox._due)
        return under_way == 0 and outbox.seconds_to_next(webhooks._pace()) != 0


def told_of(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of this receiver, and not by the threads of other tests."""
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if f":{receiver.port}" in message]


def delivered(engine: Engine, webhooks: Webhooks) -> bool:
    engine.flush()
    return webhooks.flush(PROMPT)


class TestStandardWebhooks:
    def test_an_independent_library_verifies_them(
        self, memory: SqliteStore, receiver: Receiver
    ) -> None:
        webhooks = Webhooks(receiver.url, SECRET)
        engine = told(memory, webhooks)
        create(engine, "n", "ünïcödé")
        assert delivered(engine, webhooks)
        assert len(receiver.requests) == 2
        for request in receiver.requests:
            assert Webhook(SECRET).verify(request.body, request.headers) == request.json
            with pytest.raises(WebhookVerificationError):
                Webhook(Webhooks.new_secret()).verify(request.body, request.headers)
            with pytest.raises(WebhookVerificationError):
                Webhook(SECRET).verify(request.body + b" ", request.headers)

    def test_while_a_secret_is_replaced_both_sign(
        self, memory: SqliteStore, receiver: Receiver
    ) -> None:
        old, new = Webhooks.new_secret(), Webhooks.new_secret()
        webhooks = Webhooks(receiver.url, [new, old])
        engine = told(memory, webhooks)
        create(engine, "n")
        assert delivered(engine, webhooks)
        [request] = receiver.requests
        for secret in (old, new):
            assert Webhook(secret).verify(request.body, request.headers)

    def test_headers_and_body(
        self, memory: SqliteStore, receiver: Receiver, clock: TurnableClock
    ) -> None:
        webhooks = Webhooks(receiver.url, SECRET, clock=clock)
        engine = told(memory, webhooks, clock=clock)
        key = engine.create_key(KeyCreate(name="n", meta={"a": [1]})).key
        engine.revoke_key(key.id, reason="leaked")
        assert delivered(engine, webhooks)
        created, revoked = receiver.requests
        assert created.headers["content-type"] == "application/json"
        assert re.fullmatch(r"msg_[0-9a-f]{32}", created.headers["webhook-id"])
        assert created.headers["webhook-id"] != revoked.headers["webhook-id"]
        assert created.headers["webhook-timestamp"] == str(int(START.timestamp()))
        signature = Webhook(SECRET).sign(
            created.headers["webhook-id"], START, created.body.decode()
        )
        assert created.headers["webhook-signature"] == signature
        assert set(revoked.json) == {"type", "timestamp", "data"}
        assert revoked.json["type"] == "key.revoked"
        assert revoked.json["timestamp"] == "2026-03-01T12:00:00.123456Z"
        assert revoked.json["data"]["reason"] == "leaked"
        assert revoked.json["data"]["key"]["id"] == key.id
        assert revoked.json["data"]["key"]["metadata"] == {"a": [1]}
        assert "key_hash" not in revoked.json["data"]["key"]

    def test_everything_but_validations_and_nothing_secret(
        self, memory: SqliteStore, receiver: Receiver, clock: TurnableClock
    ) -> None:
        webhooks = Webhooks(receiver.url, SECRET)
        engine = told(memory, webhooks, clock=clock)
        secrets = everything_happens(engine, clock)
        assert delivered(engine, webhooks)
        types = [request.type for request in receiver.requests]
        assert sorted(types) == sorted(type for type in HAPPENED if type not in VALIDATIONS)
        for request in receiver.requests:
            for secret in secrets:
                assert secret.split("_")[-1].encode() not in request.body

    def test_only_the_events_that_were_asked_for(
        self, memory: SqliteStore, receiver: Receiver
    ) -> None:
        webhooks = Webhooks(receiver.url, SECRET, events=["key.validation_failed"])
        engine = told(memory, webhooks)
        create(engine, "n")
        with pytest.raises(InvalidKeyError):
            engine.validate_key("nope")
        assert delivered(engine, webhooks)
        assert [request.type for request in receiver.requests] == ["key.validation_failed"]


class TestTrouble:
    def test_what_happens_while_it_is_down_arrives_when_it_is_back(
        self, memory: SqliteStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiver.down()
        webhooks = Webhooks(receiver.url, SECRET, **QUICKLY)
        engine = told(memory, webhooks)
        began = time.monotonic()
        [one, _] = create(engine, "a", "b")
        engine.suspend_key(one)
        engine.reactivate_key(one)
        engine.revoke_key(one)
        assert time.monotonic() - began < PROMPT
        engine.flush()
        wait_until(lambda: "did not accept" in caplog.text)
        assert webhooks.statistics == WebhookStatistics(
            waiting=5, delivered=0, given_up=0, dropped=0
        )
        receiver.up()
        assert delivered(engine, webhooks)
        of_one = [r.type for r in receiver.requests if r.json["data"]["key"]["id"] == one]
        assert of_one == ["key.created", "key.suspended", "key.reactivated", "key.revoked"]
        assert len(receiver.requests) == 5
        assert webhooks.statistics.delivered == 5
        assert "private" not in caplog.text

    def test_one_need_not_wait_for_the_next_attempt(
        self, memory: SqliteStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiver.down()
        webhooks = Webhooks(receiver.url, SECRET, first_retry=timedelta(hours=1))
        engine = told(memory, webhooks)
        create(engine, "n")
        engine.flush()
        wait_until(lambda: "did not accept" in caplog.text)
        receiver.up()
        assert not webhooks.flush(0.05)
        webhooks.retry_now()
        assert webhooks.flush()
        assert receiver.names() == ["n"]

    def test_an_event_that_fails_holds_up_its_own_key_only(
        self, memory: SqliteStore, receiver: Receiver
    ) -> None:
        healed = threading.Event()
        receiver.answer = lambda r: 500 if r.name == "a" and not healed.is_set() else 200
        webhooks = Webhooks(receiver.url, SECRET, **QUICKLY)
        engine = told(memory, webhooks)
        [a, b] = create(engine, "a", "b")
        engine.suspend_key(a)
        engine.suspend_key(b)
        wait_until(lambda: receiver.names().count("b") == 2)
        wait_until(lambda: receiver.names().count("a") >= 3)
        attempts = [request for request in receiver.requests if request.name == "a"]
        assert {request.type for request in attempts} == {"key.created"}
        assert len({request.headers["webhook-id"] for request in attempts}) == 1
        assert len({request.body for request in attempts}) == 1
        healed.set()
        assert delivered(engine, webhooks)
        accepted = [r.type for r in receiver.requests if r.name == "a"]
        assert accepted[-1] == "key.suspended"
        assert accepted.count("key.suspended") == 1
        assert webhooks.statistics.delivered == 4

    def test_refusals_hold_up_those_of_their_own_key_if_it_is_known(
        self, memory: SqliteStore, receiver: Receiver
    ) -> None:
        healed = threading.Event()

        def of(request: Request) -> str:
            data = request.json["data"]
            return str(data["key"]["id"] if "key" in data else data.get("key_id"))

        receiver.answer = lambda r: 500 if of(r) == a.key.id and not healed.is_set() else 200
        types = ["key.create_failed", "key.suspended", "key.validation_failed"]
        webhooks = Webhooks(receiver.url, SECRET, events=types, **QUICKLY)
        engine = told(memory, webhooks)
        a, b = (engine.create_key(KeyCreate(name=name)) for name in "ab")
        for key in (a, b):
            engine.suspend_key(key.key.id)
            with pytest.raises(KeySuspendedError):
                engine.validate_key(key.raw_key)
        for _ in range(2):
            with pytest.raises(InvalidKeyError):
                engine.validate_key("nope")
            with pytest.raises(ScopeNotFoundError):
                engine.create_key(KeyCreate(name="n", scopes=["nope"]))
        engine.flush()
        wait_until(lambda: webhooks.statistics.waiting == 2)
        assert webhooks.statistics.delivered == 6
        healed.set()
        assert webhooks.flush(PROMPT)
        assert [r.type for r in receiver.requests if of(r) == a.key.id][-2:] == [
            "key.suspended",
            "key.validation_failed",
        ]

    def test_one_refusal_of_a_stranger_does_not_hold_up_another(
        self, memory: SqliteStore, receiver: Receiver
    ) -> None:
        receiver.answer = lambda r: 500 if r.json["data"]["masked_key"] == mask("one") else 200
        webhooks = Webhooks(receiver.url, SECRET, events=["key.validation_failed"], **QUICKLY)
        engine = told(memory, webhooks)
        for raw_key in ("one", "another one"):
            with pytest.raises(InvalidKeyError):
                engine.validate_key(raw_key)
        engine.flush()
        wait_until(lambda: webhooks.statistics.delivered)
        assert webhooks.statistics.waiting == 1
        engine.close()

    def test_each_attempt_is_signed_at_its_own_time(
        self,
        memory: SqliteStore,
        receiver: Receiver,
        clock: TurnableClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        receiver.answer = lambda _: 200 if len(receiver.requests) > 1 else 503
        webhooks = Webhooks(receiver.url, SECRET, clock=clock)
        engine = told(memory, webhooks)
        create(engine, "n")
        engine.flush()
        wait_until(lambda: "is sent again" in caplog.text)
        clock.turn(minutes=10)
        webhooks.retry_now()
        assert webhooks.flush()
        first, second = receiver.requests
        assert second.body == first.body
        assert second.headers["webhook-id"] == first.headers["webhook-id"]
        assert second.headers["webhook-timestamp"] == str(int(clock().timestamp()))
        assert second.headers["webhook-signature"] != first.headers["webhook-signature"]

    def test_a_receiver_that_is_silent_is_not_waited_for_long(
        self, memory: SqliteStore, receiver: Receiver
    ) -> None:
        hanging = threading.Event()

        def answer(_: Request) -> int:
            if len(receiver.requests) == 1:
                hanging.wait()
            return 200

        receiver.answer = answer
        webhooks = Webhooks(receiver.url, SECRET, timeout=timedelta(seconds=0.25), **QUICKLY)
        engine = told(memory, webhooks)
        create(engine, "n")
        assert delivered(engine, webhooks)
        hanging.set()
        assert receiver.names()[:2] == ["n", "n"]

    def test_redirects_are_not_followed(
        self, memory: SqliteStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        elsewhere = Receiver()
        elsewhere.up()
        statuses = iter([301, 302, 303, 307, 308, 200])
        receiver.answer = lambda _: (next(statuses), {"Location": elsewhere.url})
        webhooks = Webhooks(receiver.url, SECRET, **QUICKLY)
        engine = told(memory, webhooks)
        create(engine, "n")
        assert delivered(engine, webhooks)
        elsewhere.down()
        assert len(receiver.requests) == 6
        assert elsewhere.requests == []
        assert "HTTP 301" in caplog.text

    def test_410_ends_all_sending(
        self, memory: SqliteStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        going = threading.Event()

        def answer(_: Request) -> int:
            going.wait()
            return 410

        receiver.answer = answer
        webhooks = Webhooks(receiver.url, SECRET, **QUICKLY)
        engine = told(memory, webhooks)
        create(engine, "a", "b", "c")
        engine.flush()
        going.set()
        assert webhooks.flush()
        create(engine, "d")
        assert delivered(engine, webhooks)
        assert len(receiver.requests) == 1
        assert webhooks.statistics == WebhookStatistics(
            waiting=0, delivered=0, given_up=3, dropped=1
        )
        engine.close()
        [message] = told_of(receiver, caplog)
        assert message == (
            f"3 webhooks for http://127.0.0.1:{receiver.port} are given up: "
            "it answered 410 Gone, and is sent no more."
        )

    def test_a_receiver_that_never_accepts_is_given_up(
        self,
        memory: SqliteStore,
        receiver: Receiver,
        clock: TurnableClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        receiver.answer = lambda r: 500 if r.name == "old" else 200
        webhooks = Webhooks(receiver.url, SECRET, give_up_after=timedelta(hours=2), clock=clock)
        engine = told(memory, webhooks)
        [old] = create(engine, "old")
        engine.flush()
        wait_until(lambda: "is sent again" in caplog.text)
        clock.turn(hours=1)
        webhooks.retry_now()
        wait_until(lambda: len(receiver.requests) == 2 and rests(webhooks))
        assert not webhooks.flush(0.02)
        receiver.answer = lambda r: 500 if r.type == "key.created" else 200
        engine.revoke_key(old)
        engine.flush()
        clock.turn(hours=1)
        webhooks.retry_now()
        assert webhooks.flush()
        assert [request.type for request in receiver.requests] == [
            *["key.created"] * 3,
            "key.revoked",
        ]
        assert webhooks.statistics == WebhookStatistics(
            waiting=0, delivered=1, given_up=1, dropped=0
        )
        given_up = r"did not accept webhook msg_\w+ \(key\.created\): HTTP 500\. It is given up"
        assert re.search(given_up, caplog.text)

    def test_a_pause_that_it_asks_for_is_kept(
        self, memory: SqliteStore, receiver: Receiver, clock: TurnableClock
    ) -> None:
        receiver.answer = lambda _: (429, {"Retry-After": "120"})
        webhooks = Webhooks(
            receiver.url, SECRET, first_retry=timedelta(milliseconds=1), clock=clock
        )
        engine = told(memory, webhooks)
        create(engine, "a")
        engine.flush()
        wait_until(lambda: webhooks._outbox.seconds_to_next(clock()) == 120)
        create(engine, "b")
        engine.flush()
        assert not webhooks.flush(0.05)
        assert receiver.names() == ["a"]
        receiver.answer = lambda _: 200
        clock.turn(seconds=121)
        create(engine, "c")  # which has the sender look at the clock
        assert delivered(engine, webhooks)
        assert sorted(receiver.names()) == ["a", "a", "b", "c"]

    @pytest.mark.parametrize("retry_after", [{}, {"Retry-After": "60"}])
    def test_a_clock_that_is_put_back_holds_nothing_up(
        self,
        retry_after: dict[str, str],
        memory: SqliteStore,
        receiver: Receiver,
        clock: TurnableClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        receiver.answer = lambda _: (503, retry_after)
        webhooks = Webhooks(receiver.url, SECRET, first_retry=timedelta(minutes=1), clock=clock)
        engine = told(memory, webhooks)
        create(engine, "a")
        engine.flush()
        wait_until(lambda: "is sent again" in caplog.text)
        receiver.answer = lambda _: 200
        clock.turn(hours=-2)
        create(engine, "b")
        engine.flush()
        assert "a" not in receiver.names()[1:]
        clock.turn(minutes=1)
        create(engine, "c")
        assert delivered(engine, webhooks)
        assert sorted(receiver.names()) == ["a", "a", "b", "c"]
        last = receiver.requests[-1]
        assert last.headers["webhook-timestamp"] == str(int(clock().timestamp()))
        assert last.json["timestamp"] == clock().isoformat().replace("+00:00", "Z")

    def test_too_many_are_dropped_and_counted(
        self, memory: SqliteStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiver.down()
        webhooks = Webhooks(receiver.url, SECRET, limit=2, first_retry=timedelta(hours=1))
        engine = told(memory, webhooks)
        create(engine, "a", "b", "c", "d", "e")
        engine.flush()
        shown = f"http://127.0.0.1:{receiver.port}"
        full = f"2 webhooks wait for {shown}. It misses what comes on top."
        assert [r.getMessage() for r in caplog.records].count(full) == 1
        wait_until(lambda: caplog.text.count("did not accept") == 2)
        receiver.up()
        webhooks.retry_now()
        assert webhooks.flush()
        assert sorted(receiver.names()) == ["a", "b"]
        assert webhooks.statistics.dropped == 3
        assert f"No more webhooks wait for {shown}; it has missed 3." in caplog.text
        create(engine, "f")
        assert delivered(engine, webhooks)
        assert receiver.names()[-1] == "f"

    def test_what_comes_with_every_refused_request_takes_little_room(
        self,
        memory: SqliteStore,
        receiver: Receiver,
        clock: TurnableClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        receiver.down()
        types = ["key.quota_exceeded", "key.rate_limited", "key.reused", "key.revoked"]
        webhooks = Webhooks(
            receiver.url, SECRET, events=types, limit=7, first_retry=timedelta(hours=1)
        )
        engine = told(memory, webhooks, clock=clock)
        policy = engine.create_policy(PolicyCreate(name="p", daily_quota=2, rate_limit=1))
        noisy, too = (
            engine.create_key(KeyCreate(name=name, policy_id=policy.id)) for name in ("a", "b")
        )
        old = [noisy.raw_key]
        old.append(engine.rotate_key(noisy.key.id, grace=timedelta(0)).raw_key)
        current = engine.rotate_key(noisy.key.id, grace=timedelta(0)).raw_key

        def refuse(raw_key: str) -> None:
            with pytest.raises(KeysmithError):
                engine.validate_key(raw_key)

        for _ in range(2):
            engine.validate_key(current)
            engine.flush()
            for _ in range(3):
                for raw_key in (current, *old):
                    refuse(raw_key)
            clock.turn(minutes=2)
        for _ in range(3):
            refuse(current)
        engine.validate_key(too.raw_key)
        refuse(too.raw_key)
        engine.revoke_key(too.key.id)
        engine.flush()
        wait_until(lambda: caplog.text.count("is sent again") == 2)
        assert webhooks.statistics == WebhookStatistics(
            waiting=6, delivered=0, given_up=0, dropped=0
        )
        receiver.up()
        webhooks.retry_now()
        assert webhooks.flush()
        assert sorted((r.name, r.type) for r in receiver.requests) == [
            ("a", "key.quota_exceeded"),
            ("a", "key.rate_limited"),
            ("a", "key.reused"),
            ("a", "key.reused"),
            ("b", "key.rate_limited"),
            ("b", "key.revoked"),
        ]
        refuse(current)
        assert delivered(engine, webhooks)
        assert receiver.requests[-1].type == "key.quota_exceeded"
        assert webhooks.statistics.delivered == 7

    def test_what_is_no_http_is_no_receipt(
        self, memory: SqliteStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            url = f"http://127.0.0.1:{port}/private"
            webhooks = Webhooks(url, SECRET, first_retry=timedelta(hours=1))
            engine = told(memory, webhooks)
            create(engine, "n")
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(65536))
            engine.flush()
            wait_until(lambda: "BadStatusLine" in caplog.text)
        assert "private" not in caplog.text
        assert webhooks.statistics.waiting == 1
        engine.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
@pytest.mark.parametrize("trusted", [True, False])
def test_certificates_are_verified(
    trusted: bool, tmp_path: Path, memory: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    receiver = Receiver(context)
    receiver.up()
    webhooks = Webhooks(receiver.url, SECRET, first_retry=timedelta(hours=1))
    engine = told(memory, webhooks)
    create(engine, "n")
    engine.close()
    receiver.down()
    assert receiver.names() == ["n"] * trusted
    assert webhooks.statistics.delivered == trusted


class TestTheEnd:
    def test_closing_the_engine_delivers_what_waits(
        self, memory: SqliteStore, receiver: Receiver
    ) -> None:
        webhooks = Webhooks(receiver.url, SECRET)
        engine = told(memory, webhooks)
        create(engine, "a", "b", "c")
        engine.close()
        assert sorted(receiver.names()) == ["a", "b", "c"]
        assert webhooks.statistics.given_up == 0

    def test_closing_the_engine_does_not_wait_for_a_receiver_that_is_down(
        self, memory: SqliteStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiver.down()
        webhooks = Webhooks(receiver.url, SECRET, first_retry=timedelta(hours=1))
        engine = told(memory, webhooks)
        create(engine, "a", "b", "c")
        began = time.monotonic()
        engine.close()
        assert time.monotonic() - began < PROMPT
        assert webhooks.statistics == WebhookStatistics(
            waiting=0, delivered=0, given_up=3, dropped=0
        )
        assert caplog.text.count("It is given up") == 3

    @pytest.mark.parametrize("status", [200, 500])
    def test_nor_for_one_that_hangs(
        self,
        status: int,
        receiver: Receiver,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        hanging = threading.Event()
        receiver.answer = lambda _: status if hanging.wait() else 0
        monkeypatch.setattr("keysmith.plugins.webhooks.PATIENCE", 0.1)
        webhooks = Webhooks(receiver.url, SECRET, timeout=timedelta(hours=1))
        engine = told(migrated(), webhooks)
        create(engine, "a", "b")
        began = time.monotonic()
        engine.close()
        assert time.monotonic() - began < PROMPT
        assert "2 webhooks for" in caplog.text
        assert "are given up: the engine was closed." in caplog.text
        caplog.clear()
        hanging.set()
        wait_until(lambda: webhooks._thread is None)
        assert webhooks.statistics == WebhookStatistics(
            waiting=0, delivered=0, given_up=2, dropped=0
        )
        assert told_of(receiver, caplog) == []

    def test_an_engine_that_closes_leaves_the_webhooks_of_another_alone(
        self,
        receiver: Receiver,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        receiver.answer = lambda _: 503
        webhooks = Webhooks(receiver.url, SECRET, first_retry=timedelta(hours=1))
        engines = [told(migrated(), webhooks) for _ in range(3)]
        for name, engine in zip("abc", engines, strict=True):
            create(engine, name)
            engine.flush()
        wait_until(lambda: caplog.text.count("is sent again") == 3)
        with monkeypatch.context() as patch:
            patch.setattr("keysmith.plugins.webhooks.PATIENCE", 0.1)
            engines[0].close()
            create(engines[1], "later")
            engines[1].close()
        wait_until(lambda: caplog.text.count("is sent again") == 4 and rests(webhooks))
        assert webhooks.statistics.waiting == 4
        receiver.answer = lambda _: 200
        engines[2].close()
        assert webhooks.statistics == WebhookStatistics(
            waiting=0, delivered=4, given_up=0, dropped=0
        )

    def test_what_was_closed_may_be_used_again(
        self, receiver: Receiver, caplog: pytest.LogCaptureFixture
    ) -> None:
        webhooks = Webhooks(receiver.url, SECRET, **QUICKLY)
        for attempts in (1, 3):
            receiver.requests.clear()
            receiver.answer = lambda _, attempts=attempts: (
                200 if len(receiver.requests) == attempts else 503
            )
            engine = told(migrated(), webhooks)
            create(engine, "n")
            assert delivered(engine, webhooks)
            engine.close()
        assert webhooks.statistics == WebhookStatistics(
            waiting=0, delivered=2, given_up=0, dropped=0
        )

    def test_no_thread_waits_for_nothing(self, memory: SqliteStore, receiver: Receiver) -> None:
        webhooks = Webhooks(receiver.url, SECRET)
        engine = told(memory, webhooks)
        assert webhooks._thread is None
        for name in ("a", "b"):
            create(engine, name)
            assert delivered(engine, webhooks)
            wait_until(lambda: webhooks._thread is None)
        assert receiver.names() == ["a", "b"]

    def test_a_thread_that_cannot_start_is_tried_for_again(
        self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        webhooks = Webhooks(receiver.url, SECRET, events=["policy.deleted"])
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                webhooks.on_policy_deleted("kpol_1")
        webhooks.on_policy_deleted("kpol_2")
        assert webhooks.flush()
        assert {r.json["data"]["policy_id"] for r in receiver.requests} == {"kpol_1", "kpol_2"}

    def test_a_fork_delivers_its_own(self, receiver: Receiver, tmp_path: Path) -> None:
        forked = threading.Event()

        def answer(request: Request) -> int:
            if request.name == "child":
                forked.set()
            else:
                (tmp_path / "arrived").touch()
                forked.wait()  # so that the parent is sending while it forks
            return 200

        receiver.answer = answer
        command = [sys.executable, "-c", FORKING, receiver.url, SECRET]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=180)
        assert sorted(receiver.names()) == ["after", "before", "child"]


FORKING = """
import os, sys, time
from keysmith import Engine, KeyCreate, SqliteStore
from keysmith.engine.hooks import Hooks
from keysmith.plugins import Webhooks, webhooks

webhooks.PATIENCE = 60.0
Hooks.close.__defaults__ = (60.0,)
store = SqliteStore("keys.db")
store.migrate()
webhooks = Webhooks(*sys.argv[1:])
engine = Engine(store, plugins=[webhooks])
engine.create_key(KeyCreate(name="before"))
while not os.path.exists("arrived"):
    time.sleep(0.01)
child = os.fork()
store.db.dispose(close=child != 0)
engine.create_key(KeyCreate(name="after" if child else "child"))
if child:
    assert os.waitpid(child, 0)[1] == 0
engine.close()
"""


class TestAnswers:
    @pytest.mark.parametrize(
        ("retry_after", "pause"),
        [
            (None, None),
            ("120", 120),
            ("0", 0),
            ("9" * 400, float("inf")),
            ("Sun, 01 Mar 2026 12:02:00 GMT", 120),
            ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
            ("Sun, 01 Mar 2026 12:02:00 -0000", None),
            ("soon", None),
            ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
            ("Sun, 01 Mar 2026 12:02:00 +999999999999999999", None),
            ("-5", None),
            ("", None),
        ],
    )
    def test_retry_after(self, retry_after: str | None, pause: float | None) -> None:
        now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        assert Answer(503, retry_after).pause(now) == pause

    def test_only_2xx_is_a_receipt(self) -> None:
        accepted = {status for status in range(600) if Answer(status).accepted}
        assert accepted == set(range(200, 300))


class TestOptions:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.com/hooks",
            "ftp://example.com/",
            "file:///etc/passwd",
            "https://",
            "https://user:hunter2@example.com/",
            "https://example.com/?token=hunter2 x",
            "https://example.com/hunter2\n",
            "https://example.com/hunter2ü",
            "https://hunter2ü/",
            "https://[hunter2]/",
            "https://example.com:hunter2/",
            "https://example.com:0/",
        ],
    )
    def test_what_is_no_url_is_refused_and_not_shown(self, url: str) -> None:
        with pytest.raises(ValueError, match="begins with https://") as refused:
            Webhooks(url, SECRET)
        assert "hunter2" not in str(refused.value)
        assert refused.value.__context__ is None

    @pytest.mark.parametrize(
        "secret",
        [
            "",
            "whsec_",
            "whsec_not base64!",
            "whsec_" + base64.b64encode(b"x" * 23).decode(),
            "whsec_" + base64.b64encode(b"x" * 65).decode(),
            base64.b64encode(b"x" * 32).decode(),
            "whsec_ünïcödé",
        ],
    )
    def test_a_secret_is_of_the_right_form_and_not_shown(self, secret: str) -> None:
        with pytest.raises(ValueError, match="new_secret") as refused:
            Webhooks("https://example.com/", secret)
        assert not secret or secret not in str(refused.value).replace("'whsec_'", "")

    def test_a_secret_may_lack_its_padding(self) -> None:
        assert Webhooks("https://example.com/", SECRET.rstrip("="))

    def test_there_is_a_secret(self) -> None:
        with pytest.raises(ValueError, match="need a secret"):
            Webhooks("https://example.com/", [])

    def test_events_exist(self) -> None:
        with pytest.raises(ValueError, match=r"key\.eaten"):
            Webhooks("https://example.com/", SECRET, events=["key.created", "key.eaten"])

    def test_secrets_are_new_each_time(self) -> None:
        secrets = {Webhooks.new_secret() for _ in range(10)}
        assert len(secrets) == 10
        assert {len(base64.b64decode(secret.removeprefix("whsec_"))) for secret in secrets} == {32}

    def test_nothing_shows_a_secret_or_a_path(self) -> None:
        webhooks = Webhooks("https://example.com/private", SECRET)
        shown = f"{webhooks!r} {webhooks._receiver} {webhooks._receiver!r}"
        assert SECRET not in shown
        assert "private" not in shown

    def test_by_default_all_but_validations(self) -> None:
        webhooks = Webhooks("https://example.com/", SECRET)
        wanted = {type for type in EVENT_TYPES.values() if webhooks.wants(type)}
        assert wanted == set(EVENT_TYPES.values()) - VALIDATIONS
