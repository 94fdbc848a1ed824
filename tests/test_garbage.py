"""Imports without collections: in florana's own processes alone, and the collector is back afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(code: str) -> str:
    """What a process of its own prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


TELL = """
import gc
from florana.garbage import importing, process_is_ours
{ours}
with importing("torch"):
    inside = gc.isenabled()
    import torch
print(inside, gc.isenabled(), gc.get_freeze_count() > 100_000)
with importing("torch"):
    print(gc.isenabled())
"""


def test_imports_in_our_process_are_left_alone() -> None:
    """No collection meanwhile, none of what came, and nothing is done where all is there already."""
    assert run(TELL.format(ours="process_is_ours()")).split() == ["False", "True", "True", "True"]


def test_other_processes_keep_their_collector() -> None:
    """A notebook that uses the library is not changed."""
    assert run(TELL.format(ours="")).split() == ["True", "True", "False", "True"]


def test_a_collector_that_is_off_stays_off() -> None:
    """Whoever turned it off has reasons."""
    code = TELL.format(ours="process_is_ours(); gc.disable()")
    assert run(code).split() == ["False", "False", "False", "False"]


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    """The error is told as ever."""
    code = """
import gc
from florana.garbage import importing, process_is_ours
process_is_ours()
try:
    with importing("no.such.module"):
        import no.such.module
except ImportError as error:
    print(gc.isenabled(), error)
"""
    assert run(code) == "True No module named 'no'"


def test_the_end_of_our_process_still_writes_and_cleans_up() -> None:
    """Files are flushed, what is registered for the end is done, though garbage is not looked for."""
    code = """
import atexit, tempfile
from pathlib import Path
from florana.garbage import process_is_ours
process_is_ours()
process_is_ours()
folder = tempfile.TemporaryDirectory()
atexit.register(lambda: print("end", Path(folder.name).exists()))
print("begin", end=" ")
print(folder.name, end=" ")
"""
    begin, name, *end = run(code).split()
    assert [begin, *end] == ["begin", "end", "True"]
    assert not Path(name).exists()
