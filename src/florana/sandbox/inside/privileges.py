"""Giving up what a process may do: its user, its capabilities, and how much it may use."""

# Paths go to system calls as they are.
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

from .syscalls import call, prctl

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 24, 36
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534
"""The user without rights of its own that every Linux knows."""


def become_nobody() -> None:
    """Stop being root.

    Raises:
        OSError: without the right to, or if this user does not exist in the container.
    """
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def drop_capabilities() -> None:
    """Have no capability, and be unable to gain one.

    Raises:
        OSError: if the kernel refuses.
    """
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:  # that was the last one
                break
            if error.errno != errno.EPERM:  # no right to: then nothing can be gained either
                raise
    header = ctypes.create_string_buffer(struct.pack("Ii", CAPABILITY_VERSION_3, 0), 8)
    call("capset", header, ctypes.create_string_buffer(24))


def limit(
    *, cpu_seconds: int, memory_bytes: int, file_bytes: int, open_files: int, tasks: int
) -> None:
    """Set the resource limits, soft and hard.

    Raises:
        OSError: if one is higher than this process may set.
        ValueError: likewise.
    """
    wanted: dict[int, int | tuple[int, int]] = {
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_NPROC: tasks,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }
    for kind, most in wanted.items():
        _, now = resource.getrlimit(kind)
        soft, hard = most if isinstance(most, tuple) else (most, most)
        if now != resource.RLIM_INFINITY:
            soft, hard = min(soft, now), min(hard, now)
        resource.setrlimit(kind, (soft, hard))


def tasks_of_this_user() -> int:
    """How many processes and threads the user has on this machine, as far as /proc shows."""
    count, user = 0, os.getuid()
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # ended meanwhile
            continue
    return count
