"""A seccomp filter: the kernel asks a small program before every system call, and refuses what it names.

Everything is allowed but what is named, since the calls that an interpreter makes differ between versions of Python and
of the C library. Calls newer than our tables do not exist (ENOSYS), so that no new door opens by itself.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct
from collections.abc import Iterable

from .landlock import PR_SET_NO_NEW_PRIVS
from .privileges import PR_SET_PDEATHSIG
from .syscalls import NEXT_NUMBER, call, numbers, prctl

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
CLONE_THREAD, CLONE_NEW = 0x00010000, 0x7E020000
"""The second: every CLONE_NEW* of a namespace that ``clone`` can make."""

NETWORK = (
    "socket connect bind listen accept accept4 io_uring_setup io_uring_enter io_uring_register"
)
OTHER_PROCESSES = (
    "ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd pidfd_open "
    "pidfd_send_signal setpriority ioprio_set sched_setscheduler sched_setparam sched_setattr "
    "sched_setaffinity move_pages migrate_pages"
)
PROGRAMS = "execve execveat uselib"
NAMESPACES = (
    "unshare setns chroot pivot_root mount umount2 move_mount open_tree fsopen fsconfig fsmount fspick "
    "mount_setattr"
)
KERNEL = (
    "bpf perf_event_open userfaultfd keyctl add_key request_key init_module finit_module delete_module "
    "kexec_load kexec_file_load reboot swapon swapoff acct quotactl quotactl_fd settimeofday clock_settime "
    "adjtimex clock_adjtime iopl ioperm modify_ldt personality syslog lookup_dcookie vhangup sethostname "
    "setdomainname fanotify_init name_to_handle_at open_by_handle_at"
)
SHARED_MEMORY = (
    "memfd_create memfd_secret shmget shmat shmctl semget semop semctl semtimedop msgget msgsnd msgrcv msgctl "
    "mq_open mq_unlink"
)
"""The memory limit does not count it, and it is shared with other processes."""
OTHERS_FILES = (
    "chmod fchmod fchmodat chown lchown fchown fchownat utime utimes futimesat utimensat setxattr lsetxattr "
    "fsetxattr removexattr lremovexattr fremovexattr"
)
"""Landlock has no right for these: refused where other files are in sight."""
SIGNALS = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo"
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP = 0x5412, 0x541C, 0x8901, 0x8902

Program = list[tuple[int, int, int, int]]


def restrict(*, fork: bool, alone: bool, process: int) -> None:
    """Refuse, from now on and for all children, what a generated program has no business with.

    Args:
        fork: whether it may have child processes.
        alone: whether it is in namespaces where it sees no other process and no other file.
        process: its own id, which is the one that it may signal, unless it is alone with children of its own.

    Raises:
        OSError: if the kernel has no filters, or there is no table of calls for this processor.
    """
    _install(_filter(fork=fork, alone=alone, process=process))


def _filter(*, fork: bool, alone: bool, process: int) -> Program:
    known = numbers()
    lines: Program = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, AUDIT_ARCH[platform.machine()]),
        (RETURN, 0, 0, KILL),  # another instruction set, whose numbers mean something else
        (LOAD, 0, 0, 0),
        (AT_LEAST, 0, 1, NEXT_NUMBER),
        (RETURN, 0, 0, ERRNO | errno.ENOSYS),
        *_when(known["clone3"], [(RETURN, 0, 0, ERRNO | errno.ENOSYS)]),  # back to clone
    ]
    refused = [NETWORK, OTHER_PROCESSES, PROGRAMS, NAMESPACES, KERNEL, SHARED_MEMORY]
    refused += [] if alone else [OTHERS_FILES]
    refused += [] if fork else ["fork vfork"]
    for name in " ".join(refused).split():
        if name in known:
            lines += _when(known[name], [(RETURN, 0, 0, ERRNO | errno.EPERM)])
    lines += _when(known["clone"], _clone(fork))
    lines += _when(known["socketpair"], _only_connected_pairs())
    lines += _when(known["prlimit64"], _unless_argument(0, [0]))
    if not (
        alone and fork
    ):  # with children of its own, and no other process in sight, it may signal them
        for name in SIGNALS.split():
            lines += _when(known[name], _unless_argument(0, [process]))
    lines += _when(known["prctl"], _if_argument(0, [PR_SET_PDEATHSIG]))
    owners = [TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP]
    lines += _when(known["ioctl"], _if_argument(1, owners))
    lines += _when(known["fcntl"], _if_argument(1, [F_SETOWN, F_SETSIG, F_SETOWN_EX]))
    return [*lines, (RETURN, 0, 0, ALLOW)]


def _when(number: int, block: Program) -> Program:
    """``block`` for one system call; it has to end in a return."""
    return [(EQUAL, 0, len(block), number), *block]


def _argument(index: int) -> tuple[int, int, int, int]:
    """Load the low half of an argument: the kernel takes no more of those that are looked at here."""
    return (LOAD, 0, 0, 16 + 8 * index)


def _unless_argument(index: int, values: Iterable[int]) -> Program:
    return _branch(index, values, found=ALLOW, otherwise=ERRNO | errno.EPERM)


def _if_argument(index: int, values: Iterable[int]) -> Program:
    return _branch(index, values, found=ERRNO | errno.EPERM, otherwise=ALLOW)


def _branch(index: int, values: Iterable[int], *, found: int, otherwise: int) -> Program:
    tests: Program = []
    for value in values:
        tests += [(EQUAL, 0, 1, value), (RETURN, 0, 0, found)]
    return [_argument(index), *tests, (RETURN, 0, 0, otherwise)]


def _clone(fork: bool) -> Program:
    refuse = (RETURN, 0, 0, ERRNO | errno.EPERM)
    namespaces: Program = [_argument(0), (ANY_BIT, 0, 1, CLONE_NEW), refuse]
    threads: Program = [] if fork else [(ANY_BIT, 1, 0, CLONE_THREAD), refuse]
    return [*namespaces, *threads, (RETURN, 0, 0, ALLOW)]


def _only_connected_pairs() -> Program:
    """What an event loop wakes itself with. A datagram pair could be sent to other addresses."""
    refuse = (RETURN, 0, 0, ERRNO | errno.EPERM)
    return [
        _argument(0),
        (EQUAL, 1, 0, int(socket.AF_UNIX)),
        refuse,
        _argument(1),
        (AND, 0, 0, 0xF),
        (EQUAL, 0, 1, int(socket.SOCK_STREAM)),
        (RETURN, 0, 0, ALLOW),
        refuse,
    ]


def _install(program: Program) -> None:
    class _Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))

    packed = b"".join(struct.pack("HBBI", *line) for line in program)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    call("seccomp", 1, 0, ctypes.byref(_Filter(len(program), packed)))
