"""For the tests of a service, and of a store of one's own.

Fixtures, once a `conftest.py` asks for them with `pytest_plugins = ["keysmith.testing.plugin"]`:
`keysmith_store`, `keysmith_clock`, `keysmith_engine`, `keysmith_key` and `keysmith_client`.
`keysmith.testing.contract` has the tests that any implementation of `Store` must pass.
"""

import pytest

from keysmith.testing.callables import IssueKey, KeyedClient
from keysmith.testing.clock import TurnableClock

# Before anybody imports it: only then do its assertions tell what they compared.
pytest.register_assert_rewrite("keysmith.testing.contract")

__all__ = ["IssueKey", "KeyedClient", "TurnableClock"]
