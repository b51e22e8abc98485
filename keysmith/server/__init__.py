"""The ready-made application behind `keysmith serve`."""

from keysmith.server.app import create_app
from keysmith.server.root_key import prepare
from keysmith.server.run import run

__all__ = ["create_app", "prepare", "run"]
