"""The program's own process: run the program, then its tests, then say so with this run's secret word.

The word is made for one run and is not written anywhere that a program comes by when it ends early, prints, or replaces
functions of the library. It is in the memory of the same interpreter all the same: docs/sandbox.md says what follows from that.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

DETAIL = 300
"""Characters of an error that are told."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the program's process is to do.

    Args:
        program: source.
        tests: source of what must run to its end without an exception, in the program's own names.
        descriptor: of the pipe on which the end is told.
        word: the secret word that means that the tests ended.
    """

    program: str
    tests: str
    descriptor: int
    word: bytes


def run(job: Job) -> None:
    """Do it, and end this process. It never returns."""
    # Held here by name, so that a program that replaces them replaces only its own.
    leave, told, run_code = os._exit, _told, exec
    report, word = _reporter(job.descriptor), job.word
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    names = module.__dict__
    try:
        # Two pieces: an open quote or an ``if False:`` at the end of the program cannot swallow the tests.
        tests = compile(job.tests, "<tests>", "exec", dont_inherit=True)
        program = compile(job.program, "<program>", "exec", dont_inherit=True)
        del job
        run_code(program, names)
        run_code(tests, names)
    except MemoryError:
        report(b"memory")
        leave(1)
    except BaseException as error:
        report(b"failed" + told(error))
        leave(1)
    report(word)
    leave(0)


def _reporter(descriptor: int) -> Callable[[bytes], object]:
    """Writes, in this process alone: a fork of it that runs on to the same end has nothing to say."""
    write, who = os.write, os.getpid
    first = who()
    return lambda text: write(descriptor, text) if who() == first else None


def _told(error: BaseException) -> bytes:
    """Kind, text and line of an exception; the text is made by code that is not trusted either."""
    try:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        where, trace = "", error.__traceback__
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if name in ("<program>", "<tests>"):
                where = f" (line {trace.tb_lineno} of the {name[1:-1]})"
            trace = trace.tb_next
        return (text[:DETAIL] + where).encode("utf-8", "replace")
    except BaseException:
        return b"an exception that raises another when it is read"
