"""Programs that try to get out of the sandbox, and what stops each; docs/sandbox.md shows this table.

Every program ends without an exception only if its attempt worked. What an attempt aims at belongs to the test, is on this
machine, and small: see :class:`Targets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MODES: Mapping[str, tuple[str, ...]] = {
    "all": (),
    "namespaces alone": ("seccomp", "landlock"),
    "without namespaces": ("namespaces",),
}
"""Which mechanisms are left out, so that each is seen to hold by itself."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What attempts aim at.

    Args:
        secret: file that anybody may read and write.
        outside: file that is not there.
        word: what the secret file and this process's environment variable FLORANA_SECRET hold.
        victim: a process that sleeps.
        port: on which a TCP and a UDP socket of the test listen, on 127.0.0.1.
        unix: path of a Unix socket on which the test listens, for streams.
        datagram: likewise, for datagrams.
        abstract: name of one in the abstract space.
    """

    secret: str
    outside: str
    word: str
    victim: int
    port: int
    unix: str
    datagram: str
    abstract: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to try.

    Args:
        code: the program; it knows the fields of :class:`Targets` as ``T_SECRET`` and so on.
        everywhere: ``status: text of the detail`` wherever it is run; ``|`` sets apart what depends on the user and kernel.
        alone: likewise with namespaces alone.
        without: likewise without namespaces.
        limits: other limits than the tests' usual ones.
    """

    code: str
    everywhere: str = ""
    alone: str = ""
    without: str = ""
    limits: Mapping[str, int | float | bool] = field(default_factory=dict)

    def expected(self, mode: str) -> str:
        """What is expected in one of the modes; with all mechanisms, what any of the two would answer."""
        if self.everywhere:
            return self.everywhere
        if mode == "all":  # which of the two answers first is not of interest
            either = [e for e in (self.alone, self.without) if not e.startswith("passed")]
            status = either[0].partition(": ")[0]
            return f"{status}: {'|'.join(e.partition(': ')[2] for e in either)}"
        return self.alone if mode == "namespaces alone" else self.without


FORKS = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
"""
DAEMON = """
import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.write(writer, b"free")
        time.sleep(60)
    os._exit(0)
assert os.read(reader, 4) == b"free"
"""
THREADS = """
import threading, time
for _ in range(200):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
IGNORE = """
import signal, time
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True:
    time.sleep(WAIT)
"""
FILES = """
for i in range(12):
    with open(f"file-{i}", "wb") as file:
        file.write(b"x" * (1 << 20))
"""
SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""
CONNECT = "import socket\nsocket.create_connection(('127.0.0.1', T_PORT), 2).send(b'x')"
UDP = "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', T_PORT))"
UNIX = "import socket\nsocket.socket(socket.AF_UNIX).connect(T_UNIX)"
ABSTRACT = "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0' + T_ABSTRACT)"
PAIR = (
    "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
    "a.sendto(b'x', T_DATAGRAM)"
)
LISTEN = "import socket\nsocket.create_server(('0.0.0.0', 0))\nsocket.create_connection(('192.0.2.1', 9), 1)"
KEEPER = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nraise RuntimeError('the keeper is still there')"
EVERYBODY = "import os, signal\nos.kill(-1, signal.SIGKILL)\nraise RuntimeError('nobody was there')"
LIMITS = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (600, 600))"
OTHERS_LIMITS = "import resource\nresource.prlimit(T_VICTIM, resource.RLIMIT_NOFILE, (1, 1))"
GONE = "No such file or directory"
DENIED = "Permission denied"
REFUSED = "Operation not permitted"

ATTEMPTS: Mapping[str, Attempt] = {
    "a loop without end": Attempt(
        "while True: pass", "timeout: processor time", limits={"cpu_seconds": 1, "wall_seconds": 60}
    ),
    "to sleep for ever": Attempt(
        "import time\ntime.sleep(1e6)", "timeout: not done after", limits={"wall_seconds": 0.5}
    ),
    "the same, ignoring every signal": Attempt(
        IGNORE.replace("WAIT", "60"), "timeout: not done after", limits={"wall_seconds": 0.5}
    ),
    "a loop without end, ignoring every signal": Attempt(
        IGNORE.replace("time.sleep(WAIT)", "pass"),
        "timeout: processor time",
        limits={"cpu_seconds": 1, "wall_seconds": 60},
    ),
    "to wait for input": Attempt("input()", "failed: EOFError"),
    "more memory": Attempt("x = bytearray(1 << 30)", "memory: needed more than"),
    "memory that the limit does not count (memfd)": Attempt(
        "import os\nos.write(os.memfd_create('x'), b'x')",
        alone="passed",
        without=f"failed: {REFUSED}",
    ),
    "a large file": Attempt(
        "open('x', 'wb').write(b'x' * (5 << 20))",
        "failed: File too large",
        limits={"file_bytes": 4 << 20},
    ),
    "many files": Attempt(
        FILES,
        alone="failed: No space left on device",
        without="passed",
        limits={"folder_bytes": 4 << 20},
    ),
    "endless output": Attempt("while True: print('x' * 10000)", "output: wrote more than"),
    "many processes": Attempt(
        FORKS, alone="failed: Resource temporarily unavailable", without=f"failed: {REFUSED}"
    ),
    "a daemon: two forks, two sessions": Attempt(
        DAEMON, alone="passed", without=f"failed: {REFUSED}"
    ),
    "many threads": Attempt(THREADS, "failed: can't start new thread"),
    "deep recursion": Attempt("def f(): f()\nf()", "failed: RecursionError"),
    "to raise its limits": Attempt(LIMITS, "failed: not allowed to raise maximum limit"),
    "to lower another process's limits": Attempt(
        OTHERS_LIMITS, alone="failed: No such process", without=f"failed: {REFUSED}"
    ),
    "a shell": Attempt(
        "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])",
        alone=f"failed: {GONE}",
        without=f"failed: {REFUSED}",
    ),
    "another interpreter in its place": Attempt(
        "import os, sys\nos.execv(sys.executable, ['python', '-c', 'pass'])",
        alone=f"failed: {GONE}|{DENIED}",
        without=f"failed: {REFUSED}",
    ),
    "a TCP connection to this machine": Attempt(
        CONNECT, alone="failed: Network is unreachable", without=f"failed: {REFUSED}"
    ),
    "a UDP message to this machine": Attempt(
        UDP, alone="failed: Network is unreachable", without=f"failed: {REFUSED}"
    ),
    "to listen, and to connect to another machine": Attempt(
        LISTEN, alone="failed: Network is unreachable", without=f"failed: {REFUSED}"
    ),
    "a Unix socket": Attempt(UNIX, alone=f"failed: {GONE}", without=f"failed: {REFUSED}"),
    "an abstract Unix socket": Attempt(
        ABSTRACT, alone="failed: Connection refused", without=f"failed: {REFUSED}"
    ),
    "a Unix datagram from a pair of its own": Attempt(
        PAIR, alone=f"failed: {GONE}", without=f"failed: {REFUSED}"
    ),
    "to read a file of ours": Attempt(
        "open(T_SECRET).read()", alone=f"failed: {GONE}", without=f"failed: {DENIED}"
    ),
    "the same through a link": Attempt(
        "import os\nos.symlink(T_SECRET, 'x')\nopen('x').read()",
        alone=f"failed: {GONE}",
        without=f"failed: {DENIED}",
    ),
    "to write into a file of ours": Attempt(
        "open(T_SECRET, 'a').write('x')", alone=f"failed: {GONE}", without=f"failed: {DENIED}"
    ),
    "to make a file elsewhere": Attempt(
        "open(T_OUTSIDE, 'w')", alone=f"failed: {GONE}", without=f"failed: {DENIED}"
    ),
    "to change the rights of a file of ours": Attempt(
        "import os\nos.chmod(T_SECRET, 0)", alone=f"failed: {GONE}", without=f"failed: {REFUSED}"
    ),
    "to remove a file of ours": Attempt(
        "import os\nos.unlink(T_SECRET)", alone=f"failed: {GONE}", without=f"failed: {DENIED}"
    ),
    "to change the standard library": Attempt(
        "import os\nopen(os.__file__, 'a').write('x')", f"failed: Read-only file system|{DENIED}"
    ),
    "a secret in its own environment": Attempt(
        "import os\nos.environ['FLORANA_SECRET']", "failed: KeyError"
    ),
    "the environment of our process": Attempt(
        "open('/proc/T_VICTIM/environ').read()",
        alone=f"failed: {GONE}",
        without=f"failed: {DENIED}",
    ),
    "to kill a process of ours": Attempt(
        "import os\nos.kill(T_VICTIM, 9)",
        alone="failed: No such process",
        without=f"failed: {REFUSED}",
    ),
    "to kill its keeper": Attempt(
        KEEPER, alone=f"failed: {REFUSED}|the keeper is still there", without=f"failed: {REFUSED}"
    ),
    "to kill whatever it may": Attempt(
        EVERYBODY, alone="failed: No such process|nobody was there", without=f"failed: {REFUSED}"
    ),
    "to trace a process of ours (ptrace)": Attempt(
        SYSCALL + "checked(libc.ptrace(16, T_VICTIM, None, None))",
        alone="failed: No such process",
        without=f"failed: {REFUSED}",
    ),
    "to read the memory of a process of ours": Attempt(
        "open('/proc/T_VICTIM/mem', 'rb').read(1)",
        alone=f"failed: {GONE}",
        without=f"failed: {DENIED}",
    ),
    "a crash of the interpreter": Attempt("import ctypes\nctypes.string_at(0)", "killed: SIGSEGV"),
    "`sys.exit(0)` before the tests": Attempt("import sys\nsys.exit(0)", "failed: SystemExit"),
    "`os._exit(0)` before the tests": Attempt(
        "import os\nos._exit(0)", "failed: ended with exit status 0 before its tests did"
    ),
    "to report success itself": Attempt(
        "import os\nprint('passed')\nos.write(3, b'passed')\nos._exit(0)",
        "failed: ended with exit status 0 before its tests did",
    ),
}


def table() -> str:
    """The attempts as a Markdown table, as docs/sandbox.md shows it."""
    lines = [
        "| attempt | with namespaces alone | without namespaces |",
        "| --- | --- | --- |",
    ]
    for name, attempt in ATTEMPTS.items():
        cells = [attempt.expected(mode).replace("|", " or ") for mode in list(MODES)[1:]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
