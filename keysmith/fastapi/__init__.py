"""Keysmith in a FastAPI service: who may call, what is answered, and the management routes."""

from keysmith.fastapi.auth import APIKeyAuth
from keysmith.fastapi.authority import Authority, ManagementAuth
from keysmith.fastapi.problems import HTTPProblem, Problem, install_problem_handlers
from keysmith.fastapi.router import management_router

__all__ = [
    "APIKeyAuth",
    "Authority",
    "HTTPProblem",
    "ManagementAuth",
    "Problem",
    "install_problem_handlers",
    "management_router",
]
