"""The report of a comparison: what is said, in which order, and where its numbers come from."""

from __future__ import annotations

from pathlib import Path

from florana import __version__
from florana.report import comparison_plots, comparison_tables, difference_plots
from florana.report._page import Code, Facts, Figures, Page, Section, Table, Tile, write_page
from florana.report._settings import common, toml, without_common
from florana.report._text import NONE, capital, duration, points
from florana.report.comparison_records import ComparisonRecord, TaskRecord, read_comparison

NUMBERS = (
    "Means over seeds. Difference: in percentage points (in its own unit where lower is better), strong where its interval does not hold 0. Clients: their own "
    "models on their own held-out text, before the last aggregation; gap: how much better the mean client is. Error: distance "
    "to the ideal update, relative to its size. MB to a level: up and down until the end of the first round at that score."
)
"""What the columns of the tables mean."""
SOURCES = ("comparison.md", "comparison.csv", "comparison.json", "runs.jsonl")


def write_comparison_report(folder: Path) -> Path:
    """Write ``report.html`` and ``figures/`` into the folder of a comparison, finished or not.

    Args:
        folder: as ``florana compare`` leaves it.

    Returns:
        The path of the page, which needs nothing but itself; figures lie beside it as PNG and SVG.

    Raises:
        RunError: if the folder holds no comparison or no finished run, or cannot be read or written.
    """
    return write_page(comparison_page(read_comparison(folder)), folder)


def comparison_page(record: ComparisonRecord) -> Page:
    """The report of a comparison, with its figures still to be drawn."""
    result = record.result
    curves = [comparison_plots.score(record), comparison_plots.traffic(record)]
    against = [difference_plots.forest(record), difference_plots.error(record)]
    sections = [
        Section("result", "Result", _lead(record), comparison_tables.result(record)),
        Section("curves", "Curves", f"How {record.score_name} moves with rounds, and with what is sent.", [Figures(curves)]),
        Section(
            "difference", "Difference", f"What each method gains over {result.baseline}, and how sure that is.",
            [Figures(against)],
        ),
    ]  # fmt: skip
    if len(result.methods) > 1:
        plots = [comparison_plots.gains(record, task.label) for task in result.tasks]
        lead = f"Round by round, what each method gains over {result.baseline}."
        sections.append(Section("methods", "Every method", lead, [Figures(plots)]))
    sections += [
        Section(
            "numbers",
            "Numbers",
            NUMBERS,
            [comparison_tables.numbers(record, task) for task in result.tasks],
        ),
        _again(record),
    ]
    return Page(
        kind="comparison",
        title=record.name,
        lead=f"{len(result.methods)} methods on {_count(len(result.tasks), 'task')} with "
        f"{_count(len(result.seeds), 'seed')}: the same partition, first adapter and batches for all.",
        tiles=_tiles(record),
        sections=sections,
        version=__version__,
        warning=_warning(record),
    )


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"


def _warning(record: ComparisonRecord) -> str:
    missing = sum(len(row.missing_seeds) for row in record.result.rows)
    if not missing:
        return ""
    told = f"{_count(missing, 'run')} not finished; rows are over the seeds that are, differences over common ones. "
    failures = [f"{f.task}, {f.method}, seed {f.seed}: {f.message}" for f in record.result.failures]
    return told + (f"Failed: {'; '.join(failures)}" if failures else "")


def _tiles(record: ComparisonRecord) -> list[Tile]:
    result = record.result
    lines = {line.method: line for line in result.overall}
    best = record.order[0]
    gain = lines[best].difference if best in lines else None
    note = (
        "the baseline itself"
        if best == result.baseline
        else f"{points(gain, scale=record.points)} {_unit(record)} over {result.baseline}"
    )
    judged = [line for line in result.overall if line.tasks]
    asked = len(result.tasks) * len(result.methods) * len(result.seeds)
    seconds = sum(run.seconds for run in record.runs)
    return [
        Tile(f"Best mean {record.score_name}", best, note),
        Tile("Ahead somewhere", f"{sum(line.ahead > 0 for line in judged)} of {len(judged)}",
             "methods with an interval above 0 on some task"),
        Tile("Behind somewhere", f"{sum(line.behind > 0 for line in judged)} of {len(judged)}",
             "methods with an interval below 0 on some task"),
        Tile("Runs", f"{len(record.runs)} of {asked}", f"seeds {', '.join(map(str, result.seeds))}"),
        Tile("Wall time", duration(seconds), "of all runs, one after the other"),
    ]  # fmt: skip


def _lead(record: ComparisonRecord) -> str:
    return (
        f"{capital(record.score_name)} of the final global model, mean ± half a 95 % Student interval over seeds; ordered "
        f"by the mean over the tasks. Difference: how much better than {record.result.baseline}, paired by seed, in "
        f"{_unit(record)}, mean over tasks. "
        "Ahead, behind: on how many tasks its interval lies above or below 0."
    )


def _unit(record: ComparisonRecord) -> str:
    """What differences are told in."""
    return "percentage points" if record.points != 1 else "its own unit"


def _again(record: ComparisonRecord) -> Section:
    result = record.result
    shared = common(task.config for task in result.tasks)
    alone = {task.label: without_common(task.config, shared) for task in result.tasks}
    methods = [
        [item.label, item.name, ", ".join(f"{k} = {v}" for k, v in item.settings.items()) or NONE]
        for item in result.methods
    ]
    rows = [
        *((task.label, _made_of(task)) for task in result.tasks),
        ("Seeds", ", ".join(map(str, result.seeds))),
        (
            "Versions",
            ", ".join(f"{name} {v}" for name, v in (result.versions or {}).items()) or NONE,
        ),
        ("Machine", ", ".join(f"{name} {v}" for name, v in (result.machine or {}).items()) or NONE),
        ("Files", ", ".join(SOURCES)),
    ]
    return Section(
        "again",
        "Do it again",
        "What all runs share, and what differs by method and by task.",
        [
            Facts(rows),
            Code("Command", result.command or "florana.experiments.compare.compare(...)"),
            Table("What differs by method", ["label", "method", "settings"], methods, words=True),
            *(Code(f"Only {label}", toml(config)) for label, config in alone.items() if config),
            Code("Shared by all runs", toml(shared), folded=True),
        ],
    )


def _made_of(task: TaskRecord) -> str:
    data, model = task.data or {}, task.base_model or {}
    if not data:
        return "no run is finished yet"
    return (
        f"{data.get('name')}: {data.get('examples')} examples to train, {data.get('test_examples')} to test, "
        f"{len(data.get('labels', ()))} labels; {model.get('name')}, weights SHA-256 {str(model.get('sha256'))[:12]}…"
    )
