"""Removing a folder that a program has filled."""

# Paths go to system calls as they are.
# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH208

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator


def empty(folder: str) -> None:
    """Remove a folder and all in it, however deep; nothing if it is not there.

    A program may nest folders deeper than a path can be long, or than a recursion goes. So folders that lie one level
    down are moved up until none does. The program's processes must have ended.

    Args:
        folder: a folder of ours, in which a program could make whatever it wanted.
    """
    if not os.path.lexists(folder):
        return
    taken = set(os.listdir(folder))
    fresh = (name for i in itertools.count() if (name := f"moved-{i}") not in taken)
    os.chmod(folder, 0o700)
    while names := os.listdir(folder):
        for name in names:
            _remove(folder, name, fresh)
    os.rmdir(folder)


def _remove(folder: str, name: str, fresh: Iterator[str]) -> None:
    path = f"{folder}/{name}"
    if not _is_folder(path):
        os.unlink(path)
        return
    os.chmod(path, 0o700)
    for inner in os.listdir(path):
        if _is_folder(f"{path}/{inner}"):
            os.chmod(f"{path}/{inner}", 0o700)  # moving a folder writes its ".."
            os.rename(f"{path}/{inner}", f"{folder}/{next(fresh)}")
        else:
            os.unlink(f"{path}/{inner}")
    os.rmdir(path)


def _is_folder(path: str) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)
