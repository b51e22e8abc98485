"""The types of the fixtures that are functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keysmith.engine import CreatedKey

IssueKey = Callable[..., CreatedKey]
"""What `keysmith_key` is: takes the fields of `KeyCreate`, and issues a key."""

KeyedClient = Callable[..., Any]
"""What `keysmith_client` is: takes an application, and gives a `TestClient` that has a key."""
