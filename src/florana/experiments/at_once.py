"""The clients of a round in groups that are trained at once, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import torch
from flwr.app import RecordDict

from florana.experiments.events import ClientStarted, Note, Watch
from florana.experiments.setup import Experiment
from florana.federation.client_app import LocalResult, Task, receive, reply
from florana.federation.local_grid import Asked
from florana.lowrank import Product
from florana.training import together


class AtOnce:
    """Answers the train messages of a group: reads all, trains all, replies to all.

    Args:
        experiment: the run's data, model and work.
        size: clients at a time.
        watch: told who starts, and why a group is trained one by one after all.
        one: trains a single client.
        spent: told how many seconds a group took.
    """

    def __init__(
        self,
        experiment: Experiment,
        size: int,
        watch: Watch,
        one: Callable[[Task], LocalResult],
        spent: Callable[[float], None],
    ) -> None:
        self._experiment, self.size = experiment, size
        self._watch, self._one, self._spent = watch, one, spent
        self._told: set[str] = set()

    def __call__(self, asked: Sequence[Asked], /) -> list[RecordDict | Exception]:
        """Each client's reply, or what it raised. One client's failure is that client's alone."""
        template = self._experiment.model.initial
        read = [_caught(receive, a.content, a.state, a.partition, template) for a in asked]
        tasks = [task for task in read if isinstance(task, Task)]
        results = iter(self._train(tasks))
        answers: list[RecordDict | Exception] = []
        for one, task in zip(asked, read, strict=True):
            result = next(results) if isinstance(task, Task) else task
            if isinstance(task, Task) and not isinstance(result, Exception):
                answers.append(_caught(reply, task, result, one.state))
            else:
                assert isinstance(result, Exception)
                answers.append(result)
        return answers

    def _train(self, tasks: Sequence[Task]) -> Sequence[LocalResult | Exception]:
        if not tasks:
            return []
        reason = self._reason(tasks)
        if reason is not None:
            if reason not in self._told:
                self._told.add(reason)
                self._watch(Note(f"clients are trained one by one: {reason}"))
            return [_caught(self._one, task) for task in tasks]
        for task in tasks:
            self._watch(ClientStarted(task.server_round, task.partition))
        clients = [task.partition for task in tasks]
        began = time.perf_counter()
        made = _caught(
            self._experiment.work.train_together,
            [self._experiment.clients[client] for client in clients],
            [task.start for task in tasks],
            tasks[0].plan,
            tasks[0].server_round,
            clients,
        )
        self._spent(time.perf_counter() - began)
        return [made] * len(tasks) if isinstance(made, Exception) else made

    def _reason(self, tasks: Sequence[Task]) -> str | None:
        """Why these clients cannot share a pass."""
        first = tasks[0]
        if any(task.plan != first.plan for task in tasks):
            return "they do not train the same parts"
        if any(not _same(task.start.residual, first.start.residual) for task in tasks):
            return "each has a frozen weight of its own"
        model, data = self._experiment.model, self._experiment.clients[first.partition]
        return together.fit(model, data.train, first.plan.train).reason


P = ParamSpec("P")
R = TypeVar("R")


def _caught(work: Callable[P, R], *given: P.args, **named: P.kwargs) -> R | Exception:
    """What work gives, or what it raises: that is one client's, as on every engine."""
    try:
        return work(*given, **named)
    except Exception as error:
        return error


def _same(first: Mapping[str, Product], second: Mapping[str, Product]) -> bool:
    """Whether two residuals have the same numbers."""
    if first is second:
        return True
    if first.keys() != second.keys():
        return False
    return all(
        torch.equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True)
    )
