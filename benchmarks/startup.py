"""How long until the command line answers, and until a run trains: the split of both.

    python benchmarks/startup.py [--times 3] [--set KEY=VALUE ...]

Every start is a process of its own. ``florana run`` is stopped when its first client begins to train. Printed are the wall
time and the CPU time of the process at the end of every part, best of the repetitions; the docstrings are read by a
second process meanwhile, whose CPU time is told apart. Targets on the quickstart, on a quiet machine: help in 0.3 s,
training begins within 6 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

STEPS = {
    "load_data": "texts",
    "find_model": "model found and hashed",
    "load_tokenizer": "tokenizer",
    "build_lora_model": "texts tokenised, model",
}
"""Functions of florana.experiments.setup, and what is ready when they have returned."""


class _TrainingBegan(BaseException):
    """Ends the run that is watched; no Exception, which would be taken for a client's failure."""


def child(overrides: Sequence[str]) -> None:
    """Start a run as ``florana run`` does, and print when its parts were ready."""
    began, marks = time.perf_counter(), list[tuple[str, float, float]]()

    def mark(what: str) -> None:
        marks.append((what, time.perf_counter() - began, time.process_time()))

    import florana.cli._progress  # noqa: F401 (for the time it takes)
    from florana.config import load_config
    from florana.garbage import importing, process_is_ours
    from florana.tasks.ahead import read_ahead
    from florana.training import load_libraries

    process_is_ours()
    with tempfile.TemporaryDirectory() as parent:
        config = load_config(None, [*overrides, f'output="{parent}/run"'])
        if config.data.source == "docstrings":
            read_ahead()
        mark("command line, configuration, torch")
        load_libraries()
        mark("transformers, PEFT")
        with importing("florana.experiments.runner"):
            from florana.experiments import runner, setup
            from florana.experiments.events import ClientStarted, Event

        mark("Flower")
        for name, what in STEPS.items():
            setattr(setup, name, _telling(getattr(setup, name), what, mark))

        def watch(event: Event) -> None:
            if isinstance(event, ClientStarted):
                raise _TrainingBegan

        try:
            runner.start(config, watch)
        except _TrainingBegan:
            mark("first client begins")
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"marks": marks, "others": others.ru_utime + others.ru_stime}))


def _telling(function: Callable[..., Any], what: str, mark: Callable[[str], None]) -> Callable[..., Any]:  # fmt: skip
    def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        made = function(*arguments, **named)
        mark(what)
        return made

    return call


def run_split(overrides: Sequence[str], times: int) -> str:
    """The split of the fastest start."""
    command = [sys.executable, __file__, "--child", *(f"--set={entry}" for entry in overrides)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "FLWR_TELEMETRY_ENABLED": "0"}
    found = []
    for _ in range(times):
        began = time.perf_counter()
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        )
        found.append((time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])))
    _, best = min(found, key=lambda one: one[0])
    lines = ["florana run                 wall s   CPU s   until now: wall    CPU"]
    wall_before = cpu_before = 0.0
    for what, wall, cpu in best["marks"]:
        lines.append(
            f"{what:34} {wall - wall_before:6.2f} {cpu - cpu_before:7.2f} {wall:17.2f} {cpu:6.2f}"
        )
        wall_before, cpu_before = wall, cpu
    lines.append(f"the process that read the docstrings: {best['others']:.2f} CPU s")
    return "\n".join(lines)


def help_seconds(times: int) -> tuple[float, float]:
    """Least wall and CPU time of ``florana --help``."""
    walls, cpus = [], []
    for _ in range(times):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "florana", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(walls), min(cpus)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.set)
        return
    wall, cpu = help_seconds(given.times)
    print(f"florana --help: {wall:.2f} s, {cpu:.2f} CPU s\n")
    print(run_split(given.set, given.times))


if __name__ == "__main__":
    main()
