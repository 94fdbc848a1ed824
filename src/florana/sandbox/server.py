"""The sandbox's server process, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from florana.sandbox.errors import SandboxError
from florana.sandbox.outcome import Limits, Outcome
from florana.sandbox.protection import Protection

START = "import sys; sys.path.insert(0, sys.argv[1]); from inside.server import main; del sys.path[0]; main(*sys.argv[2:])"
START_SECONDS = 60.0
GRACE = 30.0
"""Seconds beyond a program's wall time after which the server itself is given up."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # sets of strings have one order in every run
    "MALLOC_ARENA_MAX": "1",  # else every thread reserves 64 MB of the address space
}
"""All that a program finds in its environment besides its folder."""


def check_system() -> None:
    """Refuse systems that have nothing to hold programs back with.

    Raises:
        SandboxError: if this is not Linux.
    """
    if sys.platform != "linux":
        raise SandboxError(
            f"generated programs are run on Linux only, and this is {sys.platform}: "
            "nothing here can hold them back; use a Linux machine, virtual machine or container"
        )


class Server:
    """A process that runs one program after the other, each in processes of its own.

    Args:
        without: mechanisms to leave out, for tests of the others.

    Raises:
        SandboxError: if this is not Linux, or the process does not start.
    """

    def __init__(self, without: Collection[str] = ()) -> None:
        check_system()
        self._folder = Path(tempfile.mkdtemp(prefix="florana-sandbox-"))
        self._folder.chmod(0o711)  # the user nobody walks through it
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the server)
        interpreter = [sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", "-c", START]
        try:
            self._process = subprocess.Popen(
                [*interpreter, str(Path(__file__).parent), str(self._folder), *without],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=ENVIRONMENT,
                cwd=self._folder,
                start_new_session=True,
            )
            hello = self._receive(START_SECONDS)["protection"]
        except BaseException:
            self.close()
            raise
        self.protection = Protection(tuple(hello["active"]), hello["missing"])

    def run(self, program: str, tests: str, limits: Limits) -> Outcome:
        """Run one program and its tests.

        Raises:
            SandboxError: if the server itself has ended; it cannot be used any more.
        """
        body = json.dumps({"program": program, "tests": tests, **asdict(limits)}).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("!I", len(body)) + body)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        return Outcome(**self._receive(limits.wall_seconds + GRACE))

    def close(self) -> None:
        """End the process, what it runs, and its folder."""
        process = getattr(self, "_process", None)
        if process is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # it ends by itself, with what it runs
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        self._said.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        head = self._exactly(4, deadline)
        return dict(json.loads(self._exactly(struct.unpack("!I", head)[0], deadline)))

    def _exactly(self, count: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        descriptor, parts = self._process.stdout.fileno(), b""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while len(parts) < count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                self._process.kill()
                raise self._gone()
            part = os.read(descriptor, count - len(parts))
            if not part:
                raise self._gone()
            parts += part
        return parts

    def _gone(self) -> SandboxError:
        self._process.wait(GRACE)
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace").strip()[-1000:]
        return SandboxError(
            f"the sandbox's server ended with status {self._process.returncode}: {said or 'it said nothing'}"
        )
