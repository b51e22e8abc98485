"""The life of a key in a dozen lines. Run it: `python examples/quickstart.py`."""

from datetime import timedelta

from keysmith import Engine, KeyCreate, KeyRevokedError, SqliteStore

with Engine(SqliteStore("quickstart.db")) as engine:
    engine.store.migrate()
    engine.ensure_scopes(["users:read"])
    created = engine.create_key(KeyCreate(name="Production", scopes=["users:read"]))
    print("Hand this to the customer:", created.raw_key)
    print("It is good for:", *engine.validate_key(created.raw_key, scopes=["users:read"]).scopes)
    rotated = engine.rotate_key(created.key.id, grace=timedelta(hours=1))
    print("The old secret still works:", engine.validate_key(created.raw_key).rotated)
    engine.revoke_key(created.key.id)
    try:
        engine.validate_key(rotated.raw_key)
    except KeyRevokedError as error:
        print("Revoked:", error)
