"""The process that runs Math-Verify: bounded, restarted, and usable from threads and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from florana.errors import ConfigError
from florana.tasks.answers._equivalence import Checker, Limits, equivalent

HOSTILE = [
    "10^{10^{10}}",
    "10**10**10",
    "(10^9)!",
    r"\binom{10^9}{10^8}",
    r"\sum_{n=1}^{10^{12}} n^n",
    r"\sqrt{" * 90 + "x" + "}" * 90,
    "(" * 400 + "1" + ")" * 400,
    r"\frac{" * 150,
    "__import__('os').system('exit')",
    "\0\n\r\ud800",
]


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    """A checker that gives up after one second of processor time."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    made = Checker(Limits(cpu_seconds=1))
    yield made
    made.close()


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:20]))
def test_hostile(checker: Checker, text: str) -> None:
    """No text keeps the worker, or the one after it, from the next answer."""
    assert not checker.equal(text, "7")
    assert checker.equal(r"\frac{14}{2}", "7")


def test_memory() -> None:
    """A comparison that wants more memory than allowed is wrong; the next one is right."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    checker = Checker(Limits(cpu_seconds=60, megabytes=600))
    assert not checker.equal("2^{2^{36}}", "7")
    assert checker.equal("14/2", "7")
    checker.close()


def test_threads(checker: Checker) -> None:
    """Answers go to the thread that asked, outside the main thread as well."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    pairs = [(rf"\frac{{{2 * n}}}{{2}}", str(n if n % 3 else n + 1)) for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda pair: checker.equal(*pair), pairs))
    assert said == [bool(n % 3) for n in range(40)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork() -> None:
    """A forked process gets a worker of its own, so that answers are not mixed up."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    script = """
import os
from florana.tasks.answers._equivalence import equivalent
assert equivalent("4/2", "2")
child = os.fork()
for n in range(20):
    assert equivalent(f"{2 * n}/2", str(n)) and not equivalent(f"{2 * n}/2", str(n + 1))
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_leaves_nothing_behind() -> None:
    """The worker ends with the process that started it, even when that is killed."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    script = """
import os, signal
from florana.tasks.answers import _equivalence
assert _equivalence.equivalent("4/2", "2")
print(_equivalence._own(os.getpid())._worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    worker = int(done.stdout)
    for _ in range(600):
        if not alive(worker):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {worker} outlived its parent")


def alive(process: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_missing_library() -> None:
    """Without the library the message says so, and what to install."""
    said = "print('ImportError: No module named math_verify')"
    checker = Checker(command=[sys.executable, "-c", said])
    with pytest.raises(ConfigError, match=r"No module named math_verify.*florana\[math\]"):
        checker.equal("1", "2")


def test_hung_worker() -> None:
    """A worker that neither works nor answers is ended by the clock."""
    hung = "print('ready', flush=True); import time; time.sleep(600)"
    checker = Checker(Limits(wall_seconds=0.5), command=[sys.executable, "-c", hung])
    assert not checker.equal("1", "1")
    checker.close()


def test_same_order_every_time() -> None:
    """One process serves this one from call to call."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    assert [equivalent("2/2", "1") for _ in range(3)] == [True] * 3
