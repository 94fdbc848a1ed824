"""What holds programs back on this system, and whether that is enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from florana.sandbox.errors import SandboxError
from florana.sandbox.inside.names import (
    COUNT,
    LANDLOCK,
    NAMESPACES,
    NOBODY,
    REAPER,
    SECCOMP,
)

WHAT = {
    REAPER: "a keeper that inherits and kills every process that a program leaves behind",
    NAMESPACES: "no network interface, no other process, no file but the standard library and a folder in memory",
    NOBODY: "the user nobody in place of root",
    COUNT: "processes and threads are counted by themselves",
    LANDLOCK: "no file but the standard library and its folder, no TCP, no signal to others",
    SECCOMP: "no socket, no new program, no look into or change of other processes, no new process",
}


@dataclass(frozen=True, slots=True)
class Protection:
    """What holds programs back on this system.

    Resource limits, a clean environment, closed descriptors and a wall clock are always there.

    Args:
        active: mechanisms that are at work, of ``reaper``, ``namespaces``, ``nobody``, ``user namespace``, ``landlock``, ``seccomp``.
        missing: the others -> why they are not.
    """

    active: tuple[str, ...]
    missing: Mapping[str, str]

    def without_network(self) -> bool:
        """Whether nothing can be connected to."""
        return NAMESPACES in self.active or SECCOMP in self.active

    def without_survivors(self) -> bool:
        """Whether every process that comes of a program ends with it."""
        return REAPER in self.active

    def without_files(self) -> bool:
        """Whether files but the standard library and the program's own cannot be read or written."""
        return NAMESPACES in self.active or LANDLOCK in self.active

    def check(self) -> None:
        """Refuse a system on which the least is not there: no network, no file of ours, and an end to every process.

        Raises:
            SandboxError: with what is missing, why, and what to do.
        """
        lacking = [] if self.without_network() else ["nothing keeps programs from the network"]
        if not self.without_files():
            lacking.append("nothing keeps programs from the files of this user")
        if not self.without_survivors():
            lacking.append("nothing finds the processes that a program leaves behind")
        if lacking:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
            raise SandboxError(
                f"generated programs are not run here: {', '.join(lacking)} ({reasons}). "
                "Allow user namespaces, or seccomp filters and Landlock, to this container; or, on a machine that has "
                "nothing to lose, say accept_weaker=True"
            )

    def __str__(self) -> str:
        """One line for each mechanism.

        Example:
            >>> print(Protection(("seccomp",), {"landlock": "Function not implemented"}))
            seccomp: no socket, no new program, no look into or change of other processes, no new process
            landlock: missing: Function not implemented
        """
        have = [f"{name}: {WHAT[name]}" for name in self.active]
        return "\n".join(have + [f"{name}: missing: {why}" for name, why in self.missing.items()])
