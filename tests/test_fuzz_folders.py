"""A short part of the fuzzer on adapter folders, and that the fuzzer itself can fail."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(script: str, folder: Path) -> str:
    """What a script prints that may import the fuzzer; a process of its own, since audit hooks cannot be taken off."""
    text = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n" + textwrap.dedent(script)
    command = [sys.executable, "-W", "ignore", "-c", text, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_hostile_folders_do_no_harm(tmp_path: Path) -> None:
    """2,000 folders: florana's own errors only, memory and time within limits, nothing written elsewhere.

    ``benchmarks/fuzz_folders.py`` says what is checked; ``--seed 2 --start N --count 1`` makes input N again.
    """
    script = """
        from fuzz_folders import fuzz

        outcome = fuzz(0, 2_000, seed=2)
        print(outcome.faults, sum(outcome.verdicts.values()), len(outcome.verdicts))
    """
    assert run(script, tmp_path).splitlines()[-1] == "[] 2000 4"


def test_the_fuzzer_sees_harm(tmp_path: Path) -> None:
    """Code that raises, writes elsewhere, hangs, eats memory or dies is found at its input; what is right is not."""
    script = """
        import os, sys, time
        from pathlib import Path
        import fuzz_folders

        harms = ["raises", "writes", "runs", "hangs", "eats", "dies", "none", "renames"]
        open_it, try_it = fuzz_folders.open_adapter, fuzz_folders.Fuzzer.try_one
        kept = []

        def wrong_try(self, index):
            global harm
            harm = harms[index]
            return try_it(self, index)

        def wrong_open(path, limits):
            if harm == "raises":
                raise KeyError("q")
            elif harm == "writes":
                Path(sys.argv[1], "harm").write_text("x")
            elif harm == "renames":
                os.rename(path, str(path) + "x")
            elif harm == "runs":
                os.system("true")
            elif harm == "hangs":
                time.sleep(5)
            elif harm == "eats":
                kept.append(bytearray(2**29))
            elif harm == "dies":
                os.kill(os.getpid(), 9)
            return open_it(path, limits)

        fuzz_folders.SECONDS = 1
        fuzz_folders.open_adapter, fuzz_folders.Fuzzer.try_one = wrong_open, wrong_try
        for index, what in fuzz_folders.fuzz(0, len(harms), seed=2).faults:
            print(harms[index], what)
    """
    lines = run(script, tmp_path).splitlines()
    expected = [
        "raises KeyError",
        "writes FaultError: open",
        "runs FaultError: os.system",
        "hangs HangError",
        "eats MemoryError",
        "dies the process died, status -9",
        "renames FaultError: os.rename",
    ]
    assert len(lines) == len(expected)
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning)
