"""A run's numbers for Prometheus: a watcher that keeps a text file in the run's folder up to date.

Point the node exporter's textfile collector at ``metrics.prom``, or copy it there; nothing listens on a port, so that a
server that holds private federations opens nothing for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from florana.atomic import write_atomically
from florana.experiments.events import (
    ClientLeftOut,
    ClientReplied,
    Event,
    Prepared,
    RoundRow,
    Summary,
)

FILE = "metrics.prom"


class PrometheusWatcher:
    """Writes ``metrics.prom``, aside and renamed, after every round, in Prometheus' text format.

    ============================================ ======= ===========================================================
    ``florana_rounds_planned``                   gauge   rounds of the whole run
    ``florana_round``                            gauge   the last round that is finished
    ``florana_round_end_timestamp_seconds``      gauge   when it was written, Unix time
    ``florana_score{metric="..."}``              gauge   of the global model, by the task's metric
    ``florana_loss``                             gauge   its held-out loss, nats
    ``florana_client_score{clients="mean"}``     gauge   of the clients' own models; also ``clients="worst"``
    ``florana_aggregation_error{of="used"}``     gauge   relative; also of plain averaging (``average``) and the ``optimum``
    ``florana_bytes_total{direction="up"}``      counter since round 0, all clients; also ``down``
    ``florana_replies_total{result="answered"}`` counter since this process started; also ``failed``
    ``florana_left_out_total``                   counter replies that a round did not use, since this process started
    ``florana_reply_seconds{client="..."}``      gauge   last time from a message to its reply
    ``florana_finished``                         gauge   1 when the run has ended
    ============================================ ======= ===========================================================
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._rounds, self._metric = 0, "score"
        self._row: RoundRow | None = None
        self._bytes = {"up": 0, "down": 0}
        self._replies = {"answered": 0, "failed": 0}
        self._left_out = 0
        self._seconds: dict[str, float] = {}
        self._finished = 0

    def watch(self, event: Event) -> None:
        """Count what happens, and write the file when a round or the run ends."""
        match event:
            case Prepared():
                self._path = event.folder / FILE
                self._rounds = event.provenance["config"]["federation"]["rounds"]
                self._metric = event.provenance["metric"]["name"]
            case ClientReplied():
                self._replies["failed" if event.failed else "answered"] += 1
                self._seconds[event.client.partition(",")[0]] = event.seconds
            case ClientLeftOut():
                self._left_out += 1
            case RoundRow():
                self._row = event
                self._bytes["up"] += event.bytes_up
                self._bytes["down"] += event.bytes_down
                self._write()
            case Summary():
                self._finished = 1
                self._write()
            case _:
                pass

    def _write(self) -> None:
        if self._path is not None:
            write_atomically(self._path, "".join(self._lines()).encode())

    def _lines(self) -> Iterator[str]:
        yield from _metric("florana_rounds_planned", "gauge", {"": float(self._rounds)})
        yield from _metric("florana_finished", "gauge", {"": float(self._finished)})
        if self._row is not None:
            yield from self._round_lines(self._row)
        yield from _metric("florana_bytes_total", "counter", _labelled("direction", self._bytes))
        yield from _metric("florana_replies_total", "counter", _labelled("result", self._replies))
        yield from _metric("florana_left_out_total", "counter", {"": float(self._left_out)})
        yield from _metric("florana_reply_seconds", "gauge", _labelled("client", self._seconds))

    def _round_lines(self, row: RoundRow) -> Iterator[str]:
        yield from _metric("florana_round", "gauge", {"": float(row.server_round)})
        yield from _metric("florana_round_end_timestamp_seconds", "gauge", {"": time.time()})
        yield from _metric("florana_score", "gauge", _labelled("metric", {self._metric: row.score}))
        yield from _metric("florana_loss", "gauge", {"": row.loss})
        clients = {"mean": row.client_score, "worst": row.worst_client}
        yield from _metric("florana_client_score", "gauge", _labelled("clients", clients))
        errors = {
            "used": row.error_used,
            "average": row.error_average,
            "optimum": row.error_optimum,
        }
        yield from _metric("florana_aggregation_error", "gauge", _labelled("of", errors))


def _labelled(label: str, values: Mapping[str, float | None]) -> dict[str, float]:
    """Values under a label each; those that are not known are left out."""
    return {
        f'{{{label}="{_escaped(name)}"}}': value
        for name, value in values.items()
        if value is not None
    }


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _metric(name: str, kind: str, values: Mapping[str, float]) -> Iterator[str]:
    if values:
        yield f"# TYPE {name} {kind}\n"
    for labels, value in values.items():
        yield f"{name}{labels} {value!r}\n"
