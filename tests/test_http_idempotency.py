"""Requests that come again, and changes that must not overwrite others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Header
from fastapi.testclient import TestClient
from pydantic import ValidationError

from keysmith import (
    Engine,
    KeyCreate,
    KeyNotFoundError,
    KeyUpdate,
    PolicyCreate,
    PolicyUpdate,
    RequestMismatchError,
    RequestRepeatedError,
    SqliteStore,
)
from keysmith.fastapi import Authority, management_router
from keysmith.server import Settings, create_app, prepare
from tests.conftest import Recorder, TurnableClock
from tests.serving import client, is_problem, serving


class TestTheEngine:
    def test_a_key_is_created_once(self, engine: Engine, recorder: Recorder) -> None:
        first = engine.create_key(KeyCreate(name="n"), idempotency_key="one")
        engine.flush()
        before = recorder.names()
        with pytest.raises(RequestRepeatedError) as repeated:
            engine.create_key(KeyCreate(name="n"), idempotency_key="one")
        assert repeated.value.key_id == first.key.id
        with pytest.raises(RequestMismatchError):
            engine.create_key(KeyCreate(name="m"), idempotency_key="one")
        engine.flush()
        assert recorder.names() == [*before, "on_key_create_failed"], "a repetition is no failure"
        assert engine.count_keys() == 1
        engine.create_key(KeyCreate(name="n"), idempotency_key="two")
        engine.create_key(KeyCreate(name="n"))
        engine.create_key(KeyCreate(name="n"))
        assert engine.count_keys() == 4

    def test_what_is_asked_for_is_what_counts(self, engine: Engine) -> None:
        engine.ensure_scopes(["a", "b"])
        data = {"name": "n", "meta": {"x": 1, "y": [2]}, "scopes": ["a", "b"]}
        engine.create_key(KeyCreate(**data), idempotency_key="k")
        same = {**data, "meta": {"y": [2], "x": 1}, "tenant_id": "default", "description": ""}
        with pytest.raises(RequestRepeatedError):
            engine.create_key(KeyCreate(**same), idempotency_key="k")
        for other in ({"meta": {}}, {"scopes": ["a"]}, {"tenant_id": "t"}, {"prefix": "pk"}):
            with pytest.raises(RequestMismatchError):
                engine.create_key(KeyCreate(**{**data, **other}), idempotency_key="k")

    def test_a_key_is_rotated_once(self, engine: Engine) -> None:
        created, other = (engine.create_key(KeyCreate(name=name)) for name in "ab")
        key_id = created.key.id
        rotated = engine.rotate_key(key_id, idempotency_key="k")
        with pytest.raises(RequestRepeatedError) as repeated:
            engine.rotate_key(key_id, idempotency_key="k", rotated_by="somebody else")
        assert repeated.value.key_id == key_id
        for asked in ({"grace": timedelta(0)}, {"reason": "policy"}):
            with pytest.raises(RequestMismatchError):
                engine.rotate_key(key_id, idempotency_key="k", **asked)
        with pytest.raises(RequestMismatchError):
            engine.rotate_key(other.key.id, idempotency_key="k")
        assert engine.validate_key(rotated.raw_key).rotated is False
        engine.revoke_key(key_id)
        with pytest.raises(RequestRepeatedError):
            engine.rotate_key(key_id, idempotency_key="k")

    def test_it_holds_after_the_expiry_that_was_asked_for(
        self, engine: Engine, clock: TurnableClock
    ) -> None:
        soon = KeyCreate(name="n", expires_at=clock.now + timedelta(hours=1))
        engine.create_key(soon, idempotency_key="k")
        clock.turn(hours=2)
        with pytest.raises(RequestRepeatedError):
            engine.create_key(soon, idempotency_key="k")

    def test_tenants_do_not_meet(self, engine: Engine) -> None:
        acme, other = engine.for_tenant("acme"), engine.for_tenant("other")
        keys = {
            bound.create_key(KeyCreate(name="n"), idempotency_key="k").key.id
            for bound in (engine, acme, other, engine.for_tenant("acme", app_id="app"))
        }
        assert len(keys) == 4
        with pytest.raises(RequestRepeatedError) as repeated:
            acme.create_key(KeyCreate(name="n"), idempotency_key="k")
        assert acme.get_key(repeated.value.key_id).tenant_id == "acme"

    def test_what_was_refused_or_deleted_leaves_nothing_behind(self, engine: Engine) -> None:
        with pytest.raises(Exception, match="scope"):
            engine.create_key(KeyCreate(name="n", scopes=["nope"]), idempotency_key="k")
        created = engine.create_key(KeyCreate(name="n"), idempotency_key="k")
        engine.delete_key(created.key.id)
        assert engine.create_key(KeyCreate(name="n"), idempotency_key="k").key != created.key

    @pytest.mark.parametrize("wrong", ["", "x" * 2000, 5])
    def test_what_is_no_idempotency_key(self, engine: Engine, wrong: Any) -> None:
        with pytest.raises(ValidationError):
            engine.create_key(KeyCreate(name="n"), idempotency_key=wrong)

    def test_nothing_shows_of_it(self, engine: Engine) -> None:
        key = engine.create_key(KeyCreate(name="n"), idempotency_key="k").key
        assert key.request_token is not None
        for text in (repr(key), str(key.model_dump()), repr(engine.get_key(key.id))):
            assert "request" not in text
            assert key.request_token not in text

    def test_among_threads_one_wins(self, tmp_path: Path) -> None:
        with Engine(SqliteStore(tmp_path / "keys.db")) as engine:
            engine.store.migrate()

            def create(_: int) -> str:
                try:
                    return engine.create_key(KeyCreate(name="n"), idempotency_key="k").key.id
                except RequestRepeatedError as repeated:
                    return repeated.key_id

            with ThreadPoolExecutor(8) as threads:
                ids = set(threads.map(create, range(24)))
            assert len(ids) == engine.count_keys() == 1

    def test_a_precondition_prevents_the_change(self, engine: Engine) -> None:
        key = engine.create_key(KeyCreate(name="n")).key
        policy = engine.create_policy(PolicyCreate(name="p"))

        def refuse(entity: object) -> None:
            seen.append(entity)
            raise LookupError

        seen: list[object] = []
        for call in (
            lambda: engine.update_key(key.id, KeyUpdate(name="m"), precondition=refuse),
            lambda: engine.delete_key(key.id, precondition=refuse),
            lambda: engine.update_policy(policy.id, PolicyUpdate(name="q"), precondition=refuse),
            lambda: engine.delete_policy(policy.id, precondition=refuse),
        ):
            with pytest.raises(LookupError):
                call()
        assert [each.id for each in seen] == [key.id, key.id, policy.id, policy.id]  # type: ignore[attr-defined]
        assert engine.get_key(key.id) == key
        assert engine.get_policy(policy.id) == policy
        with pytest.raises(KeyNotFoundError):
            engine.update_key("akey_" + "0" * 26, KeyUpdate(), precondition=refuse)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    engine = Engine(SqliteStore(tmp_path_factory.mktemp("idempotency") / "keys.db"))
    engine.store.migrate()
    with serving(create_app(engine, Settings())) as url:
        yield engine, f"{url}/v1"


@pytest.fixture(scope="module")
def api(served: tuple[Engine, str]) -> Iterator[httpx.Client]:
    with client(served[1], prepare(served[0])) as opened:
        yield opened


def once(api: httpx.Client, path: str, key: str, body: dict[str, Any] | None = None) -> Any:
    return api.post(path, json=body, headers={"Idempotency-Key": key})


class TestOverHttp:
    def test_create(self, api: httpx.Client) -> None:
        first = once(api, "/keys", "create", {"name": "n"})
        assert first.status_code == 201
        again = once(api, "/keys", "create", {"name": "n"})
        assert (again.status_code, again.json()["raw_key"]) == (200, None)
        assert again.json()["key"] == first.json()["key"]
        assert again.headers["etag"] == first.headers["etag"]
        other = once(api, "/keys", "create", {"name": "m"})
        is_problem(other, 422, "request_mismatch")

    def test_rotate(self, api: httpx.Client) -> None:
        made = api.post("/keys", json={"name": "n"}).json()
        path = f"/keys/{made['key']['id']}/rotate"
        first = once(api, path, "rotate").json()
        assert first["raw_key"] != made["raw_key"]
        assert once(api, path, "rotate", {}).json() == {**first, "raw_key": None}
        is_problem(once(api, path, "rotate", {"grace": "PT1M"}), 422, "request_mismatch")
        valid = api.post("/keys/validate", json={"raw_key": first["raw_key"]}).json()
        assert valid["rotated"] is False

    def test_callers_do_not_meet(self, served: tuple[Engine, str], api: httpx.Client) -> None:
        engine, url = served
        mine = once(api, "/keys", "shared", {"name": "n"}).json()["key"]["id"]
        for tenant in ("keysmith", "acme"):
            engine.ensure_scopes(["keysmith:keys:write"], tenant_id=tenant)
            caller = KeyCreate(name="c", tenant_id=tenant, scopes=["keysmith:keys:write"])
            with client(url, engine.create_key(caller).raw_key) as other:
                theirs = once(other, "/keys", "shared", {"name": "n"})
                assert (theirs.status_code, theirs.json()["key"]["id"] == mine) == (201, False)

    def test_callers_whose_names_hold_spaces_do_not_meet(self, engine: Engine) -> None:
        app = FastAPI()

        def authorize(name: Annotated[str, Header(alias="X-Name")]) -> Authority:
            return Authority(engine, ["keysmith"], name=name)

        app.include_router(management_router(engine, authorize=authorize))
        with TestClient(app) as api:
            for name, key in (("alice smith", "1"), ("alice", "smith 1")):
                sent = {"X-Name": name, "Idempotency-Key": key}
                assert api.post("/v1/keys", json={"name": "n"}, headers=sent).status_code == 201

    def test_what_is_no_idempotency_key(self, api: httpx.Client) -> None:
        twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
        several = api.post("/keys", json={"name": "n"}, headers=twice)
        is_problem(several, 400, "several_idempotency_keys")
        for wrong in ("", "x" * 256):
            problem = is_problem(once(api, "/keys", wrong, {"name": "n"}), 422, "invalid_input")
            assert problem["errors"][0]["location"] == "header"
        assert once(api, "/keys", "x" * 255, {"name": "n"}).status_code == 201

    @pytest.mark.parametrize("what", ["keys", "policies", "scopes"])
    def test_etags(self, api: httpx.Client, what: str) -> None:
        made = api.post(f"/{what}", json={"name": f"etag-{what}"})
        document = made.json().get("key", made.json())
        path, tag = f"/{what}/{document['id']}", made.headers["etag"]
        assert api.get(path).headers["etag"] == tag
        changed = api.patch(path, json={"description": "1"}, headers={"If-Match": tag})
        assert changed.status_code == 200
        newer = changed.headers["etag"]
        assert newer not in {tag, api.get("/keys").headers.get("etag")}
        stale: list[Any] = [("PATCH", {"description": "2"}), ("DELETE", None)]
        if what == "policies":
            stale.append(("PUT", {"name": "replaced"}))
        for method, body in stale:
            malformed = (f"{newer}x", f"{newer}{newer}", f"{newer}W/{newer}")
            for header in (tag, f"W/{newer}", "nonsense", f'{tag}, "other"', *malformed):
                answer = api.request(method, path, json=body, headers={"If-Match": header})
                is_problem(answer, 412, "precondition_failed")
        assert api.get(path).json()["description"] == "1"
        for header in ("{}", f"{tag}, {{}}", "*"):
            matching = {"If-Match": header.format(newer)}
            same = api.patch(path, json={"description": "1"}, headers=matching)
            assert same.status_code == 200
            newer = same.headers["etag"]
        lines = [("If-Match", tag), ("If-Match", newer)]
        assert api.delete(path, headers=lines).status_code == 204
        gone = api.delete(path, headers={"If-Match": "*"})
        assert gone.status_code == 404

    def test_use_does_not_change_the_version(
        self, served: tuple[Engine, str], api: httpx.Client
    ) -> None:
        made = api.post("/keys", json={"name": "n"})
        path = f"/keys/{made.json()['key']['id']}"
        api.post("/keys/validate", json={"raw_key": made.json()["raw_key"]})
        served[0].flush()
        shown = api.get(path)
        assert shown.json()["last_used_at"] is not None
        assert shown.headers["etag"] == made.headers["etag"]
