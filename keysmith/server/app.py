"""The application: the management routes, and how it is doing."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from keysmith.engine import Engine
from keysmith.fastapi import (
    ManagementAuth,
    install_problem_handlers,
    keysmith_lifespan,
    management_router,
)
from keysmith.plugins import AuditLog, Metrics
from keysmith.server.operations import health_router, metrics_router
from keysmith.server.settings import Settings
from keysmith.stores import open_store


def create_app(engine: Engine, settings: Settings, metrics: Metrics | None = None) -> FastAPI:
    """The application for an engine, which it closes when it ends."""
    app = FastAPI(
        title="Keysmith",
        version=version("keysmith"),
        description="Issue, validate, rotate, revoke and limit API keys.",
        lifespan=keysmith_lifespan(engine),
    )
    install_problem_handlers(app)
    authorize = ManagementAuth(engine, trusted_proxies=settings.trusted_proxies)
    app.include_router(management_router(engine, authorize=authorize))
    app.include_router(health_router(engine))
    if metrics is not None:
        metrics.watch(engine)
        app.include_router(
            metrics_router(metrics, None if settings.metrics == "open" else authorize)
        )
    return app


def from_environment() -> FastAPI:
    """The application that the environment describes: one a process."""
    settings = Settings()
    metrics = None if settings.metrics == "off" else Metrics()
    audit_log = None if settings.audit_log is None else AuditLog(settings.audit_log)
    engine = Engine(
        open_store(settings.database_url),
        plugins=[plugin for plugin in (metrics, audit_log) if plugin is not None],
        rate_limiter=settings.rate_limiter_url,
    )
    return create_app(engine, settings, metrics)
