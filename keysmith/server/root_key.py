"""The first key: who may make others."""

from __future__ import annotations

from keysmith.engine import Engine
from keysmith.fastapi.authority import ROOT, SCOPES
from keysmith.models import KeyCreate


def prepare(engine: Engine) -> str | None:
    """Makes a root key if there is none, and gives its raw key; else `None`.

    Any key in the tenant `keysmith` counts, whatever its state: who revokes the last root key
    wants none, and can make another with `keysmith keys create`. Who deletes it begins anew.
    """
    with engine.store.transaction():
        if engine.count_keys(tenant_id=ROOT):
            return None
        engine.ensure_scopes(SCOPES, tenant_id=ROOT)
        root = KeyCreate(name="root", tenant_id=ROOT, scopes=[ROOT], created_by="keysmith serve")
        return engine.create_key(root).raw_key
