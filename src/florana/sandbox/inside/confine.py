"""The last steps of a process before it runs a program that is not trusted; none can be taken back."""

# Paths go to system calls as they are.
# ruff: noqa: PTH112

from __future__ import annotations

import os
import random
import signal

from . import landlock, namespaces, privileges, seccomp
from .mechanisms import Mechanisms
from .names import COUNT, LANDLOCK, NAMESPACES, NOBODY, SECCOMP
from .request import Request
from .syscalls import prctl, unshare

REPORT, READY = 3, 4
"""The one descriptor that a program has besides the three that all have, and one that is closed before it runs."""


def keep_only(*descriptors: int) -> None:
    """Make these descriptors 1, 2, 3 and 4, an empty file 0, and close all others."""
    wanted = (os.open("/dev/null", os.O_RDONLY), *descriptors)
    above = max(wanted) + 1
    for target, source in enumerate(wanted):
        os.dup2(source, above + target)
    for target in range(len(wanted)):
        os.dup2(above + target, target)
    os.closerange(len(wanted), 1 << 20)


def confine(request: Request, having: Mechanisms, folder: str) -> None:
    """Give up everything but the folder, the limits' worth of the machine, and the open descriptors.

    Args:
        request: with the limits.
        having: what this system allows.
        folder: the program's own.

    Raises:
        OSError: if something that worked when it was tried does not now.
    """
    os.setsid()
    os.chdir(folder)
    os.umask(0o077)
    os.environ.update(HOME=folder, TMPDIR=folder)
    _give_up_rights(request, having)
    alone = NAMESPACES in having.active
    if LANDLOCK in having.active:
        devices = [path for path in having.readable if path == "/dev/null"]
        landlock.restrict(having.readable, [folder, *devices])
    random.seed(0)  # what a program draws is the same in every run
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if SECCOMP in having.active:
        seccomp.restrict(fork=request.fork, alone=alone, process=os.getpid())


def _give_up_rights(request: Request, having: Mechanisms) -> None:
    if NOBODY in having.active:
        privileges.become_nobody()
    tasks = request.tasks
    if COUNT in having.active:
        unshare(namespaces.NEW_USER)  # in which this process is the first that is counted
    elif os.path.isdir("/proc/self"):
        tasks += privileges.tasks_of_this_user()
    privileges.drop_capabilities()
    prctl(privileges.PR_SET_PDEATHSIG, signal.SIGKILL)
    privileges.limit(
        cpu_seconds=request.cpu_seconds,
        memory_bytes=request.memory_bytes,
        file_bytes=request.file_bytes,
        open_files=request.open_files,
        tasks=tasks,
    )
