"""Where a piece of local training stands in a run, and the learning rate there."""

from __future__ import annotations

from dataclasses import dataclass

from florana.config import TrainingConfig


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run a piece of training happens; all its randomness and its schedule follow from it.

    Args:
        seed: the run's seed.
        server_round: 1 to ``num_rounds``.
        num_rounds: rounds of the whole run.
        client: index of the client.
    """

    seed: int
    server_round: int
    num_rounds: int
    client: int


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up over the first share ``warmup`` of the schedule, then linear decay to 0 at its end.

    Args:
        progress: share of the schedule's steps already done, in [0, 1).
        warmup: share in [0, 1).

    Example:
        >>> [round(learning_rate_factor(p, 0.2), 2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    return (1 - progress) / (1 - warmup)


def learning_rate(config: TrainingConfig, place: Place, step: int, steps: int) -> float:
    """The learning rate of step ``step`` (from 0) of ``steps`` in a round.

    Step k has progress (k + ½) / steps in a schedule that spans one round, and (t − 1 + (k + ½) / steps) / rounds in one
    that spans the run.

    Example:
        >>> config = TrainingConfig(steps=2, learning_rate=1.0, schedule="run")
        >>> learning_rate(config, Place(seed=0, server_round=2, num_rounds=2, client=0), 1, 2)
        0.125
    """
    progress = (step + 0.5) / steps
    if config.schedule == "run":
        progress = (place.server_round - 1 + progress) / place.num_rounds
    return config.learning_rate * learning_rate_factor(progress, config.warmup)
