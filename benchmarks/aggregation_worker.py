"""One measurement in a process of its own; started by aggregation.py, and prints one line of JSON.

python benchmarks/aggregation_worker.py memory NAME SIZE CLIENTS     # peak memory of one call
python benchmarks/aggregation_worker.py time NAMES SIZE CLIENTS      # time and error of several, in turn
"""

from __future__ import annotations

import gc
import json
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from aggregation_contestants import CONTESTANTS, RANK, Case, Ready

from florana.lowrank import Product

SECONDS = 20.0
"""A contestant is repeated for about so long: from 3 to 25 times, and once if one call takes longer."""

MEMORY_LIMIT = 12 * 2**30
"""Bytes that a contestant may ask for, so that it fails and not the machine."""


def kibibytes(field: str) -> int:
    """A field of /proc/self/status, such as the peak VmHWM or the present VmRSS."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {field}; peak memory is measured on Linux only")
    return int(found[1])


def run_once(ready: Ready) -> tuple[float, Any]:
    """Seconds of one call, and what it gave."""
    began = time.perf_counter()
    made = ready.call()
    return time.perf_counter() - began, made


def warm_up(name: str) -> None:
    """Load what the first call loads, on a small case."""
    ready = CONTESTANTS[name].prepare(Case(64, 2))
    ready.call()
    ready.reset()


def memory(name: str, case: Case) -> dict[str, float]:
    """Peak memory of one call above what its inputs take, in bytes; and its time."""
    warm_up(name)
    ready = CONTESTANTS[name].prepare(case)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = kibibytes("VmRSS")
    seconds, _ = run_once(ready)
    return {"peak_bytes": 1024 * max(0, kibibytes("VmHWM") - before), "first_seconds": seconds}


def timing(names: Sequence[str], case: Case) -> dict[str, dict[str, Any]]:
    """Median time over repeats in turn, and error against T, of contestants that all fit."""
    prepared: dict[str, Ready] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    products: dict[str, Product] = {}
    for name in names:
        warm_up(name)
        prepared[name] = CONTESTANTS[name].prepare(case)
    for turn in range(26):
        for name, ready in prepared.items():
            done = times[name]
            if is_enough(done):
                continue
            seconds, made = run_once(ready)
            if turn == 0:  # not timed: the first call of a size pays for its memory
                products[name] = copied(ready.product(made))
            else:
                done.append(seconds)
            ready.reset()
            del made
    prepared.clear()
    errors = judged(products, case)
    return {
        name: {
            "seconds": median(times[name]),
            "fastest": min(times[name]),
            "repeats": len(times[name]),
            **errors[name],
        }
        for name in names
    }


def is_enough(done: Sequence[float]) -> bool:
    """Whether these repeats will do."""
    slow = bool(done) and done[0] > SECONDS
    return slow or (len(done) >= 3 and sum(done) + median(done) > SECONDS)


def copied(product: Product) -> Product:
    """In memory of its own, since ``reset`` may free it."""
    return Product(product.B.clone(), product.A.clone())


def judged(products: Mapping[str, Product], case: Case) -> dict[str, dict[str, float]]:
    """Error of every product, dense and in float64, beside the least that rank 8 can reach."""
    T = case.dense(torch.float64)
    S = torch.linalg.svdvals(T)
    size = torch.linalg.vector_norm(S)
    least = float(torch.linalg.vector_norm(S[RANK:]) / size)
    return {
        name: {
            "error": float(torch.linalg.matrix_norm(T - p.B.double() @ p.A.double()) / size),
            "least": least,
        }
        for name, p in products.items()
    }


def main() -> None:
    """Measure and print."""
    what, names, size, clients, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    case = Case(int(size), int(clients))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    found = memory(names, case) if what == "memory" else timing(names.split(","), case)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
