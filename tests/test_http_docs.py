"""docs/http.md and the OpenAPI document tell the same as the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Security
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security import HTTPBasic
from fastapi.testclient import TestClient
from pydantic import BaseModel
from typer.main import get_command

import keysmith.fastapi
from keysmith import (
    Engine,
    KeyCreate,
    KeyUpdate,
    PolicyCreate,
    PolicyUpdate,
    ScopeCreate,
    ScopeUpdate,
    SqliteStore,
)
from keysmith.cli.app import app as commands
from keysmith.fastapi import APIKeyAuth, install_problem_handlers, management_router
from keysmith.fastapi.authority import SCOPES, Requires
from keysmith.models.base import Update
from keysmith.plugins import Metrics
from keysmith.server import Settings, create_app

ROOT = Path(__file__).parent.parent
HTTP_MD = (ROOT / "docs" / "http.md").read_text()
README = (ROOT / "README.md").read_text()
TABLE = {
    (method, path): scope.strip("`")
    for method, path, scope in re.findall(
        r"^\| `([A-Z]+) (/\S+)` \| (`[a-z:]+`|open) \|", HTTP_MD, re.MULTILINE
    )
}
EITHER_HEADER = [{"Keysmith": []}, {"KeysmithHeader": []}]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    engine = Engine(SqliteStore(tmp_path_factory.mktemp("docs") / "keys.db"))
    return create_app(engine, Settings(), Metrics())


@pytest.fixture(scope="module")
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield (method.upper(), path), operation


def test_every_route_is_in_the_table_and_none_else(document: dict[str, Any]) -> None:
    assert {route for route, _ in operations(document)} == set(TABLE)


def test_every_route_of_the_readme_exists(document: dict[str, Any]) -> None:
    for path in re.findall(r"\$API(/\S+?)\"", README):
        template = "/v1" + path.replace("$KEY_ID", "{key_id}")
        assert template in document["paths"], path


def test_every_route_asks_for_the_scope_that_the_table_has(app: FastAPI) -> None:
    found = {}
    for context in iter_route_contexts(app.routes):
        route = context.original_route if hasattr(context, "original_route") else context
        if isinstance(route, APIRoute):
            scopes = [
                dependency.call.scope
                for dependency in context.dependant.dependencies
                if isinstance(dependency.call, Requires)
            ]
            for method in context.methods:
                found[method, context.path_format] = scopes
    for (method, path), scope in TABLE.items():
        if path.startswith("/v1/"):
            assert found[method, path] == [scope], (method, path)
    assert set(TABLE.values()) - {"open"} <= set(SCOPES)


def test_everything_that_is_public_is_documented() -> None:
    for name in keysmith.fastapi.__all__:
        assert (getattr(keysmith.fastapi, name).__doc__ or "").strip(), name
    for (_, path), scope in TABLE.items():
        assert (scope == "open") == (path in {"/healthz", "/readyz"})


def test_the_document_serves_for_a_client(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z_]+", each) for each in ids)
    for (method, path), operation in operations(document):
        where = f"{method} {path}"
        assert operation["tags"], where
        assert operation["description"].endswith("."), where
        open_to_all = TABLE[method, path] == "open"
        assert operation.get("security", []) == ([] if open_to_all else EITHER_HEADER), where
        answers = operation["responses"]
        assert ("401" in answers) != open_to_all, where
        for status, answer in answers.items():
            if status in {"200", "201"}:
                assert answer["content"], where
            elif status != "204":
                problem = answer["content"]["application/problem+json"]
                assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}, where
    schemas = document["components"]["schemas"]
    assert "metadata" in schemas["KeyPublic"]["properties"]
    assert "metadata" in schemas["KeyCreate"]["properties"]
    assert not [name for name in schemas if "hash" in str(schemas[name].get("properties", {}))]


def test_the_document_describes_the_fields(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for schema, name, text in (
        ("PolicyCreate", "burst_limit", "Requests in any one second."),
        ("PolicyPublic", "tenant_id", "Whose it is. Nothing of one tenant is visible to another."),
        ("KeyCreate", "expires_at", "From this moment on the key is expired; `null` for never."),
        ("KeyPublic", "environment", "What the key is for; the second part of the raw key."),
        ("ScopeCreate", "parent", "The name of the scope that this one lies below: "),
    ):
        assert schemas[schema]["properties"][name]["description"].startswith(text)
    assert "description" not in schemas["KeyCreate"]["properties"]["metadata"]


def test_a_service_tells_of_both_headers_and_of_its_own(memory: SqliteStore) -> None:
    auth = APIKeyAuth(Engine(memory))
    host = HTTPBasic(scheme_name="Host")
    app = FastAPI()
    install_problem_handlers(app)
    assert "components" not in app.openapi()
    app.openapi_schema = None

    @app.get("/scoped", dependencies=[Security(auth, scopes=["read"]), Depends(host)])
    def scoped() -> None: ...

    @app.get("/open")
    def opened() -> None: ...

    document = app.openapi()
    assert document["paths"]["/scoped"]["get"]["security"] == [
        {"Keysmith": ["read"]},
        {"KeysmithHeader": ["read"]},
        {"Host": []},
    ]
    assert "security" not in document["paths"]["/open"]["get"]
    schemes = document["components"]["securitySchemes"]
    assert schemes["Keysmith"]["scheme"] == "bearer"
    assert (schemes["KeysmithHeader"]["in"], schemes["KeysmithHeader"]["name"]) == (
        "header",
        "X-API-Key",
    )
    assert app.openapi() == document, "however often it is asked for"


def test_without_metrics_there_is_no_such_route(tmp_path: Path) -> None:
    with Engine(SqliteStore(tmp_path / "keys.db")) as engine:
        assert "/metrics" not in create_app(engine, Settings()).openapi()["paths"]
        own = FastAPI()
        own.include_router(management_router(engine, prefix="/api-keys"))
        paths = own.openapi()["paths"]
    assert all(path.startswith("/api-keys/") for path in paths)


def test_the_table_of_settings_is_the_settings() -> None:
    section = HTTP_MD[HTTP_MD.index("## Configuring") :]
    rows = re.findall(r"^\| `KEYSMITH_(\w+)` \| `--([a-z-]+)`", section, re.MULTILINE)
    assert [variable.lower() for variable, _ in rows] == list(Settings.model_fields)
    serve = get_command(commands).commands["serve"]  # type: ignore[attr-defined]
    flags = {flag for parameter in serve.params for flag in parameter.opts} - {"--help"}
    assert {f"--{flag}" for _, flag in rows} == flags


@pytest.mark.parametrize(
    ("heading", "create", "update"),
    [
        ("A key", KeyCreate, KeyUpdate),
        ("A policy", PolicyCreate, PolicyUpdate),
        ("A scope", ScopeCreate, ScopeUpdate),
    ],
)
def test_the_fields_of_bodies_are_those_of_the_models(
    heading: str, create: type[BaseModel], update: type[Update]
) -> None:
    section = (
        HTTP_MD.partition("## Bodies")[2].partition(f"**{heading}**")[2].partition("\n\n**")[0]
    )
    rows = re.findall(r"^\| (`.+?) \| (.*?)\|", section.partition("\n## ")[0], re.MULTILINE)
    patched = {
        name.replace("metadata", "meta"): patch.strip()
        for names, patch in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert set(patched) == set(create.model_fields)
    assert {name for name, patch in patched.items() if patch} == set(update.model_fields)
    assert {name for name, patch in patched.items() if "null" in patch} == update.clearable


def test_the_snippet_of_an_authority_of_ones_own(memory: SqliteStore) -> None:
    [snippet] = re.findall(r"^```python\n(.*?)^```", HTTP_MD, re.MULTILINE | re.DOTALL)

    class User(BaseModel):
        tenant: str = "acme"
        id: str = "ann"

    names = {"User": User, "current_user": User, "engine": Engine(memory), "app": FastAPI()}
    exec(compile(snippet, "snippet", "exec"), names)
    created = TestClient(names["app"]).post("/api-keys/keys", json={"name": "n"})
    assert created.json()["key"]["tenant_id"] == "acme"


def test_the_commands_that_make_a_root_key() -> None:
    commands = re.findall(r"^  keysmith (.+)$", HTTP_MD, re.MULTILINE)
    assert all(f"`keysmith {command}`" in README for command in commands)
    assert len(commands) == 2


def test_the_codes_of_the_table_are_those_of_the_code() -> None:
    section = HTTP_MD[HTTP_MD.index("## Problems") : HTTP_MD.index("## Configuring")]
    documented = set(re.findall(r"^\| \d+ \| `(\w+)` \|", section, re.MULTILINE))
    source = "".join(path.read_text() for path in (ROOT / "keysmith" / "fastapi").glob("*.py"))
    raised = set(re.findall(r'(?:HTTPProblem|_refuse)\(\s*(?:\d+,\s*)?"(\w+)"', source))
    assert documented == raised
