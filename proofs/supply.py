"""Where Keysmith comes from, and what comes with it: `make torture ARGS="--only supply"`.

The tools live in an environment of their own, build/supply; so do the bill of materials, sbom.json
(CycloneDX), and what the audit said, audit.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from importlib.metadata import requires, version
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from proofs.environments import environment

PROMISE = (
    "Every package that `make check` needs is installed as it is pinned and listed in a bill of "
    "materials, none has a known vulnerability where those can be asked for, bandit finds nothing, "
    "and whoever builds the wheel gets the same bytes."
)
BROKEN = "a pin was left out; `eval` was called; `reproducible = false` was set for the wheel"

TOOLS = ("bandit==1.9.4", "cyclonedx-bom==7.5.0", "hatchling==1.33.0", "pip-audit==2.10.1")
CONSTRAINTS = Path("constraints.txt")
BUILT_BY_GIT = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")


def trial(quick: bool = False) -> str:
    """Tells how much was looked at. With `quick`, only whether all is pinned."""
    pins = pinned()
    unpinned = needed() - set(pins)
    assert not unpinned, f"not pinned: {', '.join(sorted(unpinned))}"
    others = [name for name in sorted(needed()) if version(name) != pins[name]]
    assert not others, f"installed in another version: {', '.join(others)}"
    if quick:
        return f"{len(pins)} packages pinned"
    tools = environment("supply", *TOOLS)
    listed = list_materials(tools, pins)
    audited = audit(tools, pins)
    looked_at = scan(tools)
    size = build_twice(tools)
    return (
        f"{len(pins)} packages pinned, {listed} in the bill of materials; {audited}; bandit looked "
        f"at {looked_at:,} lines; wheel ({size // 1024} KiB) and source distribution twice the same"
    )


def pinned() -> dict[str, str]:
    """The version of each package in the constraints, which are exact."""
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line.strip()]
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line) for line in lines]
    assert all(pairs), "a line is no exact pin"
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs if pair}


def needed() -> set[str]:
    """The packages that Keysmith needs with all its extras, and all that they need in turn."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    texts = chain(project["dependencies"], *project["optional-dependencies"].values())
    waiting, found = list(map(Requirement, texts)), dict[str, set[str]]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if name == "keysmith" or extras <= found.get(name, set()):
            continue
        found.setdefault(name, set()).update(extras)
        waiting += [
            each
            for each in map(Requirement, requires(name) or ())
            if each.marker is None
            or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return set(found)


def list_materials(tools: Path, pins: dict[str, str]) -> int:
    """Writes the bill of materials; gives how many packages are in it."""
    path = Path("build/supply/sbom.json").absolute()
    _run(
        *(tools / "cyclonedx-py", "requirements", "--pyproject", "pyproject.toml"),
        *("--output-reproducible", "--output-format", "JSON", "--output-file", path, CONSTRAINTS),
    )
    components = json.loads(path.read_text())["components"]
    listed = {canonicalize_name(each["name"]): each["version"] for each in components}
    assert listed == pins, f"not as pinned: {sorted(listed.items() ^ pins.items())}"
    return len(components)


def audit(tools: Path, pins: dict[str, str]) -> str:
    """What the Python advisory database says of the pins, if it can be asked."""
    path = Path("build/supply/audit.json").absolute()
    path.unlink(missing_ok=True)
    options = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json")
    told = _run(tools / "pip-audit", *options, "--output", path, "-r", CONSTRAINTS, may_fail=True)
    if not path.exists():
        reason = told.strip().rpartition("\n")[2].partition(":")[0]
        return f"NOT AUDITED: the source of known vulnerabilities could not be asked ({reason})"
    packages: list[dict[str, Any]] = json.loads(path.read_text())["dependencies"]
    known = [f"{each['name']} {v['id']}" for each in packages for v in each.get("vulns", ())]
    assert not known, f"vulnerable: {', '.join(known)}"
    asked = sum("skip_reason" not in each for each in packages)
    if asked < len(pins):
        return f"NOT AUDITED: of {len(pins) - asked} no known vulnerabilities could be asked for"
    return "no known vulnerability in any of them"


def scan(tools: Path) -> int:
    """How many lines bandit has looked at, which finds nothing in them."""
    told = _run(
        *(tools / "bandit", "-q", "-r", "keysmith", "-c", "pyproject.toml", "-f", "json"),
        may_fail=True,
    )
    report = json.loads(told[told.index("{") :])
    found = [f"{r['filename']}:{r['line_number']} {r['test_id']}" for r in report["results"]]
    assert not found, f"bandit: {', '.join(found)}"
    assert not report["errors"], report["errors"]
    return int(report["metrics"]["_totals"]["loc"])


def build_twice(tools: Path) -> int:
    """Builds in two folders, by two users and at two times; gives the wheel's size."""
    with tempfile.TemporaryDirectory() as name:
        one, two = Path(name) / "one", Path(name) / "somewhere" / "else"
        for folder in (one, two):
            _copy(folder)
        for path in sorted(two.rglob("*")):
            os.utime(path, (1_000_000_000, 1_000_000_000))
            path.chmod(0o700 if path.is_dir() else 0o600)
        first = _built(tools, one, umask=0o022, TZ="UTC", PYTHONHASHSEED="1")
        second = _built(tools, two, umask=0o077, TZ="Asia/Tokyo", PYTHONHASHSEED="2")
        assert first == second, f"built differently: {sorted(first.items() ^ second.items())}"
        [wheel] = (one / "dist").glob("*.whl")
        return wheel.stat().st_size


def _copy(folder: Path) -> None:
    for file in _run(*BUILT_BY_GIT).split("\0"):
        if file and Path(file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file)


def _built(tools: Path, folder: Path, *, umask: int, **variables: str) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    subprocess.run(
        [tools / "hatchling", "build", "-d", folder / "dist"],
        cwd=folder,
        env={**environ, **variables},
        umask=umask,
        check=True,
        capture_output=True,
    )
    built = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "dist").iterdir()
    }
    assert len(built) == 2, built
    return built


def _run(*command: object, may_fail: bool = False) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert may_fail or done.returncode == 0, done.stderr
    return done.stdout + (done.stderr if may_fail and not done.stdout else "")


def main() -> None:
    """Prints the figure."""
    print(trial())


if __name__ == "__main__":
    main()
