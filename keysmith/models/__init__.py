"""The seven tables, which are also the schemas: one name gives table, validation and OpenAPI."""

from keysmith.models.base import configure_mappers, metadata
from keysmith.models.keys import Key, KeyCreate, KeyPublic, KeyState, KeyUpdate
from keysmith.models.policies import Policy, PolicyCreate, PolicyPublic, PolicyUpdate
from keysmith.models.rotations import Rotation, RotationPublic, RotationReason
from keysmith.models.scopes import KeyScope, Scope, ScopeCreate, ScopePublic, ScopeUpdate
from keysmith.models.usages import (
    Period,
    UsageAggregate,
    UsageAggregatePublic,
    UsageCreate,
    UsagePublic,
    UsageRecord,
    UsageSummary,
)
from keysmith.raw_keys import Environment

# Attributes of instances that come from rows can be read only once all mappers are configured.
configure_mappers()

__all__ = [
    "Environment",
    "Key",
    "KeyCreate",
    "KeyPublic",
    "KeyScope",
    "KeyState",
    "KeyUpdate",
    "Period",
    "Policy",
    "PolicyCreate",
    "PolicyPublic",
    "PolicyUpdate",
    "Rotation",
    "RotationPublic",
    "RotationReason",
    "Scope",
    "ScopeCreate",
    "ScopePublic",
    "ScopeUpdate",
    "UsageAggregate",
    "UsageAggregatePublic",
    "UsageCreate",
    "UsagePublic",
    "UsageRecord",
    "UsageSummary",
    "metadata",
]
