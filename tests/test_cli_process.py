"""The `keysmith` command as a process: exit codes, pipes, terminals, and a whole life of a key."""

from __future__ import annotations

import array
import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Template

KEYSMITH = str(Path(sys.executable).parent / "keysmith")


def environment(**variables: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"KEYSMITH_DATABASE_URL", "FORCE_COLOR", "NO_COLOR", "COLUMNS"}
    }
    return {**kept, "TERM": "xterm-256color", **variables}


def keysmith(
    *arguments: str,
    folder: Path,
    command: tuple[str, ...] = (KEYSMITH,),
    input: str = "",
    variables: dict[str, str] | None = None,
    **streams: Any,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=environment(**(variables or {})),
        text=True,
        check=False,
        **{"input": input, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


@pytest.fixture
def folder(database: Path) -> Path:
    """A folder with a filled database under the name that the command looks for by itself."""
    database.rename(database.parent / "keysmith.db")
    return database.parent


@pytest.mark.slow
def test_the_life_of_a_key(tmp_path: Path) -> None:
    def step(line: str, input: str = "", exit_code: int = 0) -> Any:
        result = keysmith(*line.split(), "--json", folder=tmp_path, input=input)
        assert result.returncode == exit_code, result.stderr
        assert bool(result.stdout) != bool(result.stderr)
        return json.loads(result.stdout or result.stderr)

    step("migrate")
    assert (tmp_path / "keysmith.db").exists(), "the database of the folder, by default"
    created = step("keys create Production")
    key_id, first = created["key"]["id"], created["raw_key"]
    second = step(f"keys rotate {key_id} --grace 1h")["raw_key"]
    assert step("keys validate", first)["rotated"]
    step(f"keys revoke {key_id}")
    assert step("keys validate", second, 1)["error"]["code"] == "key_revoked"


@pytest.mark.slow
def test_as_a_module_and_with_a_database_of_the_environment(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = keysmith(
        *("keys", "list", "--json"),
        folder=elsewhere,
        command=(sys.executable, "-m", "keysmith"),
        variables={"KEYSMITH_DATABASE_URL": f"sqlite:///{folder / 'keysmith.db'}"},
    )
    assert len(json.loads(result.stdout)) == 3
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_an_extra_that_is_missing(tmp_path: Path) -> None:
    script = "import sys; sys.modules['rich'] = None; from keysmith.cli import main; main()"
    result = keysmith("migrate", folder=tmp_path, command=(sys.executable, "-c", script))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "rich comes with the extra `cli`: install Keysmith with it.\n"


# ---------------------------------------------------------------------------- streams


@pytest.mark.slow
def test_a_reader_that_has_gone(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = keysmith("keys", "list", folder=folder, stdout=writer)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_output_that_cannot_be_written(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        result = keysmith("keys", "list", folder=folder, stdout=full)
    assert result.returncode == 1
    assert result.stderr == "Error: The output: No space left on device.\n"


@pytest.mark.slow
def test_without_streams(folder: Path) -> None:
    script = f"exec {KEYSMITH} keys list >&- 2>&-"
    assert keysmith(folder=folder, command=("sh", "-c", script)).returncode == 0


@pytest.mark.slow
def test_text_that_the_encoding_cannot_express(folder: Path) -> None:
    created = keysmith(
        *("keys", "create", "ключ"), folder=folder, variables={"PYTHONIOENCODING": "ascii"}
    )
    assert created.returncode == 0
    assert re.search(r"^Name +\\u043a\\u043b\\u044e\\u0447$", created.stdout, re.MULTILINE)
    assert re.search(r"^sk_live_\w{49}$", created.stdout, re.MULTILINE)


@pytest.mark.slow
def test_piped_output_has_no_colour_whatever_the_environment(folder: Path) -> None:
    result = keysmith("keys", "create", "n", folder=folder, variables={"FORCE_COLOR": "1"})
    assert re.search(r"^sk_live_\w{49}$", result.stdout, re.MULTILINE)
    assert "\x1b" not in result.stdout + result.stderr


# ---------------------------------------------------------------------------- terminals


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # whatever the tests' own parent ignores


def _sit_at_the_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C interrupts the process
    _heed_interrupts()


def interrupted(process: subprocess.Popen[bytes], interrupt: Callable[[], None]) -> None:
    """Interrupts until it is heard: what comes just before a read is noticed only after it."""
    time.sleep(0.3)  # by then it reads, as a rule
    while process.poll() is None:
        interrupt()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)


class Terminal:
    """A process whose terminal this is. What it writes to standard output may go elsewhere."""

    def __init__(self, *arguments: str, folder: Path, piped: bool, **variables: str) -> None:
        self._master, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [KEYSMITH, *arguments],
            cwd=folder,
            env=environment(**variables),
            stdin=terminal,
            stdout=subprocess.PIPE if piped else terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=_sit_at_the_terminal,  # noqa: PLW1509  there are no other threads
        )
        os.close(terminal)
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.shown = ""

    def read_until(self, text: str) -> None:
        while text not in self.shown:
            self.shown += self._read()

    def _read(self) -> str:
        ready, _, _ = select.select([self._master], [], [], 60)
        assert ready, f"nothing more came after {self.shown!r}"
        return self._decode(os.read(self._master, 4096))  # which may end within a character

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        interrupted(self.process, lambda: self.type("\x03"))

    def end(self) -> tuple[int, str]:
        """The exit code, and what came out of the pipe."""
        with suppress(OSError):  # a terminal that nobody has open any more gives EIO
            while True:
                self.shown += self._read()
        piped, _ = self.process.communicate(timeout=30)
        os.close(self._master)
        return self.process.returncode, (piped or b"").decode()


@pytest.fixture
def terminal(folder: Path) -> Iterator[Any]:
    opened = []

    def start(line: str, *, piped: bool = False, **variables: str) -> Terminal:
        opened.append(Terminal(*line.split(), folder=folder, piped=piped, **variables))
        return opened[-1]

    yield start
    for each in opened:
        if each.process.poll() is None:
            each.process.kill()


@pytest.mark.slow
def test_a_raw_key_is_prompted_for_and_not_shown(terminal: Any, template: Template) -> None:
    session = terminal("keys validate --json", piped=True)
    session.read_until("Raw key: ")
    session.type(template.raw_keys["main"] + "\n")
    code, piped = session.end()
    assert code == 0
    assert json.loads(piped)["key"]["name"] == "main"
    assert template.raw_keys["main"] not in session.shown + piped


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "code"), [("maybe\ny\n", 0), ("\x04", 1), (None, 130)])
def test_deleting_is_confirmed(
    terminal: Any, template: Template, folder: Path, typed: str | None, code: int
) -> None:
    session = terminal(f"keys delete {template.ids['main']} --json", piped=True)
    session.read_until("for good? [y/N]: ")
    session.interrupt() if typed is None else session.type(typed)
    exit_code, piped = session.end()
    assert exit_code == code
    assert "Traceback" not in session.shown
    assert (json.loads(piped) == {"deleted": template.ids["main"]}) if code == 0 else not piped


@pytest.mark.slow
def test_an_interrupt_while_working(folder: Path) -> None:
    process = subprocess.Popen(
        [KEYSMITH, "keys", "validate"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509  there are no other threads
    )
    assert process.stdin is not None
    process.stdin.write(b"half a key")
    process.stdin.flush()
    unread = array.array("i", [1])
    while unread[0]:  # until it waits for the rest
        assert process.poll() is None
        fcntl.ioctl(process.stdin, termios.FIONREAD, unread)
    interrupted(process, lambda: process.send_signal(signal.SIGINT))
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told) == (130, b"")


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal(terminal: Any, folder: Path) -> None:
    session = terminal("backup copy.db --json", piped=True)
    code, piped = session.end()
    assert code == 0
    assert "Copying" in session.shown
    assert json.loads(piped) == {"path": "copy.db", "bytes": (folder / "copy.db").stat().st_size}


@pytest.mark.slow
def test_colour_is_for_terminals(terminal: Any) -> None:
    session = terminal("keys create n", COLUMNS="30")
    assert session.end()[0] == 0
    assert re.search(r"\x1b\[1;32msk_live_\w{49}\x1b\[0m\r\n", session.shown), "in one line"
    session = terminal("keys list --state asleep")
    assert session.end()[0] == 2
    assert "\x1b[31mError: " in session.shown
