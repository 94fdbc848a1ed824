"""Clients, rounds, the spread of the data, and the engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from florana.config._section import Codec, Count, Name, Positive, Section
from florana.tasks.partition import Quantity, Scheme


class FederationConfig(Section):
    """Clients, rounds, and how the data is spread.

    ``participation`` is the share of clients drawn for a round; a round with fewer than
    ``min_clients`` usable replies stops the run. ``partition``: ``iid``; ``dirichlet``, label skew,
    stronger for a small ``dirichlet_alpha``; ``label``, ``labels_per_client`` shards sorted by label;
    ``column``, all of one value of ``column`` together. With ``column``, ``dirichlet`` and ``label`` skew that column in
    place of the label. Each client of a classification has ``min_labels`` or more. ``quantity`` makes clients of ``iid``
    and ``dirichlet`` unlike in size: ``dirichlet``, more so for a small ``quantity_alpha``, or ``lognormal``, for a
    large ``quantity_sigma``.
    ``uplink`` and ``downlink`` are the number formats on the wire: float32, or float16, bfloat16 or int8 with
    error feedback.
    ``engine`` is where ``florana run`` has its clients: in this process, or on Flower's ``simulation``. On Flower's engines
    a round waits ``wait_seconds`` for enough nodes, and a client that takes longer than ``deadline_seconds``
    for its part of a round is left out of it. ``clients_at_once`` clients of engine ``local`` are trained in one pass of the
    base; ``auto`` measures how many pay. An update ΔW whose norm is above ``max_norm`` is refused.
    """

    clients: Annotated[int, Field(ge=2)] = 10
    rounds: Count = 6
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_clients: Count = 2
    partition: Scheme = "dirichlet"
    dirichlet_alpha: Positive = 0.3
    labels_per_client: Count = 2
    min_labels: Count = 2
    column: Name | None = None
    quantity: Quantity | None = None
    quantity_alpha: Positive = 0.5
    quantity_sigma: Positive = 1.0
    uplink: Codec = "float32"
    downlink: Codec = "float32"
    engine: Literal["local", "simulation"] = "local"
    wait_seconds: Positive = 600.0
    deadline_seconds: Positive | None = None
    max_norm: Positive | None = None
    clients_at_once: Count | Literal["auto"] = 1

    @model_validator(mode="after")
    def _fits_together(self) -> FederationConfig:
        misfits = []
        if self.partition == "column" and self.column is None:
            misfits.append("partition = 'column' needs federation.column")
        if self.quantity is not None and self.partition not in ("iid", "dirichlet"):
            misfits.append(
                f"quantity = {self.quantity!r} is of partition = 'iid' or 'dirichlet'; {self.partition!r} decides how "
                "many examples a client gets"
            )
        if self.min_clients > sampled_clients(self):
            misfits.append(
                f"min_clients = {self.min_clients} is more than the "
                f"{sampled_clients(self)} clients drawn in a round"
            )
        if self.engine != "local" and self.clients_at_once != 1:
            misfits.append(
                f"clients_at_once = {self.clients_at_once} is of engine 'local'; on {self.engine!r} every client has a process"
            )
        if misfits:
            raise ValueError("; ".join(misfits))
        return self


def sampled_clients(federation: FederationConfig) -> int:
    """Clients drawn for each round: the share ``participation`` of all, at least one."""
    return max(1, round(federation.participation * federation.clients))


class SimulationConfig(Section):
    """What one client of ``federation.engine = "simulation"`` gets of this machine.

    As many clients train at a time as their shares go into ``cpus`` and ``gpus``, by default all that Ray finds. A
    client computes with as many threads as it has whole CPUs, at least one, unless ``threads`` says otherwise.
    """

    client_cpus: Positive = 1.0
    client_gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    cpus: Count | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
