"""The report of one run: what is said, in which order, and where its numbers come from."""

from __future__ import annotations

from pathlib import Path

from florana import __version__
from florana.harness.table import HEADER, lines
from florana.report import (
    client_plots,
    module_plots,
    partition_plot,
    round_plots,
    run_head,
    run_tables,
)
from florana.report._page import Code, Facts, Figures, Page, Section, Table, write_page
from florana.report.records import RunRecord, read_run


def write_run_report(run_folder: Path) -> Path:
    """Write ``report.html`` and ``figures/`` into a run folder; a run that is not finished gets one too.

    Args:
        run_folder: as ``florana run`` leaves it, finished or not.

    Returns:
        The path of the page, which needs nothing but itself; figures lie beside it as PNG and SVG.

    Raises:
        RunError: if the folder holds no run or no finished round, or cannot be read or written.
    """
    return write_page(run_page(read_run(run_folder)), run_folder)


def run_page(run: RunRecord) -> Page:
    """The report of a run, with its figures still to be drawn."""
    sections = (
        run_head.plan(run),
        _learning(run),
        _aggregation(run),
        _clients(run),
        *_harness(run),
        _cost(run),
        _again(run),
    )
    return Page(
        kind="run report",
        title=run.name,
        lead=f"{run.method} on {run.provenance.data.name}, with {run.provenance.base_model.name}.",
        tiles=run_head.tiles(run),
        sections=sections,
        version=__version__,
        warning=run_head.warning(run),
    )


def _learning(run: RunRecord) -> Section:
    return Section(
        "learning",
        "Learning",
        "How the global model does on text that no client saw, beside what clients reach on their own. Of a method "
        "that leaves parts of the adapter with the clients, global is the mean over all clients' models on that text.",
        [
            Figures([round_plots.score(run), round_plots.loss(run)]),
            run_tables.rounds(run),
        ],
    )


def _aggregation(run: RunRecord) -> Section:
    told = [r for r in run.rounds if r.modules]
    blocks: list[Figures | Table] = [
        Figures(
            [
                round_plots.error(run),
                module_plots.sizes(run),
                module_plots.errors(run),
                module_plots.spectra(run),
            ]
        )
    ]
    if told:
        blocks.append(run_tables.modules(told[-1]))
    return Section(
        "aggregation",
        "Aggregation",
        "How far the global adapter is from the ideal update, the weighted mean of the clients' own ΔW.",
        blocks,
    )


def _clients(run: RunRecord) -> Section:
    of = run.provenance
    held = of.partition, of.labels, of.held_out or None
    plots = [
        partition_plot.partition(*held),
        client_plots.by_round(run),
        client_plots.local_against_global(run),
    ]
    return Section(
        "clients",
        "Clients",
        "What each client holds, how its own model does, and what it gains from the others.",
        [
            Figures(plots),
            partition_plot.in_numbers(*held),
            run_tables.left_out(run.rounds),
            run_tables.every_client(run),
        ],
    )


def _harness(run: RunRecord) -> list[Section]:
    """What ``florana eval`` has said, if it has been asked."""
    if not run.evaluation:
        return []
    rows = [line.cells() for line in lines(run.evaluation, parts=True)]
    return [
        Section(
            "harness",
            "By the field's harness",
            "What lm-evaluation-harness says of the exported adapter (florana eval), beside its base where that was asked. "
            "Values as the harness has them, with standard errors; a line that says first N is a trial, no result.",
            [Table("Every task", HEADER, rows)],
        )
    ]


def _cost(run: RunRecord) -> Section:
    plots = [round_plots.traffic(run), round_plots.wall_time(run)]
    return Section("cost", "Cost", "What it took on the wire and on the clock.", [Figures(plots)])


def _again(run: RunRecord) -> Section:
    provenance = run.provenance
    rows = [
        ("Seed", str(provenance.seed)),
        ("Model", f"SHA-256 {provenance.base_model.sha256}"),
        ("Training data", f"SHA-256 {provenance.data.fingerprint}"),
        ("Test data", f"SHA-256 {provenance.data.test_fingerprint}"),
        ("Versions", ", ".join(f"{name} {v}" for name, v in provenance.versions.items())),
        ("Machine", ", ".join(f"{name} {v}" for name, v in provenance.machine.items())),
    ]
    return Section(
        "again",
        "Do it again",
        "The same configuration with the same versions on the same data gives the same numbers.",
        [
            Facts(rows),
            Code("Command", "florana run config.toml --output ANOTHER_FOLDER"),
            Code("config.toml", run.config_toml),
        ],
    )
