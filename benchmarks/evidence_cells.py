"""One cell of the evidence: a setting, its start, and what its clients make of it.

Local training in a round does not depend on how the server will aggregate. So a cell trains its clients once,
takes their adapters after several numbers of steps, and keeps them under ``runs/evidence``; the comparison of
operators, in :mod:`evidence_operators`, needs no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from florana import Adapter, ClientUpdate, aggregate
from florana.config import RunConfig, load_config
from florana.experiments.setup import Experiment
from florana.seeding import generator, torch_seed
from florana.training.examples import Examples, sample_batches
from florana.training.lora_model import LoraModel

Skew = Literal["0.1", "0.3", "1", "iid"]
Start = Literal["fresh", "warm"]

SKEWS: tuple[Skew, ...] = ("0.1", "0.3", "1", "iid")
STEPS = (5, 8, 20)
"""Numbers of local steps after which a cell's adapters are taken; some cells go on to :data:`LONG`."""

LONG = 80
WARM_ROUNDS, WARM_STEPS = 3, 20
TASKS = Path(__file__).parent / "tasks"
KEPT = Path(__file__).parents[1] / "runs" / "evidence"


@dataclass(frozen=True, slots=True)
class Cell:
    """Everything that local training depends on; the aggregation operator is not in it.

    Args:
        task: a configuration under ``benchmarks/tasks``: data, text length, number of clients, batch size.
        skew: α of the Dirichlet label skew, or ``"iid"``.
        learning_rate: AdamW's, constant over the round.
        rank: LoRA's r; alpha is 2 r.
        start: ``"fresh"`` is round 1 (random head, B = 0), ``"warm"`` follows three rounds of plain
            averaging, 20 steps each, at the same settings.
        seed: of partition, start and batches.
        bf16: whether matrix products are computed in bfloat16.
    """

    task: str
    skew: Skew
    learning_rate: float = 1e-2
    rank: int = 8
    start: Start = "fresh"
    seed: int = 0
    bf16: bool = True

    @property
    def settings(self) -> dict[str, object]:
        """What identifies the cell in the results."""
        return asdict(self)

    def config(self) -> RunConfig:
        """The configuration of the federation whose single round is looked at."""
        scheme = (
            ["federation.partition=iid"]
            if self.skew == "iid"
            else [f"federation.dirichlet_alpha={self.skew}"]
        )
        return load_config(
            TASKS / f"{self.task}.toml",
            [
                f"seed={self.seed}",
                "device=cpu",
                "threads=1",
                *scheme,
                f"lora.rank={self.rank}",
                f"lora.alpha={2 * self.rank}",
                f"training.learning_rate={self.learning_rate}",
                f"training.bf16={str(self.bf16).lower()}",
            ],
        )


class Trained(NamedTuple):
    """What every client started from, and number of steps -> every client's update."""

    start: Adapter
    updates: Mapping[int, Sequence[ClientUpdate]]


FULL: tuple[Cell, ...] = (
    *(Cell(task, "0.3") for task in ("ag_news", "banking77", "docstrings", "sst2")),
    Cell("ag_news", "0.3", start="warm"),
)
"""Cells in which every operator is compared, after 8 and 20 steps."""

FACTORS = ("ag_news", "docstrings")
"""Tasks on which skew, learning rate and rank are varied; sst2 and banking77 join at a few settings."""


def grid() -> Iterator[tuple[Cell, tuple[int, ...]]]:
    """The other cells and their numbers of steps, the most telling first."""
    for rate in (3e-3, 1e-2):
        for skew in SKEWS:
            for task in FACTORS:
                yield Cell(task, skew, rate), (5, 20)
    for task in FACTORS:
        yield Cell(task, "0.1", 3e-3), (LONG,)
        yield Cell(task, "0.3", 1e-2), (LONG,)
    for rank in (2, 16):
        for task in FACTORS:
            yield Cell(task, "0.3", rank=rank), (20,)
    others: tuple[tuple[str, Skew], ...] = (("sst2", "0.3"), ("banking77", "0.1"))
    for task, skew in others:
        yield Cell(task, skew, 3e-3), (5, 20)
        yield Cell(task, "iid", 3e-3), (20,)
    for task in ("docstrings", "sst2", "banking77"):
        yield Cell(task, "0.3", start="warm"), (20,)
    for task in FACTORS:
        yield Cell(task, "0.1", 3e-3, start="warm"), (20,)
    for task in ("ag_news", "banking77", "docstrings", "sst2"):
        yield Cell(task, "0.3", seed=1), (20,)


def units() -> Iterator[tuple[Cell, int]]:
    """Cells with numbers of steps, in the order in which they are judged."""
    found = {(cell, steps): None for cell in FULL for steps in (8, 20)}
    found |= {(cell, steps): None for cell, counts in grid() for steps in counts}
    yield from found


def has_every_operator(cell: Cell, steps: int) -> bool:
    """Whether all operators are compared here, or :data:`evidence_operators.CORE` alone."""
    return cell in FULL and steps in (8, 20)


def trained(experiment: Experiment, cell: Cell, steps: int) -> Trained:
    """The cell's clients, from disk where they were trained before."""
    KEPT.mkdir(parents=True, exist_ok=True)
    name = "-".join(f"{value}" for value in cell.settings.values())
    path = KEPT / f"{name}.pt"
    form = experiment.model.initial
    kept: dict[str, Any] = torch.load(path) if path.exists() else {}
    if steps not in kept.get("updates", {}):
        start = form.with_tensors(kept["start"]) if kept else _start(experiment, cell)
        server_round = WARM_ROUNDS + 1 if cell.start == "warm" else 1
        counts = STEPS if steps in STEPS else (*STEPS, LONG)
        made = _train_clients(experiment, cell, start, server_round, counts)
        updates = {n: [dict(u.adapter.tensors()) for u in of] for n, of in made.items()}
        kept = {"start": dict(start.tensors()), "updates": updates}
        draft = path.with_suffix(".tmp")
        torch.save(kept, draft)
        draft.replace(path)
    sizes = [len(data.train) for data in experiment.clients]
    return Trained(
        form.with_tensors(kept["start"]),
        {
            n: [
                ClientUpdate(str(u), size, form.with_tensors(tensors))
                for u, (size, tensors) in enumerate(zip(sizes, of, strict=True))
            ]
            for n, of in kept["updates"].items()
        },
    )


def _start(experiment: Experiment, cell: Cell) -> Adapter:
    """The adapter that every client starts from."""
    adapter = experiment.model.initial
    if cell.start == "fresh":
        return adapter
    for server_round in range(1, WARM_ROUNDS + 1):
        trained = _train_clients(experiment, cell, adapter, server_round, (WARM_STEPS,))
        adapter = aggregate(trained[WARM_STEPS], "fedit").trained
    return adapter


def _train_clients(
    experiment: Experiment, cell: Cell, start: Adapter, server_round: int, steps: Sequence[int]
) -> dict[int, list[ClientUpdate]]:
    """Number of steps -> every client's update after so many steps from ``start``."""
    made: dict[int, list[ClientUpdate]] = {count: [] for count in steps}
    for client, data in enumerate(experiment.clients):
        experiment.model.load(start)
        place = (server_round, client)
        rng = generator(cell.seed, "batches", *place)
        with torch.random.fork_rng(devices=[]):  # the base model's own dropout
            torch.manual_seed(torch_seed(cell.seed, "dropout", *place))
            snapshots = _train(experiment.model, data.train, experiment.config, rng, steps)
        for count, adapter in snapshots.items():
            made[count].append(ClientUpdate(str(client), len(data.train), adapter))
    return made


def _train(
    model: LoraModel,
    examples: Examples,
    config: RunConfig,
    rng: np.random.Generator,
    steps: Sequence[int],
) -> Mapping[int, Adapter]:
    """The loop of ``florana.training.loop.train`` at a constant rate, with a copy taken at each of ``steps``."""
    settings = config.training
    optimizer = torch.optim.AdamW(
        model.parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    model.module.train()
    taken: dict[int, Adapter] = {}
    batches = sample_batches(len(examples), settings.batch_size, max(steps), rng)
    for step, chosen in enumerate(batches, start=1):
        inputs, labels = examples.batch(chosen, model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.bf16):
            logits = model.module(**inputs).logits
            loss = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters, settings.clip, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        if step in steps:
            taken[step] = model.take()
    return taken
