"""What a state of the global model is worth, and as which adapter it leaves the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from flwr.app import RecordDict

from florana.adapter import Adapter
from florana.aggregators import GlobalState, with_residual
from florana.experiments.metrics import mean_of
from florana.experiments.setup import ServerSide
from florana.federation.client_app import own_model
from florana.federation.outcome import RoundOutcome
from florana.federation.records import Held
from florana.training import together
from florana.training.evaluation import Score


class Scorer:
    """Tests models on the global test set; with methods that keep parts at home, every client has its own model.

    Args:
        side: model, objective and test sets.
        states: what clients in this process remember, now; empty if they are elsewhere.
    """

    def __init__(self, side: ServerSide, states: Callable[[], Mapping[int, RecordDict]]) -> None:
        self._side, self._states = side, states
        self._model, self._objective = side.model, side.objective

    def score(self, held: Held) -> Score:
        """One model on the global test set, and on the second one if there is one."""
        test, second_test = self._side.test, self._side.second_test
        assert test is not None
        self._model.load(held.adapter, held.residual)
        bf16 = self._side.config.training.bf16
        with together.merged(self._model, test):
            score = self._objective.evaluate(self._model, test, bf16=bf16)
            if second_test is None:
                return score
            second = self._objective.evaluate(self._model, second_test, bf16=bf16)
        told = {f"{self._objective.metrics[0].name} (second test)": second.value}
        return score._replace(others={**score.others, **told})

    def score_round(self, outcome: RoundOutcome) -> Score:
        """The global model; of a method that keeps parts at home, the mean over every client's own."""
        shared = held_of(outcome.state)
        if outcome.plan.home:
            return mean_of([self.score(own) for _, own in self.own_models(shared)])
        return self.score(shared)

    def own(self, client: int, held: Held) -> Held:
        """A client's model with what it keeps at home; ``held`` itself if that is not known here."""
        states = self._states()
        return own_model(held, states[client], self._model.initial) if client in states else held

    def own_models(self, shared: Held) -> Iterator[tuple[int, Held]]:
        """Every client's own model, one at a time; ``shared`` itself where the client keeps nothing at home."""
        for client in sorted(self._states()):
            yield client, self.own(client, shared)

    def export(self, state: GlobalState) -> Adapter:
        """The result as one adapter; what clients keep at home enters with its mean, where it is known."""
        shared = held_of(state)
        if all(own is shared for _, own in self.own_models(shared)):
            return state.whole
        total = sum(self._side.sizes)
        mean = {name: torch.zeros_like(t).double() for name, t in state.adapter.tensors().items()}
        for (_, own), size in zip(self.own_models(shared), self._side.sizes, strict=True):
            for name, tensor in own.adapter.tensors().items():
                mean[name] += tensor.double() * (size / total)
        averaged = state.adapter.with_tensors({name: t.float() for name, t in mean.items()})
        return with_residual(averaged, state.residual)

    def export_own(self, state: GlobalState) -> Iterator[tuple[int, Adapter]]:
        """The adapter of every client that keeps something at home."""
        shared = held_of(state)
        for client, own in self.own_models(shared):
            if own is not shared:
                yield client, with_residual(own.adapter, own.residual)


def held_of(state: GlobalState) -> Held:
    """What a client holds that has all of a state."""
    return Held(state.adapter, state.residual)
