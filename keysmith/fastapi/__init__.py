"""Keysmith in a FastAPI service: who may call, what is answered, and the management routes."""

from keysmith.extras import from_extra

with from_extra("fastapi"):
    from keysmith.fastapi.auth import APIKeyAuth
    from keysmith.fastapi.authority import Authority, ManagementAuth
    from keysmith.fastapi.clients import ClientAddress
    from keysmith.fastapi.lifespan import keysmith_lifespan
    from keysmith.fastapi.middleware import UsageMiddleware
    from keysmith.fastapi.problems import HTTPProblem, Problem, install_problem_handlers
    from keysmith.fastapi.router import management_router

__all__ = [
    "APIKeyAuth",
    "Authority",
    "ClientAddress",
    "HTTPProblem",
    "ManagementAuth",
    "Problem",
    "UsageMiddleware",
    "install_problem_handlers",
    "keysmith_lifespan",
    "management_router",
]
