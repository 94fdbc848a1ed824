"""Namespaces: a network without interfaces, a root folder that holds the standard library, and process ids of its own.

As root they are made directly. Any other user first makes a user namespace, which many systems allow and some forbid.
"""

# Paths go to system calls as they are.
# ruff: noqa: PTH102, PTH103, PTH112, PTH114, PTH115, PTH120, PTH123, PTH211

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from .syscalls import call, mount, unshare

NEW_MOUNTS, NEW_HOST, NEW_IPC, NEW_USER, NEW_PROCESSES, NEW_NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
FOLDER = "/tmp"
"""The program's folder in its own root."""


def enter(root: str, readable: Sequence[str]) -> None:
    """Leave this process's namespaces for ones that hold nothing but some files, read-only.

    Args:
        root: an empty folder to build the new root on.
        readable: files and folders that are seen in it, at the same paths.

    Raises:
        OSError: if the system does not allow it.
    """
    user, group = os.getuid(), os.getgid()
    kinds = NEW_MOUNTS | NEW_HOST | NEW_NETWORK
    try:
        if user != 0:
            raise PermissionError
        unshare(kinds)
    except PermissionError:
        unshare(NEW_USER | kinds)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in readable:
        _show(path, root)
    os.mkdir(root + FOLDER)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def enter_for_one_program(file_bytes: int, user: int, group: int) -> None:
    """New process ids for the children of this process, and an empty folder in memory.

    Args:
        file_bytes: how much the folder holds.
        user: whose the folder is.
        group: likewise.

    Raises:
        OSError: if the system does not allow it.
    """
    unshare(NEW_PROCESSES | NEW_IPC | NEW_MOUNTS)
    options = f"size={file_bytes},nr_inodes=4096,mode=700,uid={user},gid={group}"
    mount("tmpfs", FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, options)


def _show(path: str, root: str) -> None:
    inside = root + path
    if os.path.lexists(inside):
        return
    os.makedirs(os.path.dirname(inside), mode=0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), inside)
        return
    if os.path.isdir(path):
        os.mkdir(inside)
    else:
        _write(inside, "")
    mount(path, inside, None, MS_BIND | MS_REC)
    if not path.startswith("/dev/"):
        _make_read_only(inside)


def _make_read_only(path: str) -> None:
    wanted = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    call("mount_setattr", AT_FDCWD, path.encode(), AT_RECURSIVE, wanted, len(wanted))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
