"""What each saving in the training loop and in evaluation saves: CPU milliseconds per example, step by step.

    python benchmarks/training_profile.py                    # MiniLM on the docstrings, one thread
    python benchmarks/training_profile.py --operators        # and where the time of the last way goes
    python benchmarks/training_profile.py --pages            # what memory costs that is given back and asked for again

Ways take turns in one process, --repeats times; the least time of each counts, since whatever else the machine does only adds
to it. Every way trains the same batches of the same clients.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rounds_worker import settings
from torch import Tensor

from florana.config import load_config
from florana.experiments.setup import Experiment, prepare
from florana.training import together
from florana.training.loop import Place, train_in_peft
from florana.training.together import frozen_linear, training
from florana.training.together.batches import TOKENS, chunks, read
from florana.training.together.dropout import keep
from florana.training.together.reading import NOTHING

CLIENTS = 8
ROWS = 1024
"""Rows of the matrix that masks are made for; MiniLM's width is 384."""


@contextmanager
def torchs_products() -> Iterator[None]:
    """Without oneDNN's float32 products."""
    before = frozen_linear.onednn_serves
    frozen_linear.onednn_serves = lambda: False  # type: ignore[assignment]
    try:
        yield
    finally:
        frozen_linear.onednn_serves = before


def in_peft(experiment: Experiment, clients: int) -> None:
    """PEFT's layers, torch's dropout and optimiser."""
    for client in range(clients):
        experiment.model.load(experiment.model.initial)
        train_in_peft(
            experiment.model,
            experiment.clients[client].train,
            experiment.objective,
            experiment.training,
            place(client),
        )


def in_groups(experiment: Experiment, clients: int, size: int, *, whole: bool = False) -> None:
    """Florana's layers, so many clients at a time; ``whole``: with every token in the last layer."""
    model = experiment.model
    found = together.fit(model, experiment.clients[0].train)
    if whole:
        found = replace(found, reads=NOTHING)
    model.load(model.initial)
    for begin in range(0, clients, size):
        jobs = [
            together.Job(together.held(model), experiment.clients[c].train, place(c))
            for c in range(begin, begin + size)
        ]
        together.train_together(
            model,
            jobs,
            experiment.objective,
            experiment.training,
            found=found,
        )


def place(client: int) -> Place:
    """Round 1 of 2."""
    return Place(0, 1, 2, client)


def with_torchs_products(experiment: Experiment, clients: int) -> None:
    """Florana's layers on torch's own BLAS."""
    with torchs_products():
        in_groups(experiment, clients, 1)


def evaluate(experiment: Experiment, *, merged: bool) -> None:
    """The first client's own model on its own held-out text."""
    model, data = experiment.model, experiment.clients[0].test
    if not merged:
        experiment.objective.evaluate(model, data)
        return
    with together.merged(model, data):
        experiment.objective.evaluate(model, data)


def evaluate_with_torchs_products(experiment: Experiment) -> None:
    """Merged weights on torch's own BLAS."""
    with torchs_products():
        evaluate(experiment, merged=True)


def mask_by_key() -> Tensor:
    """Florana's dropout mask."""
    keys = torch.arange(ROWS // 32, dtype=torch.int32)
    return keep(keys, 1, torch.Size((ROWS // 32, 32, 384)), 0.1, torch.float32)


def mask_of_torch() -> Tensor:
    """The mask that torch's dropout draws."""
    return torch.empty(ROWS // 32, 32, 384).bernoulli_(0.9).div_(0.9)


def products() -> None:
    """GFLOP/s of x Wᵀ for MiniLM's shapes, least times of twenty."""
    print("\n| d_in, d_out | rows | torch's BLAS | oneDNN |\n| --- | ---: | ---: | ---: |")
    for d_in, d_out in ((384, 384), (384, 1536), (1536, 384)):
        weight = torch.randn(d_out, d_in)
        for rows in (128, 1024):
            x = torch.randn(rows, d_in)

            def product(x: Tensor = x, weight: Tensor = weight) -> None:
                for _ in range(10):
                    frozen_linear.multiply(x, weight, None)

            def torchs(product: Callable[[], None] = product) -> None:
                with torchs_products():
                    product()

            took = least({"torch": torchs, "oneDNN": product}, 20)
            work = 10 * 2e-9 * rows * d_in * d_out
            said = " | ".join(f"{work / seconds:.0f}" for seconds in took.values())
            print(f"| {d_in}, {d_out} | {rows:,} | {said} |")


def padding(experiment: Experiment) -> None:
    """Tokens per row of the clients' first batches: their own, padded to the longest, and in sorted chunks."""
    readings = [
        read(experiment.clients[client].train, experiment.training, place(client))
        for client in range(CLIENTS)
    ]
    cpu = torch.device("cpu")
    whole = [chunks([reading], 0, cpu, 10**9)[0].inputs["attention_mask"] for reading in readings]
    cut = [chunk.inputs["attention_mask"] for chunk in chunks(readings, 0, cpu, TOKENS["cpu"])]
    rows = sum(len(mask) for mask in whole)
    own, padded, sorted_ = (
        sum(int(mask.sum()) for mask in whole) / rows,
        sum(mask.numel() for mask in whole) / rows,
        sum(mask.numel() for mask in cut) / rows,
    )
    print(f"\ntokens per row: {own:.1f}, padded {padded:.1f}, in sorted chunks {sorted_:.1f}")


def reading(folder: Path, threads: int) -> None:
    """A decoder whose answer is read at the last token: with the last layer whole, and at that token alone."""
    given = argparse.Namespace(
        clients=CLIENTS, steps=2, batch_size=16, threads=threads, model="decoder"
    )
    experiment = prepare(settings(given, folder))
    ways: dict[str, Callable[[], object]] = {
        "all tokens": lambda: in_groups(experiment, CLIENTS, CLIENTS, whole=True),
        "the token that is read": lambda: in_groups(experiment, CLIENTS, CLIENTS),
    }
    table("decoder, last layer", least(ways, 4), CLIENTS * 2 * 16, "CPU ms per example")


def pages(experiment: Experiment, count: int) -> None:
    """In a fresh process: eight clients at once with the allocator as it is, and then as florana sets it."""
    name_of = "keep_freed_memory"
    kept = getattr(training, name_of)
    setattr(training, name_of, lambda: False)
    for name in ("as it is", "freed memory kept"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds = least({name: lambda: in_groups(experiment, CLIENTS, CLIENTS)}, 4)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        each = 1000 * seconds[name] / count
        print(
            f"allocator {name}: {each:.3g} CPU ms and {faults / (5 * count):.0f} page faults per example"
        )
        setattr(training, name_of, kept)


def least(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least CPU seconds of each way, after one unmeasured turn."""
    for way in ways.values():
        way()
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.process_time()
            way()
            found[name] = min(found[name], time.process_time() - began)
    return found


def table(title: str, seconds: dict[str, float], count: int, unit: str) -> None:
    """Print it as Markdown."""
    before = next(iter(seconds.values()))
    print(f"\n| {title} | {unit} | times the first |\n| --- | ---: | ---: |")
    for name, took in seconds.items():
        print(f"| {name} | {1000 * took / count:.3g} | {before / took:.2f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--operators", action="store_true", help="profile the last way")
    parser.add_argument("--pages", action="store_true", help="only the allocator, by itself")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            f"federation.clients={CLIENTS}",
            "training.steps=2",
            f"threads={given.threads}",
            f"output='{Path(folder) / 'run'}'",
        ]
        experiment = prepare(load_config(None, [*chosen, *given.set]))
    if given.pages:
        pages(experiment, CLIENTS * 2 * experiment.training.batch_size)
        return
    ways: dict[str, Callable[[], object]] = {
        "PEFT's layers, torch's dropout": lambda: in_peft(experiment, CLIENTS),
        "florana's layers and dropout": lambda: with_torchs_products(experiment, CLIENTS),
        "and oneDNN's products": lambda: in_groups(experiment, CLIENTS, 1),
        "and eight clients at once": lambda: in_groups(experiment, CLIENTS, CLIENTS),
    }
    config = experiment.training
    examples = CLIENTS * (config.steps or 1) * config.batch_size * config.accumulation
    table("training", least(ways, given.repeats), examples, "CPU ms per example")
    tests: dict[str, Callable[[], object]] = {
        "PEFT's layers": lambda: evaluate(experiment, merged=False),
        "factors merged into the weights": lambda: evaluate_with_torchs_products(experiment),
        "and oneDNN's products": lambda: evaluate(experiment, merged=True),
    }
    count = len(experiment.clients[0].test)
    table("evaluation", least(tests, given.repeats), count, "CPU ms per example")
    masks = {"torch's": mask_of_torch, "by key": mask_by_key}
    table("dropout mask of 1,024 × 384", least({**masks}, 20), 1, "CPU ms")
    products()
    padding(experiment)
    with tempfile.TemporaryDirectory() as folder:
        reading(Path(folder), given.threads)
    if given.operators:
        with torch.profiler.profile() as profile:
            in_groups(experiment, CLIENTS, CLIENTS)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


if __name__ == "__main__":
    main()
