"""Adapter folders made to do harm, by the hundred thousand: what florana makes of them.

    python benchmarks/fuzz_folders.py [--count 100000] [--seed 0] [--start 0] [--out benchmarks/results/fuzz.md]

Each input is a folder that PEFT wrote, changed by ``fuzz_inputs.py`` in one to three ways that follow from seed and
number alone, so any of them can be made again (``--start N --count 1``). It is opened, read whole, and, where that
works, aggregated with a folder of its kind, written, and read again. Checked is that

- nothing but a FloranaError is ever raised, and every input is done within ten seconds;
- memory: a child process does the work, whose address space may grow by 256 MiB and no more;
- nothing is opened for writing, made, renamed or removed but below the one folder that is written to, no socket opened,
  no process started, no pickle loaded: by Python's audit events, which a file's content cannot evade;
- whatever is accepted, the safetensors library accepts too, with the same names and bits.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from fuzz_inputs import CHANGES, WEIGHTS, corpus, make_case
from safetensors import SafetensorError

from florana.adapter import Adapter, ClientUpdate
from florana.aggregators import aggregate
from florana.errors import FloranaError
from florana.peft_io import Limits, load_adapter, open_adapter, save_adapter
from florana.peft_io.tensors import open_tensors

MEMORY = 2**28
SECONDS = 10
TIGHT = Limits(config_bytes=1_000, header_bytes=600, file_bytes=900, tensors=5, depth=2, dimension=8, rank=2)  # fmt: skip
_WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree"}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NEVER = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "socket.__new__", "pickle.find_class"}  # fmt: skip


class FaultError(Exception):
    """What must not happen, happened."""


class HangError(BaseException):
    """An input took longer than it may."""


@dataclass(slots=True)
class Guard:
    """Watches what the process does to files, while it is on.

    Args:
        allowed: the only folder below which something may be written.
    """

    allowed: Path
    reading: bool = False
    on: bool = False
    faults: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event."""
        if not self.on or (event != "open" and event not in _WRITES and event not in _NEVER):
            return
        if event == "open" and not arguments[2] & _WRITING:
            return
        count = 1 if event == "open" else 2  # whose second is a mode
        paths = [
            os.fsdecode(a) for a in arguments[:count] if isinstance(a, str | bytes | os.PathLike)
        ]
        if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # relative to an open folder
            paths = [str(Path(f"/proc/self/fd/{arguments[1]}").readlink() / paths[0])]
        root = str(self.allowed) + os.sep
        outside = [path for path in paths if not os.path.realpath(path).startswith(root)]
        if event in _NEVER or self.reading or outside:
            self.faults.append(f"{event} {arguments!r:.200}")

    @contextmanager
    def watch(self, *, reading: bool) -> Iterator[None]:
        """Be on, and raise what was found."""
        self.reading, self.on = reading, True
        try:
            yield
        finally:
            self.on = False
        if self.faults:
            found, self.faults = self.faults, []
            raise FaultError("; ".join(found))


@dataclass(slots=True)
class Fuzzer:
    """Tries inputs one after another in one folder.

    Args:
        work: an empty folder, on a file system in memory if there is one.
    """

    work: Path
    seed: int = 0
    cases: list[bytes] = field(init=False)
    guard: Guard = field(init=False)
    last: dict[tuple[object, ...], Adapter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("in", "out"):
            (self.work / name).mkdir()
        self.cases = corpus(self.work / "corpus")
        outside = self.work / "outside"
        outside.mkdir()
        for name in ("adapter_config.json", WEIGHTS):
            shutil.copy(self.work / "corpus" / "0" / name, outside)
        self.guard = Guard(self.work / "out")
        sys.addaudithook(self.guard)
        signal.signal(signal.SIGALRM, _hang)

    def try_one(self, index: int) -> str:
        """The verdict on one input; raises where something is wrong."""
        case, _ = make_case(self.cases, random.Random(f"{self.seed}/{index}"))
        folder = self.work / "in"
        _empty(folder)
        case.write(folder)
        before = _state(folder) if index % 10 == 0 else []  # beside the audit events, which see all
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            verdict = self._verdict(folder, index)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if index % 10 == 0 and _state(folder) != before:
            raise FaultError(f"the input changed: {before} became {_state(folder)}")
        return verdict

    def _verdict(self, folder: Path, index: int) -> str:
        compared = self._compare_file(folder / WEIGHTS)
        limits = TIGHT if index % 10 == 5 else Limits()
        with self.guard.watch(reading=True):
            try:
                with open_adapter(folder, limits) as opened:
                    name = opened._name
                    adapter = opened.adapter()
            except FloranaError as error:
                return f"refused, {_part(str(error), folder)}"
        if name == WEIGHTS and not compared:
            raise FaultError("the adapter was accepted, its file was not")
        if limits is TIGHT:
            _check_limits(folder, adapter)
        return f"accepted, {self._aggregate(adapter, index)}"

    def _compare_file(self, file: Path) -> bool:
        """Whether the file is accepted; then safetensors must say the same of it."""
        if not file.is_file() or file.is_symlink():
            return False
        with self.guard.watch(reading=True):
            try:
                with open_tensors(file) as opened:
                    ours = {key: opened.read(key) for key in opened.infos}
            except FloranaError:
                return False
        try:
            theirs = safetensors.torch.load(file.read_bytes())
        except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise FaultError(f"accepted, where safetensors says {error}") from error
        if ours.keys() != theirs.keys() or not all(_same(ours[k], theirs[k]) for k in ours):
            raise FaultError("safetensors reads something else")
        return True

    def _aggregate(self, adapter: Adapter, index: int) -> str:
        """Aggregate with the last adapter of the same kind; write and read every tenth result."""
        kind = (adapter.variant, *((n, p.shape) for n, p in adapter.pairs.items()), *adapter.extras)
        other = self.last.get(kind, adapter)
        if len(self.last) > 1_000:
            self.last.clear()
        self.last[kind] = adapter
        updates = [ClientUpdate("a", 3, adapter), ClientUpdate("b", 1, other)]
        weights = {n: torch.eye(*p.shape) + 0.1 for n, p in adapter.pairs.items()}
        method = ("florana-opt", "fedit")[index % 2]
        with self.guard.watch(reading=False):
            try:
                variants = adapter.variant in ("dora", "hira")
                result = aggregate(updates, method, base_weights=weights if variants else None)
                if index % 10 == 0:
                    made = save_adapter(
                        result.adapter, self.work / "out" / "deep" / "a", overwrite=True
                    )
                    load_adapter(made)
            except FloranaError:
                return "not aggregated"
        if not all(bool(t.isfinite().all()) for t in result.adapter.tensors().values()):
            raise FaultError("the aggregate is not finite")
        return "aggregated"


def _check_limits(folder: Path, adapter: Adapter) -> None:
    sizes = [(folder / "adapter_config.json").stat().st_size <= TIGHT.config_bytes]
    sizes += [pair.rank <= TIGHT.rank for pair in adapter.pairs.values()]
    if (folder / WEIGHTS).exists():
        with open_tensors(folder / WEIGHTS) as file:
            shapes = [info.shape for info in file.infos.values()]
        sizes += [
            len(shapes) <= TIGHT.tensors,
            max(max((*s, 0)) for s in shapes) <= TIGHT.dimension,
        ]
    if not all(sizes):
        raise FaultError("accepted beyond its limits")


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise HangError(f"took more than {SECONDS} s")


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    mine, other = (t.reshape(-1).view(torch.uint8) for t in (ours, theirs))
    return torch.equal(mine, other)


def _empty(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            Path(entry).unlink()


def _state(folder: Path) -> list[tuple[object, ...]]:
    """All that is in the working folder's inputs, and how they were changed last."""
    found: list[tuple[object, ...]] = []
    for root in (folder, folder.parent, folder.parent / "outside"):
        for entry in os.scandir(root):
            status = entry.stat(follow_symlinks=False)
            changed = 0 if entry.is_dir() else status.st_mtime_ns
            found.append((entry.path, status.st_mode, status.st_ino, changed))
    return sorted(found, key=str)


def _part(message: str, folder: Path) -> str:
    """Which file a refusal is about, for the table."""
    if not message.startswith(str(folder)):
        raise FaultError(f"the message does not begin with the folder: {message[:200]}")
    if len(message) > 4_000:
        raise FaultError(f"a message of {len(message):,} characters: {message[:200]}")
    about = message[len(str(folder)) + 1 :]
    return "settings" if about.startswith("adapter_config") else "weights"


# ---- children, so that memory has a limit and a crash is no end ----------------------------------


@dataclass(slots=True)
class Outcome:
    """What all inputs came to."""

    verdicts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0


def fuzz(
    start: int, count: int, seed: int, progress: Callable[[int], None] = lambda _: None
) -> Outcome:
    """Try inputs in child processes, each of which goes on until it ends or dies."""
    outcome, began = Outcome(), time.perf_counter()
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        index, turn = start, 0
        while index < start + count:
            turn += 1
            work = Path(folder) / str(turn)
            work.mkdir()
            index = _in_child(work, index, start + count, seed, outcome, progress)
            shutil.rmtree(work)
    outcome.seconds = time.perf_counter() - began
    return outcome


def _in_child(
    work: Path, index: int, end: int, seed: int, outcome: Outcome, progress: Callable[[int], None]
) -> int:
    """Inputs from ``index`` on, in one child; where to go on."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            with os.fdopen(writer, "w", buffering=1) as pipe:
                _child(work, index, end, seed, lambda event: print(json.dumps(event), file=pipe))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        for line in pipe:
            kind, value = json.loads(line)
            if kind == "verdict":
                outcome.verdicts[value] += 1
            elif kind == "fault":
                outcome.faults.append((index, value))
            index += 1
            progress(index)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if index < end:
        outcome.faults.append((index, f"the process died, status {status}"))
        index += 1
    return index


def _child(
    work: Path, start: int, end: int, seed: int, tell: Callable[[tuple[str, str]], None]
) -> None:
    torch.set_num_threads(1)
    fuzzer = Fuzzer(work, seed)
    _limit_memory()
    gc.freeze()  # a thousand small lists in a config should not have all of PyTorch looked through
    for index in range(start, end):
        try:
            tell(("verdict", fuzzer.try_one(index)))
        except (Exception, HangError) as error:
            tell(("fault", f"{type(error).__name__}: {error}"[:500]))


def _limit_memory() -> None:
    """Let the address space grow by :data:`MEMORY` at most; what is there already are libraries."""
    torch.linalg.svd(torch.eye(3))  # libraries that load late
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def document(outcome: Outcome, start: int, count: int, seed: int) -> str:
    """The result as Markdown."""
    total = sum(outcome.verdicts.values())
    rows = [f"| {name} | {n:,} | {n / max(1, total):.1%} |" for name, n in outcome.verdicts.most_common()]  # fmt: skip
    faults = [f"- input {index}: {what}" for index, what in outcome.faults[:50]]
    return "\n".join(
        [
            "# Hostile adapter folders",
            "",
            f"    python benchmarks/fuzz_folders.py --count {count} --seed {seed} --start {start}",
            "",
            f"{count:,} inputs, each a folder that PEFT wrote with one to three of {len(CHANGES)} kinds of changes, in "
            f"{outcome.seconds:,.0f} s on one core ({count / outcome.seconds:,.0f} a second). **{len(outcome.faults)} faults**: "
            "no error but florana's own, no crash, none above ten seconds, no growth above "
            f"{MEMORY // 2**20} MiB of address space, nothing written outside the output folder, and everything accepted "
            "agrees with safetensors."
            if not outcome.faults
            else f"{count:,} inputs, **{len(outcome.faults)} faults**.",
            "",
            "Refused is what a message names a fault in; not aggregated is what `aggregate` or `save_adapter` refuse, such as values "
            "that overflow. One in ten inputs is read with tight limits.",
            "",
            "| verdict | inputs | share |",
            "| --- | ---: | ---: |",
            *rows,
            *(["", "## Faults", "", *faults] if faults else []),
            "",
        ]
    )


def main() -> None:
    """Run, show how far it is, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()

    def progress(index: int) -> None:
        if index % 5_000 == 0:
            done = index - options.start
            rate = done / (time.perf_counter() - began)
            print(f"{done:,} of {options.count:,}, {rate:,.0f} a second", file=sys.stderr, flush=True)  # fmt: skip

    outcome = fuzz(options.start, options.count, options.seed, progress)
    text = document(outcome, options.start, options.count, options.seed)
    if options.out:
        options.out.write_text(text)
    print(text)
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
