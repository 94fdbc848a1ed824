"""The server half of a run, on any engine: rounds, a checkpoint after each, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from florana.adapter import ClientUpdate
from florana.aggregators import GlobalState, build, plan_of
from florana.experiments.checkpoint import Checkpoint
from florana.experiments.events import (
    ClientLeftOut,
    ClientTested,
    Note,
    Prepared,
    RoundRow,
    Summary,
    Watch,
)
from florana.experiments.float_weights import FloatWeights
from florana.experiments.flower_log import flower_log_in
from florana.experiments.metrics import (
    SECONDS,
    client_line,
    mean_score,
    module_details,
    round_line,
    round_row,
    row_of,
    scored,
)
from florana.experiments.round_clock import RoundClock
from florana.experiments.run_folder import RunFolder
from florana.experiments.scoring import Scorer, held_of
from florana.experiments.setup import ServerSide
from florana.federation.outcome import RoundOutcome
from florana.federation.records import Held
from florana.federation.strategy import LoraStrategy


class ServerHalf:
    """The rounds of one run, from a checkpoint to the end. It knows nothing of the engine but its grid.

    Args:
        side: model, test set, first state.
        folder: where everything is written.
        watch: told everything that happens.
        clients: clients in this process; 0 if they are elsewhere. They then keep what they must on their own
            disks, under the run's key, and what they have at home cannot be tested here.
        states: what clients in this process remember.
        trained: seconds of training in this process so far.
    """

    def __init__(
        self,
        side: ServerSide,
        folder: RunFolder,
        watch: Watch,
        *,
        clients: int = 0,
        states: Callable[[], Mapping[int, RecordDict]] = dict,
        trained: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._side, self._folder, self._watch = side, folder, watch
        self._config = side.config
        self._local, self._states = clients, states
        self._trained = trained if clients else None
        self._scorer = Scorer(side, states)
        self._metric = side.objective.metrics[0]
        self._rounds = self._config.federation.rounds
        plan = plan_of(build(self._config.method.name, self._config.method.options), 1)
        self._clients_score = side.test is None or bool(plan.home and not clients)

    def finish(self, checkpoint: Checkpoint, grid: Grid) -> Summary:
        """Do the rounds that are left, and write how the run ended.

        Raises:
            FloranaError: if a round cannot be done; all earlier ones are saved.
        """
        self._started, self._clock = time.perf_counter(), RoundClock(self._trained)
        self._done = checkpoint
        rounds_done = checkpoint.state.server_round
        for note in self._side.notes:
            self._watch(Note(note))
        self._watch(Prepared(self._side.provenance, self._folder.path, rounds_done))
        if not checkpoint.metrics_size and checkpoint.unscored is None:
            if self._start_is_scored_first:
                self._write_round_0()
        else:
            for line in self._folder.read_metrics():
                if line["kind"] == "round" and line["round"] <= rounds_done:
                    self._watch(row_of(line))
        if self._done.state.server_round < self._rounds or self._done.unscored is not None:
            with flower_log_in(self._folder.path / "flower.log"):
                self._do_rounds(grid)
        return self._write_summary()

    def _do_rounds(self, grid: Grid) -> None:
        federation, method = self._config.federation, self._config.method
        everybody = self._local or federation.clients
        self._strategy = LoraStrategy(
            self._done.state,
            method.name,
            method.options,
            server=self._config.server,
            base_weights=self._frozen_weights(),
            participation=federation.participation if everybody > 1 else 1.0,
            min_clients=min(federation.min_clients, everybody),
            seed=self._config.seed,
            uplink=federation.uplink,
            downlink=federation.downlink,
            known=self._done.known,
            memory=self._done.strategy,
            partitions=None if self._local else federation.clients,
            wait_seconds=federation.wait_seconds,
            deadline_seconds=federation.deadline_seconds,
            max_norm=federation.max_norm,
            spool=self._folder.path,
            on_round=self._finish_round,
            on_left_out=lambda r, client, reason: self._watch(ClientLeftOut(r, client, reason)),
            on_note=lambda text: self._watch(Note(text)),
        )
        told = self._told()
        left = self._rounds - self._done.state.server_round
        if left:
            self._strategy.start(grid, self._strategy.initial_arrays(), left, train_config=told)
        if self._done.unscored is not None:
            score = mean_score(self._strategy.score_clients(grid, told).values())
            line = scored(self._done.unscored, score, self._metric)
            self._commit([line], replace(self._done, unscored=None), line, self._done.state)

    def _told(self) -> ConfigRecord:
        """What clients elsewhere are told beside the plan."""
        if self._local:
            return ConfigRecord()
        key = str(self._side.provenance["key"])
        return ConfigRecord({"run-key": key, "score": self._clients_score})

    def _frozen_weights(self) -> Mapping[str, Tensor] | None:
        """The weights that DoRA and HiRA aggregate beside, without F."""
        if self._config.lora.variant == "lora":
            return None
        return FloatWeights(self._side.model.base_weights)

    @property
    def _start_is_scored_first(self) -> bool:
        """Whether the start has to be scored before the first round, and not after it, when training has begun.

        It has to if clients score it, or if what they keep at home from the first round on would enter. Where clients are
        elsewhere, it is there if none of them can be had.
        """
        plan = plan_of(build(self._config.method.name, self._config.method.options), 1)
        return not self._local or self._clients_score or bool(plan.home)

    def _write_round_0(self) -> None:
        """The untrained start, so that every curve begins at the same point."""
        state = self._done.state
        self._folder.write_adapter("best", self._scorer.export(state))  # until a round is better
        if self._clients_score:
            size = self._folder.append_metrics([], after=0)
            line = round_line(RoundRow(0, 0.0, 0.0))
            self._save(Checkpoint(state, metrics_size=size, unscored=line))
        else:
            score = self._scorer.score(held_of(state))
            line = scored(round_line(RoundRow(0, 0.0, 0.0)), score, self._metric)
            self._commit([line], Checkpoint(state), line, state)
        self._clock.note("evaluation")
        self._folder.append_timing(0, {"training": 0.0, **self._clock.take()})

    def _finish_round(self, outcome: RoundOutcome) -> None:
        """Evaluate, write metrics, then the checkpoint that makes the round count."""
        slowest = max((told.get(SECONDS, 0.0) for told in outcome.metrics.values()), default=0.0)
        self._clock.note_training(slowest)
        if not self._done.metrics_size and self._done.unscored is None:
            seconds = self._clock.take()
            self._write_round_0()
            self._clock.give_back(seconds)
        row = round_row(outcome, self._metric)  # makes the error report, which is made when read
        self._clock.note("error_report")
        score = None if self._clients_score else self._scorer.score_round(outcome)
        self._clock.note("evaluation")
        clients = [self._client_line(outcome, update) for update in outcome.updates]
        self._clock.note("last_clients")
        line = round_line(row, module_details(outcome))
        after = replace(
            self._done,
            state=outcome.state,
            known=self._strategy.known,
            clients=self._states(),
            strategy=self._strategy.memory,
        )
        if score is not None:
            line = scored(line, score, self._metric)
            self._commit([*clients, line], after, line, outcome.state)
        elif self._done.unscored is not None:
            told = mean_score(outcome.metrics.values())
            earlier = scored(self._done.unscored, told, self._metric)
            self._commit(
                [earlier, *clients], replace(after, unscored=line), earlier, outcome.before
            )
        self._clock.note("writing")
        self._folder.append_timing(outcome.server_round, self._clock.take())

    def _commit(
        self,
        lines: Sequence[Mapping[str, Any]],
        checkpoint: Checkpoint,
        judged: Mapping[str, Any],
        state: GlobalState,
    ) -> None:
        """Write lines, the adapter if it is the best so far, then the checkpoint.

        Args:
            lines: for metrics.jsonl.
            checkpoint: all but the size of metrics.jsonl and what is best.
            judged: the line that says how good ``state`` is.
            state: a state whose score is new.
        """
        size = self._folder.append_metrics(lines, after=self._done.metrics_size)
        checkpoint = replace(checkpoint, metrics_size=size)
        best = self._done.best_score
        if best is None or self._metric.better(judged["score"], best):
            self._folder.write_adapter("best", self._scorer.export(state))
            checkpoint = replace(checkpoint, best_round=judged["round"], best_score=judged["score"])
        self._save(checkpoint)
        self._watch(row_of(judged))

    def _save(self, checkpoint: Checkpoint) -> None:
        self._folder.write_checkpoint(checkpoint)
        self._done = checkpoint

    def _client_line(self, outcome: RoundOutcome, update: ClientUpdate) -> dict[str, Any]:
        """A client's line; after the last round, also its own model on the global test set."""
        line = client_line(outcome, update)
        if outcome.server_round == self._rounds and not self._clients_score:
            client = int(update.client_id)
            self._watch(ClientTested(client))
            own = self._scorer.own(client, Held(update.adapter, outcome.before.residual))
            line["global_score"] = self._scorer.score(own).value
        return line

    def _write_summary(self) -> Summary:
        state = self._done.state
        self._folder.write_adapter("final", self._scorer.export(state))
        for client, own in self._scorer.export_own(state):
            self._folder.write_adapter(f"clients/{client}", own)
        lines = list(self._folder.read_metrics())
        last = [line for line in lines if line["kind"] == "round"][-1]
        key = "score" if self._clients_score else "global_score"
        best = max(
            (line for line in lines if line["kind"] == "client" and key in line),
            key=lambda line: (line["round"], self._metric.lead(line[key], 0.0)),
        )
        fields = {
            "rounds": self._rounds,
            "score": last["score"],
            "loss": last["loss"],
            "best_round": self._done.best_round,
            "best_score": self._done.best_score,
            "best_client": f"client {best['client']}",
            "best_client_score": best[key],
            "metrics": last["metrics"],
        }
        self._folder.write_summary(fields)
        summary = Summary(**fields, seconds=time.perf_counter() - self._started)
        self._watch(summary)
        return summary
