"""Programs that try to get out of the sandbox: each limit holds by itself, and nothing outside is touched."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from florana.sandbox import Limits, Outcome, SandboxError, protection
from florana.sandbox.server import Server
from sandbox_attempts import ATTEMPTS, MODES, Targets, table

ROOT = Path(__file__).parent.parent
MEGABYTE = 1 << 20
SMALL = Limits(
    cpu_seconds=2, wall_seconds=10, memory_bytes=256 * MEGABYTE, output_bytes=100_000, tasks=8
)


@pytest.fixture(scope="module")
def missing() -> dict[str, str]:
    """Mechanisms that this system does not have -> why."""
    try:
        return dict(protection().missing)
    except SandboxError as error:
        pytest.skip(str(error))


def need(missing: dict[str, str], mode: str) -> None:
    """Skip a mode that this system cannot show, with the reason."""
    needed = {
        "all": ("namespaces", "user namespace", "seccomp", "landlock"),
        "namespaces alone": ("namespaces", "user namespace"),
        "without namespaces": ("seccomp", "landlock"),
    }
    for name in needed[mode]:
        if name in missing:
            pytest.skip(f"no {name} here: {missing[name]}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    made = Path(tempfile.mkdtemp(prefix="attempts-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Which mechanisms are at work."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(mode: str, missing: dict[str, str]) -> Iterator[Server]:
    """One server that has to outlive all attempts."""
    need(missing, mode)
    with Server(MODES[mode]) as made:
        made.protection.check()
        yield made


def processes(server: Server) -> list[int]:
    """Those of a server: its forks share its command line, which names its folder."""
    mark = os.fsencode(server._folder)
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark in words:
                found.append(int(entry.name))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """The targets, and what was seen of them."""

    targets: Targets
    listening: tuple[socket.socket, ...]
    victim: subprocess.Popen[bytes]

    def unhurt(self) -> None:
        """Nothing arrived, nothing was changed, and the victim lives."""
        for one in self.listening:
            one.settimeout(0)
            with pytest.raises(BlockingIOError):
                one.accept() if one.type == socket.SOCK_STREAM else one.recv(1)
        secret = Path(self.targets.secret)
        assert secret.read_text() == self.targets.word
        assert secret.stat().st_mode & 0o777 == 0o666
        assert not Path(self.targets.outside).exists()
        assert self.victim.poll() is None
        limits = Path(f"/proc/{self.victim.pid}/limits").read_text()
        assert re.search(r"Max open files +1 ", limits) is None


@pytest.fixture
def aim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aim]:
    """Targets on this machine: files, sockets and a process of the test's own."""
    word = "the secret of the parent"
    monkeypatch.setenv("FLORANA_SECRET", word)
    secret = folder / "secret"
    secret.write_text(word)
    secret.chmod(0o666)
    stream = socket.create_server(("127.0.0.1", 0))
    port = stream.getsockname()[1]
    message = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    message.bind(("127.0.0.1", port))
    paths = [str(folder / "stream"), str(folder / "datagram"), f"\0florana-{os.getpid()}-{port}"]
    kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM]
    unix = [socket.socket(socket.AF_UNIX, kind) for kind in kinds]
    for one, path in zip(unix, paths, strict=True):
        one.bind(path)
        if not path.startswith("\0"):
            Path(path).chmod(0o666)
        if one.type == socket.SOCK_STREAM:
            one.listen()
    victim = subprocess.Popen(["sleep", "120"])
    targets = Targets(
        str(secret),
        str(folder / "outside"),
        word,
        victim.pid,
        port,
        paths[0],
        paths[1],
        paths[2][1:],
    )
    listening = (stream, message, *unix)
    yield Aim(targets, listening, victim)
    victim.kill()
    victim.wait()
    for one in listening:
        one.close()


def source(code: str, targets: Targets) -> str:
    """The program, with what it aims at."""
    for name, value in dataclasses.asdict(targets).items():
        quoted = "'/proc/T_VICTIM" in code  # inside a string already
        code = code.replace(f"T_{name.upper()}", str(value) if quoted else repr(value))
    return code


def agrees(outcome: Outcome, expected: str) -> bool:
    """Whether this is what the table says."""
    status, _, details = expected.partition(": ")
    return outcome.status == status and any(text in outcome.detail for text in details.split("|"))


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempts_are_stopped(name: str, mode: str, server: Server, aim: Aim) -> None:
    """Each attempt ends as the table says, touches nothing of ours, and leaves no process and no file."""
    attempt = ATTEMPTS[name]
    limits = dataclasses.replace(SMALL, **attempt.limits)  # type: ignore[arg-type]
    outcome = server.run(source(attempt.code, aim.targets), "", limits)
    assert agrees(outcome, attempt.expected(mode)), outcome
    aim.unhurt()
    assert processes(server) == [server._process.pid]
    assert list(server._folder.iterdir()) == []


def test_page_shows_the_table() -> None:
    """docs/sandbox.md holds the table of attempts as it is tested."""
    text = (ROOT / "docs" / "sandbox.md").read_text("utf-8")
    found = re.search(
        r"<!-- made by: tests/sandbox_attempts.py -->\n\n(.*?)\n\n<!-- end -->", text, re.DOTALL
    )
    assert found is not None
    assert found[1] == table()
