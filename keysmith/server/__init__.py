"""The ready-made application behind `keysmith serve`."""

from keysmith.extras import from_extra

with from_extra("server"):
    from keysmith.server.app import create_app
    from keysmith.server.root_key import prepare
    from keysmith.server.run import require_address, run
    from keysmith.server.settings import Settings

__all__ = ["Settings", "create_app", "prepare", "require_address", "run"]
