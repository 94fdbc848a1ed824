"""A process that starts programs: as clean as a new interpreter, and much faster than one.

server ─ gate ─ keeper ─ program. Each is forked from the one before. The gate makes new process ids and the program's folder (only
where there are namespaces); the keeper is the first process there, watches the program, and takes everything with it when it
ends. No one of the three runs a line of a program.
"""

# Paths go to system calls as they are.
# ruff: noqa: PTH102, PTH118, PTH123

from __future__ import annotations

import gc
import importlib
import os
import secrets
import select
import signal
from collections.abc import Callable
from typing import Any

from . import keeper, mechanisms, namespaces, privileges
from .confine import READY, REPORT, confine, keep_only
from .folder import empty
from .harness import Job, run
from .mechanisms import Mechanisms
from .names import NAMESPACES, NOBODY, REAPER
from .request import Request, receive, send
from .syscalls import prctl

REQUESTS, ANSWERS = 0, 1
GRACE = 15.0
"""Seconds beyond a program's wall time after which the keeper must have answered."""
PRELOADED = (
    "bisect collections copy dataclasses datetime decimal enum fractions functools heapq itertools json math "
    "operator random re statistics string typing"
)


def main(root: str, *without: str) -> None:
    """Tell what holds programs back here, then run what is asked for until there are no more requests.

    Args:
        root: an empty folder of the server's own.
        without: mechanisms to leave out.
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # with a handler, a program could interrupt its keeper
    job = _serve(root, without)
    if job is not None:  # in a program's process, far from the server's variables
        run(job)


def _serve(root: str, without: tuple[str, ...]) -> Job | None:
    for name in PRELOADED.split():
        importlib.import_module(name)
    _be_first_to_go()
    having = mechanisms.start(root, without)
    _close_to_others(having)
    send(ANSWERS, {"protection": {"active": having.active, "missing": having.missing}})
    gc.collect()
    gc.freeze()
    while (asked := receive(REQUESTS)) is not None:
        answer = _answer(Request(**asked), having, root)
        if isinstance(answer, Job):
            return answer
        send(ANSWERS, answer)
    return None


def _be_first_to_go() -> None:
    """When memory runs out, the kernel takes this process and its children before others."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:  # an old kernel, or no /proc: then the order is the kernel's
        return


def _close_to_others(having: Mechanisms) -> None:
    """What only makes sense when the rest is set up: adopt orphans, and be closed to debuggers of the same user."""
    if REAPER in having.active:
        prctl(privileges.PR_SET_CHILD_SUBREAPER, 1)
    prctl(privileges.PR_SET_DUMPABLE, 0)


def _answer(request: Request, having: Mechanisms, root: str) -> dict[str, Any] | Job:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        return _start(request, having, root, writer)
    os.close(writer)
    answer = _await(child, reader, request)
    os.close(reader)
    if NAMESPACES not in having.active:
        keeper.end_all_children()  # if the keeper itself did not live to do it
        empty(os.path.join(root, "work"))
    return answer


def _await(child: int, reader: int, request: Request) -> dict[str, Any]:
    """The keeper's answer, once its processes are gone; none is waited for when nobody wants it any more."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    poll.register(REQUESTS, 0)  # tells when the other side has closed
    ready = dict(poll.poll((request.wall_seconds + GRACE) * 1000))
    answer = receive(reader) if reader in ready else None
    if answer is None:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return answer or _error("the process that watches a program was ended")


def _start(request: Request, having: Mechanisms, root: str, answers: int) -> Job:
    """In a new process: becomes gate and keeper, which end here, and the program's process, which returns."""
    prctl(privileges.PR_SET_PDEATHSIG, signal.SIGKILL)
    if NAMESPACES in having.active:
        _gate(request, having, answers)
        folder = namespaces.FOLDER
    else:
        folder = os.path.join(root, "work")
        _or_end(answers, lambda: _make_folder(folder, having))
    return _keep(request, having, folder, answers)


def _gate(request: Request, having: Mechanisms, answers: int) -> None:
    user, group = os.getuid(), os.getgid()
    if NOBODY in having.active:
        user = group = privileges.NOBODY
    size = request.folder_bytes
    _or_end(answers, lambda: namespaces.enter_for_one_program(size, user, group))
    child = os.fork()
    if child != 0:
        os.close(answers)
        os.waitpid(child, 0)
        os._exit(0)
    prctl(privileges.PR_SET_PDEATHSIG, signal.SIGKILL)


def _keep(request: Request, having: Mechanisms, folder: str, answers: int) -> Job:
    if REAPER in having.active:
        prctl(privileges.PR_SET_CHILD_SUBREAPER, 1)
    output, report, ready = os.pipe(), os.pipe(), os.pipe()
    word = secrets.token_hex(16).encode()
    child = os.fork()
    if child == 0:
        _or_end(ready[1], lambda: keep_only(output[1], output[1], report[1], ready[1]))
        _or_end(READY, lambda: confine(request, having, folder))
        send(READY, {})
        os.close(READY)
        return Job(request.program, request.tests, REPORT, word)
    for _, writer in (output, report, ready):
        os.close(writer)
    failure = receive(ready[0])
    if failure is None:
        failure = _error("the process ended while it gave up its rights")
    if not failure:
        pipes = keeper.Pipes(output[0], report[0])
        _or_end(answers, lambda: send(answers, keeper.watch(child, pipes, request, word)))
    else:
        send(answers, failure)
    if NAMESPACES not in having.active:
        keeper.end_all_children()
    os._exit(0)  # with process ids of their own, the kernel ends all others now


def _or_end(descriptor: int, step: Callable[[], object]) -> None:
    """Do a step; if it fails, say so and end this process, so that no error gets back into the server's own code."""
    try:
        step()
    except BaseException as error:
        send(descriptor, _error(f"{type(error).__name__}: {error}"))
        os._exit(1)


def _make_folder(folder: str, having: Mechanisms) -> None:
    os.mkdir(folder, 0o700)
    if NOBODY in having.active:
        os.chown(folder, privileges.NOBODY, privileges.NOBODY)


def _error(detail: str) -> dict[str, Any]:
    return {"status": "error", "detail": detail, "seconds": 0.0}
