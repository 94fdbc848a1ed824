"""The tables of a run's report: every round, module and client in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from florana.report import module_plots
from florana.report._page import Cell, Facts, Table
from florana.report._text import NONE, megabytes, natural, number
from florana.report.records import ClientRecord, ModuleErrors, RoundRecord, RunRecord
from florana.tasks.metrics import METRICS


def rounds(run: RunRecord) -> Table:
    """A row per round, round 0 being the untrained start."""
    further = list(run.rounds[0].metrics)
    head = ["round", run.metric.label, *map(metric_label, further), "loss"]
    head += ["mean client", "worst client", "gap", "MB up", "MB down"]
    rows = [
        [
            str(r.server_round),
            number(r.score),
            *(number(r.metrics.get(name)) for name in further),
            number(r.loss),
            number(r.client_score),
            number(r.worst_client),
            number(r.gap),
            megabytes(r.bytes_up),
            megabytes(r.bytes_down),
        ]
        for r in run.rounds
    ]
    return Table("Every round in numbers", head, rows, folded=True)


def metric_label(name: str) -> str:
    """What a further metric is called, known or not."""
    return METRICS[name].label if name in METRICS else name


def modules(last: RoundRecord) -> Table:
    """A row per module, with its errors and rank in a round."""

    def row(name: str, errors: ModuleErrors) -> list[str]:
        values = [errors.used, errors.average, errors.optimum, errors.target_norm]
        spectrum, share = last.spectra.get(name), module_plots.beyond(errors)
        return [
            name,
            *map(number, values),
            NONE if spectrum is None else str(spectrum.rank),
            NONE if share is None else f"{share:.2%}",
        ]

    names = sorted(last.modules, key=natural)
    return Table(
        f"Every module in round {last.server_round}",
        ["module", "used", "averaging", "optimum", "‖T‖", "rank", "energy beyond"],
        [row(name, last.modules[name]) for name in names],
        folded=True,
    )


def left_out(rounds: Sequence[RoundRecord]) -> Table | Facts:
    """Every reply that was not used, with the reason."""
    rows = [
        [f"{r.server_round}", client, why] for r in rounds for client, why in r.left_out.items()
    ]
    if not rows:
        return Facts([("Left out", "No client's reply was left out in any round.")])
    return Table("Left out", ["round", "client", "reason"], rows, words=True)


def every_client(run: RunRecord) -> Table:
    """A row per client that took part."""
    last: Mapping[int, ClientRecord] = {c.client: c for c in run.clients}
    further = list(dict.fromkeys(name for line in last.values() for name in line.metrics))
    took = {c: sum(line.client == c for line in run.clients) for c in last}
    rows: list[list[str | Cell]] = [
        [
            f"{client}",
            str(took[client]),
            NONE if line.num_examples is None else str(line.num_examples),
            number(line.weight),
            number(line.train_loss),
            number(line.loss),
            number(line.score),
            *(number(line.metrics.get(name)) for name in further),
            number(line.global_score),
        ]
        for client, line in sorted(last.items())
    ]
    head = [
        "client",
        "rounds",
        "examples",
        "weight",
        "training loss",
        "loss",
        run.metric.label,
        *map(metric_label, further),
        "on global test",
    ]
    caption = "In the last round in which the client took part; its own model, before aggregation."
    return Table("Every client in numbers", head, rows, folded=True, caption=caption)
