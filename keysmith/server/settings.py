"""How the server is configured: by `KEYSMITH_…` in the environment, or by flags, which win."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from keysmith.engine.shared_limits import LimitsRateLimiter
from keysmith.errors import StoreUnavailableError
from keysmith.models.policies import Network
from keysmith.stores import DEFAULT_DATABASE_URL

PREFIX = "KEYSMITH_"


class Settings(BaseSettings):
    """The settings of a server. Each is a variable, such as `KEYSMITH_PORT` for `port`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    database_url: str = Field(default=DEFAULT_DATABASE_URL, repr=False)
    """Where the keys are: `sqlite:///relative.db` or `sqlite:////absolute.db`."""
    rate_limiter_url: str | None = Field(default=None, repr=False)
    """Where limits are counted with other machines: `redis://…`; else beside the database."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port to listen on; 0 for any that is free."""
    workers: int = Field(default=1, ge=1, le=256)
    """How many processes serve."""
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = ()
    """Proxies, as addresses and networks, whose word on a client's address counts."""
    metrics: Literal["root", "open", "off"] = "root"
    """Who may read `/metrics`: with the scope `keysmith:metrics:read`, anybody, or nobody."""
    audit_log: str | None = None
    """The file to which is appended what is done, a JSON object a line; see `AuditLog`."""
    log_format: Literal["text", "json"] = "text"
    """Lines for people, or a JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged at least; requests are at `info`."""
    shutdown_timeout: int = Field(default=30, ge=0)
    """Seconds that requests under way are waited for when the server is stopped."""

    @field_validator("database_url")
    @classmethod
    def _names_a_file(cls, url: str) -> str:
        if url.removeprefix("sqlite:").strip("/") in {"", ":memory:"}:
            raise ValueError("must name a file: a database in memory would be another each time")
        return url

    @field_validator("rate_limiter_url")
    @classmethod
    def _counts_for_all(cls, url: str | None) -> str | None:
        if not url:
            return None
        if url.partition(":")[0] == "memory":
            raise ValueError("must be shared: in memory, each process would count by itself")
        try:
            LimitsRateLimiter(url)
        except StoreUnavailableError as error:
            raise ValueError(str(error)) from None
        return url

    @field_validator("audit_log")
    @classmethod
    def _names_something(cls, path: str | None) -> str | None:
        return path or None

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [each.strip() for each in value.split(",") if each.strip()]
        return value

    def environment(self) -> dict[str, str]:
        """The variables that give these settings to the processes that serve."""
        values = self.model_dump(mode="json")
        for name in ("rate_limiter_url", "audit_log"):
            values[name] = values[name] or ""
        values["trusted_proxies"] = ",".join(self.trusted_proxies)
        return {
            f"{PREFIX}{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
