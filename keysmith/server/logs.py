"""Logs: lines for people or JSON for programs, and no secret in either."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any

from uvicorn.logging import AccessFormatter, DefaultFormatter

from keysmith.raw_keys import PREFIX_PATTERN, Environment, mask
from keysmith.server.settings import Settings

_RAW_KEY = re.compile(rf"{PREFIX_PATTERN}_(?:{'|'.join(Environment)})_[0-9A-Za-z]{{20,}}")

_LONG_SEGMENT = re.compile(r"[^/]{40,}")
"""Longer than any ID: in a path, that may be a key in whatever format."""

_ACCESS_FIELDS = ("client", "method", "path", "http_version", "status")
"""What uvicorn says of a request, in this order."""


def without_keys(text: str) -> str:
    """The text, with the raw keys in it masked."""
    return _RAW_KEY.sub(lambda found: mask(found[0]), text)


def without_query(path: str) -> str:
    """The path of a request as a log may show it: a key may be in its query, or in its place."""
    return without_keys(_LONG_SEGMENT.sub("…", path.partition("?")[0]))


class TextFormatter(DefaultFormatter):
    """uvicorn's, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without raw keys, also in tracebacks."""
        return without_keys(super().format(record))


class TextAccessFormatter(AccessFormatter):
    """uvicorn's, for people, without what may be secret of a request."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's own name
        """The line for a request."""
        fields = _access(record)
        record.args = tuple(fields.values())
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """A JSON object a line: `time`, `level`, `logger`, `message`, and more of requests."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without raw keys."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if record.name == "uvicorn.access":
            document.update(_access(record), message="request")
        else:
            document["message"] = record.getMessage()
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return without_keys(json.dumps(document, default=str, ensure_ascii=False))


def _access(record: logging.LogRecord) -> dict[str, Any]:
    values = record.args if isinstance(record.args, tuple) else ()
    fields: dict[str, Any] = dict(zip(_ACCESS_FIELDS, values, strict=True))
    fields["path"] = without_query(str(fields["path"]))
    return fields


def log_config(settings: Settings) -> dict[str, Any]:
    """The configuration of Python's logging, as `logging.config.dictConfig` takes it.

    All goes to standard error: standard output is for the root key alone.
    """
    module, level = __name__, settings.log_level.upper()
    as_json = {"()": f"{module}.JsonFormatter"}
    text = {"()": f"{module}.TextFormatter", "fmt": "%(levelprefix)s %(message)s"}
    access = {
        "()": f"{module}.TextAccessFormatter",
        "fmt": '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s',
    }
    in_json = settings.log_format == "json"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "default": as_json if in_json else text,
            "access": as_json if in_json else access,
        },
        "handlers": {
            name: {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": name,
            }
            for name in ("default", "access")
        },
        "loggers": {
            "uvicorn.access": {"handlers": ["access"], "level": level, "propagate": False},
        },
        "root": {"handlers": ["default"], "level": level},
    }
