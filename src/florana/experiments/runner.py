"""A whole run: rounds on a Flower strategy, a checkpoint after each, and how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from florana.adapter import Adapter, ClientUpdate
from florana.aggregators import with_residual
from florana.config import RunConfig
from florana.errors import RunError
from florana.experiments.events import (
    ClientLeftOut,
    ClientStarted,
    ClientTested,
    Event,
    Prepared,
    RoundRow,
    Summary,
)
from florana.experiments.run_folder import Checkpoint, RunFolder, free_folder, refuse_used
from florana.experiments.setup import Experiment, prepare
from florana.federation.client_app import LocalResult, build_client_app
from florana.federation.local_grid import LocalGrid
from florana.federation.strategy import LoraStrategy, RoundOutcome
from florana.lowrank import Product
from florana.training.evaluation import evaluate
from florana.training.loop import Place, train

Watch = Callable[[Event], None]


def start(config: RunConfig, watch: Watch) -> Summary:
    """Do a new run.

    Args:
        config: the checked configuration.
        watch: told everything that happens.

    Raises:
        FloranaError: if the run cannot be set up, or cannot go on.
    """
    if config.output is not None:
        refuse_used(Path(config.output))  # before a minute of set-up, not after it
    experiment = prepare(config)
    stem = f"{Path(config.data.source).stem}-{config.method.name}-seed{config.seed}"
    path = Path(config.output) if config.output else free_folder(Path("runs"), stem)
    folder = RunFolder.create(path, config, experiment.provenance)
    return _Run(experiment, folder, watch).finish(_first_checkpoint(experiment))


def resume(path: Path, watch: Watch) -> Summary:
    """Go on with a run that was interrupted; a finished one is only told again.

    Raises:
        RunError: if there is no run, or its data or base model are no longer the same.
    """
    folder = RunFolder.open(path)
    before, config = folder.read_provenance(), folder.read_config()
    summary = folder.read_summary()
    if summary is not None:
        return Summary(**summary, seconds=0.0)
    experiment = prepare(config.model_copy(update={"threads": before["machine"]["threads"]}))
    _check_same(before, experiment.provenance, path)
    folder.write_config(config)
    checkpoint = folder.read_checkpoint(experiment.model.initial)
    if checkpoint is not None:
        folder.append_metrics(
            [], after=checkpoint.metrics_size
        )  # cut off what a kill left half written
    return _Run(experiment, folder, watch).finish(checkpoint or _first_checkpoint(experiment))


def _check_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """A resumed run must be the same run: same data, model and libraries."""
    for key in ("data", "base_model", "partition", "versions"):
        if before[key] != now[key]:
            raise RunError(
                f"{path} cannot be resumed: its {key} was {before[key]}, here it is {now[key]}; "
                f"start anew with: florana run {path / 'config.toml'} --output NEW"
            )


def _first_checkpoint(experiment: Experiment) -> Checkpoint:
    return Checkpoint(0, experiment.model.initial, {}, 0, 0, -1.0)


class _Run:
    """The rounds of one run, from a checkpoint to the end."""

    def __init__(self, experiment: Experiment, folder: RunFolder, watch: Watch) -> None:
        self._experiment, self._folder, self._watch = experiment, folder, watch
        self._config, self._model = experiment.config, experiment.model
        self._rounds = self._config.federation.rounds

    def finish(self, checkpoint: Checkpoint) -> Summary:
        """Do the rounds that are left, and write how the run ended."""
        self._started = self._mark = time.perf_counter()
        self._seconds: dict[str, float] = {"training": 0.0}
        self._state = checkpoint
        provenance = self._experiment.provenance
        self._watch(Prepared(provenance, self._folder.path, checkpoint.server_round))
        if checkpoint.server_round == 0:
            self._write_round_0()
        else:
            for line in self._folder.read_metrics():
                if line["kind"] == "round" and line["round"] <= checkpoint.server_round:
                    self._watch(_row(line))
        if self._state.server_round < self._rounds:
            self._do_rounds()
        return self._write_summary()

    def _do_rounds(self) -> None:
        federation, method = self._config.federation, self._config.method
        done = self._state.server_round
        app = build_client_app(self._model.initial, self._train_client)
        grid = LocalGrid(app, federation.clients)
        with _flower_log_in(self._folder.path / "flower.log"):
            strategy = LoraStrategy(
                self._state.adapter,
                method.name,
                method.options,
                participation=federation.participation,
                min_clients=federation.min_clients,
                seed=self._config.seed,
                rounds_done=done,
                residual=self._state.residual,
                on_round=self._finish_round,
                on_left_out=lambda r, client, reason: self._watch(ClientLeftOut(r, client, reason)),
            )
            strategy.start(grid, strategy.initial_arrays(), num_rounds=self._rounds - done)

    def _train_client(
        self, adapter: Adapter, residual: Mapping[str, Product], server_round: int, client: int
    ) -> LocalResult:
        """One client's part of a round: train, then test its own model on its own held-out data."""
        self._watch(ClientStarted(server_round, client))
        began = time.perf_counter()
        data = self._experiment.clients[client]
        place = Place(self._config.seed, server_round, self._rounds, client)
        self._model.load(adapter, residual)
        train_loss = train(self._model, data.train, self._config.training, place)
        score = evaluate(self._model, data.test)
        result = LocalResult(
            self._model.take(),
            len(data.train),
            {"train-loss": train_loss, "accuracy": score.accuracy, "loss": score.loss},
        )
        self._seconds["training"] += time.perf_counter() - began
        return result

    def _write_round_0(self) -> None:
        """The untrained start, so that every curve begins at the same point."""
        self._model.load(self._state.adapter)
        score = evaluate(self._model, self._experiment.test)
        row = RoundRow(0, score.accuracy, score.loss)
        size = self._folder.append_metrics([_line(row)], after=0)
        self._save(Checkpoint(0, self._state.adapter, {}, size, 0, score.accuracy))
        self._note_time("evaluation")
        self._folder.append_timing(0, self._seconds)
        self._watch(row)
        self._mark = time.perf_counter()

    def _finish_round(self, outcome: RoundOutcome) -> None:
        """Evaluate, write metrics, then the checkpoint that makes the round count."""
        self._note_time("federation", but="training")
        trained, residual = outcome.aggregate.trained, outcome.aggregate.residual
        error = outcome.aggregate.error
        self._note_time("error_report")
        self._model.load(trained, residual)
        score = evaluate(self._model, self._experiment.test)
        self._note_time("evaluation")
        clients = [self._client_line(outcome, update) for update in outcome.updates]
        accuracies = [line["accuracy"] for line in clients]
        row = RoundRow(
            outcome.server_round,
            score.accuracy,
            score.loss,
            sum(accuracies) / len(accuracies),
            min(accuracies),
            error.used,
            error.average,
            error.optimum,
            outcome.bytes_up,
            outcome.bytes_down,
        )
        self._note_time("last_clients")
        modules = {name: e._asdict() for name, e in outcome.aggregate.errors.items()}
        lines = [*clients, {**_line(row), "left_out": outcome.left_out, "modules": modules}]
        size = self._folder.append_metrics(lines, after=self._state.metrics_size)
        best = score.accuracy > self._state.best_accuracy
        if best:
            self._folder.write_adapter("best", outcome.aggregate.adapter)
        self._save(
            Checkpoint(
                outcome.server_round,
                trained,
                residual,
                size,
                outcome.server_round if best else self._state.best_round,
                score.accuracy if best else self._state.best_accuracy,
            )
        )
        self._note_time("writing")
        self._folder.append_timing(outcome.server_round, self._seconds)
        self._seconds = {"training": 0.0}
        self._watch(row)
        self._mark = time.perf_counter()

    def _client_line(self, outcome: RoundOutcome, update: ClientUpdate) -> dict[str, Any]:
        """A client's line in metrics.jsonl; after the last round, also its own model on the global test set."""
        line: dict[str, Any] = {
            "kind": "client",
            "round": outcome.server_round,
            "client": int(update.client_id),
            "weight": outcome.aggregate.weights[update.client_id],
            **outcome.metrics[update.client_id],
        }
        if outcome.server_round == self._rounds:
            self._watch(ClientTested(int(update.client_id)))
            self._model.load(update.adapter, outcome.residual)
            line["global_accuracy"] = evaluate(self._model, self._experiment.test).accuracy
        return line

    def _write_summary(self) -> Summary:
        final = with_residual(self._state.adapter, self._state.residual)
        self._folder.write_adapter("final", final)
        lines = list(self._folder.read_metrics())
        last = [line for line in lines if line["kind"] == "round"][-1]
        best = max(
            (line for line in lines if "global_accuracy" in line),
            key=lambda line: line["global_accuracy"],
        )
        fields = {
            "rounds": self._rounds,
            "accuracy": last["accuracy"],
            "loss": last["loss"],
            "best_round": self._state.best_round,
            "best_accuracy": self._state.best_accuracy,
            "best_client": f"client {best['client']}",
            "best_client_accuracy": best["global_accuracy"],
        }
        self._folder.write_summary(fields)
        summary = Summary(**fields, seconds=time.perf_counter() - self._started)
        self._watch(summary)
        return summary

    def _save(self, checkpoint: Checkpoint) -> None:
        self._folder.write_checkpoint(checkpoint)
        self._state = checkpoint

    def _note_time(self, part: str, but: str | None = None) -> None:
        """Put the time since the last mark under ``part``, less what is under ``but`` already."""
        now = time.perf_counter()
        self._seconds[part] = now - self._mark - (self._seconds[but] if but else 0.0)
        self._mark = now


def _line(row: RoundRow) -> dict[str, Any]:
    fields = asdict(row)
    return {"kind": "round", "round": fields.pop("server_round"), **fields, "gap": row.gap}


def _row(line: dict[str, Any]) -> RoundRow:
    fields = {key: line[key] for key in RoundRow.__slots__ if key != "server_round"}
    return RoundRow(server_round=line["round"], **fields)


@contextmanager
def _flower_log_in(path: Path) -> Iterator[None]:
    """Flower's own log goes into the run folder instead of on the user's terminal."""
    logger = logging.getLogger("flwr")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate
        handler.close()
