"""The test kit, as the tests of a service use it."""

import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import FastAPI, Security

from keysmith import Engine, KeyExpiredError, ValidationResult
from keysmith.fastapi import APIKeyAuth, install_problem_handlers
from keysmith.testing import IssueKey, KeyedClient, TurnableClock, plugin
from keysmith.testing.clock import START


def service(engine: Engine) -> FastAPI:
    app = FastAPI()
    install_problem_handlers(app)
    auth = APIKeyAuth(engine)

    @app.get("/users")
    def users(key: Annotated[ValidationResult, Security(auth, scopes=["users:read"])]) -> str:
        return key.key.tenant_id

    return app


def test_a_client_holds_a_key_with_the_scopes_it_is_given(
    keysmith_engine: Engine, keysmith_client: KeyedClient
) -> None:
    app = service(keysmith_engine)
    answer = keysmith_client(app, scopes=["users:read"], tenant_id="acme").get("/users")
    assert (answer.status_code, answer.json()) == (200, "acme")
    assert keysmith_client(app).get("/users").status_code == 403


def test_a_client_takes_an_extra(
    keysmith_client: KeyedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette.testclient", None)
    with pytest.raises(ModuleNotFoundError, match="the extra `fastapi`"):
        keysmith_client(None)


def test_time_is_turned(
    keysmith_engine: Engine, keysmith_clock: TurnableClock, keysmith_key: IssueKey
) -> None:
    created = keysmith_key(expires_at=START + timedelta(hours=1))
    keysmith_engine.validate_key(created.raw_key)
    assert keysmith_clock.turn(hours=1) == START + timedelta(hours=1)
    with pytest.raises(KeyExpiredError):
        keysmith_engine.validate_key(created.raw_key)


LEAVES = """

def test_leaving(keysmith_engine, keysmith_client):
    with keysmith_client(make_app(keysmith_engine), scopes=["users:read"]) as client:
        assert client.get("/users").json() == "default"
        assert keysmith_engine.count_keys() == 1
    with pytest.raises(StoreUnavailableError):
        keysmith_engine.count_keys()
"""


def test_what_is_documented(pytester: pytest.Pytester) -> None:
    document = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    conftest, service, test = blocks
    pytester.makeconftest(conftest)
    imports = "import pytest\nfrom keysmith import StoreUnavailableError\n"
    pytester.makepyfile(service=service, test_service=imports + test + LEAVES)
    ran = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    assert ran.parseoutcomes() == {"passed": 2}, ran.stdout.str()
    documented = re.findall(r"^\| `(keysmith_\w+)", document, re.MULTILINE)
    assert documented == [name for name in vars(plugin) if name.startswith("keysmith_")]


CONFTEST = """
import pytest
from keysmith import SqliteStore

pytest_plugins = ["keysmith.testing.plugin"]

@pytest.fixture
def store(tmp_path):
    with SqliteStore(tmp_path / "own.db") as store:
        store.migrate()
        yield store
"""


def test_the_contract_runs_over_a_store_of_ones_own(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        test_own_store="from keysmith.testing.contract import *",
        test_service="def test_it(keysmith_engine): assert keysmith_engine.count_keys() == 0",
    )
    ran = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-k", "it or Counters")
    assert ran.ret == 0, ran.stdout.str()
    assert ran.parseoutcomes()["passed"] > 5
