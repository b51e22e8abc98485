"""What every store must do: tests to run over one of your own.

In a test module of yours, with a fixture `store` that gives a new, migrated store:

from keysmith.testing.contract import *
"""

from keysmith.testing.contract.credentials import TestCounters, TestCredentials
from keysmith.testing.contract.keys import TestKeys
from keysmith.testing.contract.policies import TestPolicies
from keysmith.testing.contract.rotations import TestRotations
from keysmith.testing.contract.scopes import TestScopes
from keysmith.testing.contract.transactions import TestTransactions
from keysmith.testing.contract.usages import TestUsages

__all__ = [
    "TestCounters",
    "TestCredentials",
    "TestKeys",
    "TestPolicies",
    "TestRotations",
    "TestScopes",
    "TestTransactions",
    "TestUsages",
]
