"""The sandbox from outside: permission, outcomes, processes that are left, and what it refuses."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from florana.errors import FloranaError
from florana.sandbox import (
    Limits,
    Outcome,
    Protection,
    SandboxError,
    protection,
    run_program,
    run_programs,
)
from florana.sandbox.inside.folder import empty
from florana.sandbox.server import Server
from sandbox_attempts import DAEMON, FORKS

MEGABYTE = 1 << 20
SMALL = Limits(cpu_seconds=5, wall_seconds=20, memory_bytes=256 * MEGABYTE)


@pytest.fixture
def here() -> Protection:
    """What this system offers; skips where that is too little."""
    try:
        found = protection()
        found.check()
    except SandboxError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sandbox makes its folders, which names its processes."""
    made = Path(tempfile.mkdtemp(prefix="sandbox-test-"))
    made.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    monkeypatch.undo()
    assert list(made.iterdir()) == []  # whatever a test did
    made.rmdir()


def processes(folder: Path) -> list[int]:
    """Those of a sandbox in this folder: forks share the command line of the server."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(os.fsencode(folder) + b"/") for word in words):
                found.append(int(entry.name))
    return found


def wait_until_none(folder: Path, seconds: float = 20) -> None:
    """Wait for the end of the sandbox's processes."""
    deadline = time.monotonic() + seconds
    while found := processes(folder):
        assert time.monotonic() < deadline, f"still there: {found}"
        time.sleep(0.02)


def test_nothing_runs_without_permission(tmp_path: Path) -> None:
    """Without ``allow=True`` itself nothing runs, and the error says what would, and how to allow it."""
    mark = tmp_path / "mark"
    for allow in (False, 1, "yes"):
        with pytest.raises(SandboxError, match=r"2 program\(s\).*evaluation.allow_code = true"):
            run_programs([(f"open({str(mark)!r}, 'w')", "")] * 2, allow=allow)  # type: ignore[arg-type]
    assert not mark.exists()
    assert issubclass(SandboxError, FloranaError)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_refused(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Linux's means there is no sandbox, and no attempt at one."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(SandboxError, match=f"run on Linux only, and this is {system}"):
        run_program("x = 1", allow=True)


def test_too_little_protection_is_refused(here: Protection) -> None:
    """Where nothing holds back network or files, programs run only if that is accepted."""
    nothing = ("namespaces", "seccomp", "landlock")
    with pytest.raises(
        SandboxError, match="from the network, nothing keeps programs from the files"
    ):
        run_program("x = 1", allow=True, without=nothing)
    with pytest.raises(SandboxError, match="processes that a program leaves behind"):
        run_program("x = 1", allow=True, without=("reaper",))
    with pytest.raises(SandboxError, match="the files of this user"):
        Protection(("seccomp", "reaper"), {"landlock": "too old"}).check()
    assert run_program(
        "x = 1", "assert x == 1", allow=True, without=nothing, accept_weaker=True
    ).passed


def test_protection_is_told(here: Protection) -> None:
    """Each mechanism is at work or missing with a reason, and the text says both."""
    found = protection(without=("landlock",))
    assert "landlock: missing: left out as asked" in str(found)
    assert set(found.active) | set(found.missing) >= {"reaper", "namespaces", "landlock", "seccomp"}
    assert not set(found.active) & set(found.missing)
    assert "seccomp" not in here.active or "seccomp: no socket" in str(here)


def test_outcomes_keep_their_order(here: Protection) -> None:
    """Several at a time, with unlike times, each outcome stands at its program's place."""
    pairs = [
        (f"import time\ntime.sleep({i % 3 * 0.02})\nx = {i}", f"assert x % 2, '{i} is even'")
        for i in range(30)
    ]
    found = run_programs(pairs, allow=True, jobs=3)
    for i, outcome in enumerate(found):
        expected = (
            ("passed", "")
            if i % 2
            else ("failed", f"AssertionError: {i} is even (line 1 of the tests)")
        )
        assert (outcome.status, outcome.detail) == expected
    assert run_programs([], allow=True) == []


@pytest.mark.parametrize(
    "program",
    [
        "f = None",
        "def f(): return 2\nimport builtins\nbuiltins.AssertionError = type('E', (Exception,), {})",
        "def f(): return 2\nimport builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
        "def f(): return 2\nimport os\nos._exit = lambda *a: None\nos.write = lambda *a: 0",
        "def f(): raise SystemExit",
        "def f(): raise KeyboardInterrupt",
        "def f(): raise GeneratorExit",
        "def f(): return 2\nif False:",
        'def f(): return 2\n"""',
        "def f(): return 2\ndef check(*args): pass",
        "import sys\ndef f():\n    sys.stdout.write('passed')\n    return 2",
        "import atexit, os\natexit.register(os._exit, 0)\ndef f(): return 2",
        "import os\ndef f():\n    for fd in range(64):\n        try: os.write(fd, b'passed')\n        except OSError: pass\n    os._exit(0)",
        "class E(Exception):\n    def __str__(self): return 1 / 0\ndef f(): raise E",
        "import sys\nsys.exit()",
        "import threading, os\ndef f(): os._exit(0)",
        "def f(): yield 1",
        "raise BaseException",
    ],
)
def test_success_is_not_faked(program: str, here: Protection) -> None:
    """Early ends, patched builtins and functions, and printed words never pass tests that do not hold."""
    tests = "def check(g):\n    assert g() == 1\ncheck(f)"
    assert run_program(program, tests, allow=True, limits=SMALL).status == "failed"


def test_programs_are_apart(here: Protection) -> None:
    """What one program writes, defines or patches, the next one does not find."""
    first = "import builtins, os, json\nopen('x', 'w')\nos.mkdir('y')\nbuiltins.len = json.dumps = None\nz = 1"
    second = (
        "import json, os\nassert os.listdir('.') == [] and len('ab') == 2 and json.dumps(1) == '1'\n"
        "assert 'z' not in globals() and __name__ == '__main__'"
    )
    for without in ((), ("namespaces",)):
        if set(without) and not {"seccomp", "landlock"} <= {*here.active}:
            continue
        found = run_programs([(first, ""), (second, "")] * 2, allow=True, jobs=1, without=without)
        assert [outcome.status for outcome in found] == ["passed"] * 4, found


def test_ordinary_programs_run(here: Protection) -> None:
    """What programs of the field do is possible: files in their folder, threads, events, big recursion, the library."""
    program = """
import asyncio, collections, ctypes, dataclasses, datetime, decimal, hashlib, heapq, os, random, re, signal
import sqlite3, ssl, sys, tempfile, threading, zoneinfo, zlib
with tempfile.TemporaryFile() as file:
    file.write(b'x')
os.kill(os.getpid(), 0)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.alarm(1)
sys.setrecursionlimit(5000)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
async def one(): return 1
thread = threading.Thread(target=print)
thread.start()
thread.join()
@dataclasses.dataclass
class Point:
    x: 'int'
print(os.getcwd(), file=open(os.devnull, 'w'))
"""
    tests = "assert depth(4000) == 4000 and asyncio.run(one()) == 1 and Point(1) == Point(1)"
    outcome = run_program(program, tests, allow=True, limits=SMALL)
    assert outcome.passed, outcome


def test_runs_are_alike(here: Protection) -> None:
    """The order of sets and random numbers are the same in every run, so that scores are."""
    program = "import random\nraise ValueError([*{'a', 'b', 'c', 'd', 'e', 'f'}, random.random()])"
    first, second = (run_program(program, allow=True) for _ in range(2))
    assert first.detail == second.detail
    assert first.detail.startswith("ValueError: [")


def test_details_are_bounded(here: Protection) -> None:
    """A program's own text in a detail is short and printable."""
    outcome = run_program("raise ValueError('\\x1b[2J' + 'x' * 10**6)", allow=True)
    assert outcome.status == "failed"
    assert len(outcome.detail) < 400
    assert outcome.detail.isprintable()


def test_output_costs_no_memory(here: Protection) -> None:
    """200 megabytes of output go through processes that stay below 100."""
    script = (
        "import resource\n"
        "from florana.sandbox import Limits, run_program\n"
        "limits = Limits(output_bytes=1 << 30, cpu_seconds=30, wall_seconds=50)\n"
        "print(run_program(\"for _ in range(200): print('x' * (1 << 20))\", allow=True, limits=limits).status)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    status, kilobytes = done.stdout.split()
    assert status == "passed"
    assert int(kilobytes) < 100_000


def test_the_keeper_finds_every_child(folder: Path, here: Protection) -> None:
    """Where forks are allowed, and without process ids of their own, no fork and no daemon outlives its program."""
    limits = dataclasses.replace(SMALL, fork=True, tasks=64)
    for program in (FORKS, DAEMON):
        for without in (("namespaces",), ("namespaces", "seccomp", "landlock")):
            outcome = run_program(
                program, allow=True, limits=limits, without=without, accept_weaker=True
            )
            assert outcome.passed, outcome
            assert processes(folder) == []


def test_children_are_counted(folder: Path, here: Protection) -> None:
    """Where forks are allowed, there are no more than the limit says."""
    if "user namespace" not in here.active:
        pytest.skip(f"no user namespace here: {here.missing['user namespace']}")
    for tasks, status in ((21, "passed"), (20, "failed")):
        limits = dataclasses.replace(SMALL, fork=True, tasks=tasks)
        assert run_program(FORKS, allow=True, limits=limits).status == status
    assert processes(folder) == []


def test_only_the_first_process_reports(here: Protection) -> None:
    """A fork that runs on to the end of the tests does not speak for the program, nor disturb its verdict."""
    limits = dataclasses.replace(SMALL, fork=True)
    both = "import os\nchild = os.fork()\nif child: os.waitpid(child, 0)"
    child_alone = "import os\nif os.fork(): os._exit(0)"
    for _ in range(3):
        assert run_program(both, "assert True", allow=True, limits=limits).passed
        assert run_program(child_alone, "assert True", allow=True, limits=limits).status == "failed"


@pytest.mark.parametrize("without", ["", "namespaces"])
def test_programs_end_with_us(without: str, folder: Path, here: Protection) -> None:
    """If our process is killed, its programs end too."""
    script = (
        "import sys, tempfile\n"
        f"tempfile.tempdir = {str(folder)!r}\n"
        "from florana.sandbox import Limits, run_program\n"
        "limits = Limits(wall_seconds=100)\n"
        f"run_program('import time; time.sleep(100)', allow=True, limits=limits, without={without.split()!r}, accept_weaker=True)"
    )
    ours = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        while len(processes(folder)) < 3:
            assert time.monotonic() < deadline
            assert ours.poll() is None
            time.sleep(0.02)
    finally:
        ours.send_signal(signal.SIGKILL)
        ours.wait()
    wait_until_none(folder)
    for left in folder.iterdir():  # nobody was there to remove it
        empty(str(left))


def test_a_server_that_dies_is_told(folder: Path, here: Protection) -> None:
    """A sandbox whose own process is gone is an error, and no verdict on the program."""
    with Server() as server:
        os.kill(server._process.pid, signal.SIGKILL)
        with pytest.raises(SandboxError, match="the sandbox's server ended with status -9"):
            server.run("x = 1", "", SMALL)


def test_a_keeper_that_dies_is_tried_again(
    here: Protection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure of the sandbox is tried again, a second one is raised: neither counts as a wrong answer."""
    bad = Outcome("error", "no room", 0.0)
    answers = iter([bad, Outcome("passed", "", 0.1), bad, bad])
    monkeypatch.setattr(Server, "run", lambda *_: next(answers))
    assert run_program("x = 1", allow=True).passed
    with pytest.raises(SandboxError, match="program 0: the sandbox failed: no room"):
        run_program("x = 1", allow=True)


@pytest.mark.parametrize("field", ["cpu_seconds", "wall_seconds", "tasks"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_positive(field: str, value: float) -> None:
    """A limit that is none is an error."""
    with pytest.raises(SandboxError, match=f"Limits.{field} = .* is not a positive number"):
        Limits(**{field: value})
    with pytest.raises(SandboxError, match="jobs = 0"):
        run_programs([("", "")], allow=True, jobs=0)


def test_deep_folders_are_removed(tmp_path: Path) -> None:
    """Trees deeper than paths and recursion go, links that lead elsewhere, and folders without rights are removed."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(kept)
    (top / "moved-0").touch()
    (top / "locked" / "inner").mkdir(parents=True)
    (top / "locked" / "inner").chmod(0)
    (top / "locked").chmod(0)
    before = Path.cwd()
    try:
        os.chdir(top)
        for _ in range(1200):
            Path("d" * 50).mkdir()
            os.chdir("d" * 50)
            Path("file").touch()
    finally:
        os.chdir(before)
    empty(str(top))
    assert not top.exists()
    assert (kept / "file").exists()
    empty(str(top))


def test_page_python_runs(here: Protection) -> None:
    """The Python of docs/sandbox.md runs as it stands."""
    text = (Path(__file__).parent.parent / "docs" / "sandbox.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(block, "docs/sandbox.md", "exec"), {})
