"""Peers: other packages doing the same work, each in a process of an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

from benchmarks.cases import WARM
from benchmarks.databases import hashes, plain, scattered
from benchmarks.harness import Comparison, Plan
from benchmarks.workshop import Unavailable, Workshop

NAMES = ("keyshield_cached", "keyshield_uncached", "drf_api_key")

_ROOT = Path(__file__).parent.parent
_PYTHON = _ROOT / "build" / "peers" / "bin" / "python"


def compare_peer(shop: Workshop, name: str, plan: Plan) -> Comparison:
    """The peer of that name, beside the same lookup that our rows stand beside."""
    if not _PYTHON.exists():
        raise Unavailable("the peers are not installed: `make bench` does that")
    request = {
        "peer": name,
        "keys": shop.keys,
        "folder": str(shop.folder),
        "database": str(shop.copy()),
        "hashes": hashes(scattered(plain(shop.keys), WARM)),
        "plan": asdict(plan),
    }
    answer = subprocess.run(
        [_PYTHON, "-m", "benchmarks.peer_work"],
        input=json.dumps(request),
        cwd=_ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise Unavailable(f"the peer failed: {answer.stderr.strip().splitlines()[-1]}")
    return Comparison.from_json(json.loads(answer.stdout))
