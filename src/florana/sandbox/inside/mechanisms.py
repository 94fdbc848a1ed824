"""What this system allows of all that can hold a program back: each is tried, in a process that ends right after."""

# Paths go to system calls as they are.
# ruff: noqa: PTH110, PTH112, PTH118, PTH123, PTH208

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

from . import landlock, namespaces, privileges, seccomp
from .names import COUNT, LANDLOCK, NAMESPACES, NOBODY, REAPER, SECCOMP
from .syscalls import prctl, unshare

LIBRARIES = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class Mechanisms:
    """What holds programs back here.

    Args:
        active: names of those that are at work.
        missing: name -> why it is not.
        readable: files and folders that a program may read.
    """

    active: tuple[str, ...]
    missing: dict[str, str]
    readable: tuple[str, ...]


def readable_paths() -> tuple[str, ...]:
    """The standard library, the shared libraries that it loads, and harmless devices, as far as they exist."""
    library = [*sys.path, os.path.join(sys.base_prefix, "lib")]
    paths = [*LIBRARIES, *DEVICES, *library, *map(os.path.realpath, library)]
    return tuple(dict.fromkeys(path for path in paths if os.path.exists(path) and path != "/"))


def start(root: str, without: Collection[str]) -> Mechanisms:
    """Enter namespaces if they can be had, and find out what else can.

    Args:
        root: an empty folder: the new root is built on it.
        without: names to leave out.
    """
    readable = readable_paths()
    missing = dict.fromkeys(without, "left out as asked")
    active: list[str] = []

    def have(name: str, attempt: Callable[[], object]) -> None:
        if name in missing:
            return
        reason = _in_a_process(attempt)
        if reason is None:
            active.append(name)
        else:
            missing[name] = reason

    def enter() -> None:
        namespaces.enter(root, readable)

    def enter_twice() -> None:
        enter()
        namespaces.enter_for_one_program(1 << 20, os.getuid(), os.getgid())

    have(REAPER, _reap)
    have(NAMESPACES, enter_twice)
    if NAMESPACES in active:
        enter()
    if os.getuid() == 0:
        have(NOBODY, lambda: _be_nobody(sys.path))
    nobody = NOBODY in active
    have(COUNT, lambda: _count_tasks(nobody))
    have(LANDLOCK, lambda: landlock.restrict(["/"], []))
    have(SECCOMP, _filter)
    return Mechanisms(tuple(active), missing, readable)


def _reap() -> None:
    prctl(privileges.PR_SET_CHILD_SUBREAPER, 1)
    os.close(os.pidfd_open(os.getpid()))
    if not os.path.isdir(f"/proc/{os.getpid()}"):
        raise FileNotFoundError("/proc is not mounted")


def _be_nobody(folders: Collection[str]) -> None:
    privileges.become_nobody()
    for folder in folders:
        if not folder.endswith(".zip"):
            os.listdir(folder)


def _count_tasks(nobody: bool) -> None:
    if nobody:
        privileges.become_nobody()
    if os.getuid() == 0:
        raise PermissionError("the kernel does not count the processes of root")
    unshare(namespaces.NEW_USER)
    privileges.drop_capabilities()


def _filter() -> None:
    seccomp.restrict(fork=False, alone=True, process=os.getpid())
    try:
        socket.socket().close()
    except PermissionError:
        return
    raise OSError("the filter was taken, and does not filter")


def _in_a_process(attempt: Callable[[], object]) -> str | None:
    """None if it works, else why not."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            attempt()
            code = 0
        except BaseException as error:
            os.write(writer, f"{error}"[:500].encode())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as said:
        reason = said.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    return reason or (signal.Signals(-code).name if code < 0 else f"exit status {code}")
