"""Plugins that ship: an audit trail, metrics, webhooks; and a base for one of your own."""

from keysmith.plugins.audit import AuditLog
from keysmith.plugins.events import Event, EventPlugin
from keysmith.plugins.metrics import Metrics
from keysmith.plugins.webhooks import Webhooks

__all__ = ["AuditLog", "Event", "EventPlugin", "Metrics", "Webhooks"]
