"""`make contract`: a running server against its own OpenAPI document.

Schemathesis sends it what the document allows, and what it does not. A client generated from the
document creates, validates and rotates a key. Both tools live in an environment of their own, next
to which everything is made: the first argument names it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from keysmith import Engine, KeyCreate, SqliteStore
from keysmith.fastapi.authority import SCOPES
from tests.test_server import keysmith_serve

CONFIG = """
[generation]
with-security-parameters = false  # the key that is given is the only one: two are refused

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "412"]

# No document tells every rule of a body: that an expiry lies in the future, what is a network or an
# origin, that the same Idempotency-Key means the same request.
[[operations]]
include-method = ["POST", "PUT", "PATCH"]
[operations.checks.positive_data_acceptance]
enabled = false
"""

EXAMPLES = 100
"""Requests that are made up for each operation, if the second argument does not say."""

CLIENT = """
import sys
from keysmith_client import AuthenticatedClient
from keysmith_client.api.keys import create_key, list_keys, rotate_key, validate_key
from keysmith_client.models import KeyCreate, Problem, RotateRequest, ValidateRequest

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.stdin.read())
created = create_key.sync(client=client, body=KeyCreate(name="generated", tenant_id="acme"))
asked = ValidateRequest(raw_key=created.raw_key)
assert validate_key.sync(client=client, body=asked).key.id == created.key.id
rotated = rotate_key.sync(created.key.id, client=client, body=RotateRequest(grace="PT10M"))
assert validate_key.sync(client=client, body=asked).rotated
again = ValidateRequest(raw_key=rotated.raw_key)
assert not validate_key.sync(client=client, body=again).rotated
assert created.key.id in [key.id for key in list_keys.sync(client=client).items]
refused = validate_key.sync(client=client, body=ValidateRequest(raw_key="wrong"))
assert isinstance(refused, Problem) and refused.code == "invalid_key", refused
print("The generated client created, validated and rotated a key.")
"""


def main(folder: Path, tools: Path, examples: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with keysmith_serve(folder) as served:
        url = served.url()
        with Engine(SqliteStore(folder / "served.db")) as engine:
            # Not the root key: it would sooner or later be told to delete itself.
            operator = KeyCreate(name="operator", tenant_id="keysmith", scopes=list(SCOPES[2:]))
            raw_key = engine.create_key(operator).raw_key
        run_client(folder, tools, url, raw_key)
        (folder / "schemathesis.toml").write_text(CONFIG)
        subprocess.run(
            [
                *(tools / "schemathesis", "run", f"{url}/openapi.json"),
                *("--header", f"Authorization: Bearer {raw_key}"),
                *("--max-examples", str(examples), "--seed", "1"),
                *("--suppress-health-check", "all"),
            ],
            cwd=folder,
            check=True,
        )


def run_client(folder: Path, tools: Path, url: str, raw_key: str) -> None:
    (folder / "config.yaml").write_text("package_name_override: keysmith_client\n")
    subprocess.run(
        [
            *(tools / "openapi-python-client", "generate", "--url", f"{url}/openapi.json"),
            *("--meta", "none", "--config", "config.yaml", "--output-path", "keysmith_client"),
        ],
        cwd=folder,
        check=True,
    )
    subprocess.run(
        [tools / "python", "-c", CLIENT, url], cwd=folder, input=raw_key, text=True, check=True
    )


if __name__ == "__main__":
    environment = Path(sys.argv[1]).resolve()
    wanted = int(sys.argv[2]) if len(sys.argv) > 2 else EXAMPLES
    main(environment.parent / "contract-run", environment / "bin", wanted)
