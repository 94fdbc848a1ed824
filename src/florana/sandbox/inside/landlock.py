"""Landlock: a process gives up files, TCP, and signals to others, for good and without being root.

Source: the kernel's documentation, ``userspace-api/landlock``. Rights that a kernel does not know yet are left out; version
1 (Linux 5.13) has the files, 4 (6.7) TCP, 6 (6.12) signals and abstract Unix sockets.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence

from .syscalls import call, prctl

PR_SET_NO_NEW_PRIVS = 38
RULE_PATH_BENEATH = 1
NO_LOG = 1
"""A program that is refused often would fill the system's audit log."""
READ_FILE, READ_DIR = 1 << 2, 1 << 3
ON_FILES = 1 << 0 | 1 << 1 | READ_FILE | 1 << 14 | 1 << 15
"""Rights that a rule about a single file may hold: execute, write, read, truncate, ioctl of a device."""
RIGHTS = ((1, 13), (2, 14), (3, 15), (5, 16))
"""(version, how many of the rights on files it knows)."""


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """The kernel's version of Landlock.

    Raises:
        OSError: if it has none, or it is switched off.
    """
    return call("landlock_create_ruleset", None, 0, 1)


def restrict(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Give up every file but those beneath these paths, all TCP, and signals to other processes.

    Args:
        readable: files and folders that may be read.
        writable: folders in which anything may be made, and device files that may be written.

    Raises:
        OSError: if the kernel refuses.
    """
    known = version()
    rights = (1 << max(bits for at, bits in RIGHTS if at <= known)) - 1
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    wanted = _Ruleset(rights, 0b11 if known >= 4 else 0, 0b11 if known >= 6 else 0)
    ruleset = call("landlock_create_ruleset", ctypes.byref(wanted), size, 0)
    for path in readable:
        _allow(ruleset, path, READ_FILE | READ_DIR)
    for path in writable:
        _allow(ruleset, path, rights & ~1)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    call("landlock_restrict_self", ruleset, NO_LOG if known >= 7 else 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(folder).st_mode):
            rights &= ON_FILES
        rule = _PathBeneath(rights, folder)
        call("landlock_add_rule", ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(folder)
