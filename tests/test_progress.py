"""What ``florana run`` shows: every round on one line under its header, whatever the method can tell."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from florana.cli._progress import HEADER, Progress
from florana.experiments.events import ClientLeftOut, RoundRow
from tiny_models import Kind
from tiny_runs import tiny_run, tiny_settings, write_texts


def shown(*events: object, width: int = 100) -> str:
    """What a watcher writes to a plain log of these events."""
    stream = io.StringIO()
    with Progress(Console(file=stream, width=width, highlight=False)) as progress:
        for event in events:
            progress.watch(event)  # type: ignore[arg-type]
    return stream.getvalue()


FULL = RoundRow(3, 0.5, 1.25, 0.75, 0.25, 0.125, 0.375, 0.0625, 2_500_000, 12_340_000, 0.25)
BLIND = RoundRow(3, 0.5, 1.25, 0.75, 0.25, None, None, None, 2_500_000, 12_340_000, 0.25)
START = RoundRow(0, 0.5, 1.25)


def test_a_round_is_one_line_under_its_header() -> None:
    """Every number ends where its heading ends."""
    (line,) = shown(FULL).splitlines()
    assert line.split() == ["3", "0.500", "1.250", "0.750", "0.250", "0.125", "0.375", "0.062", "2.50", "12.34"]  # fmt: skip
    headings = HEADER.splitlines()[1]
    assert [m.end() for m in re.finditer(r"\S+", line)] == [
        m.end() for m in re.finditer(r"\S+", headings)
    ]


@pytest.mark.parametrize(("row", "dashes"), [(BLIND, 3), (START, 5)])
def test_what_is_not_known_is_a_dash(row: RoundRow, dashes: int) -> None:
    """Errors of a method whose clients keep a part at home, and all that round 0 lacks; columns stay put."""
    (line,) = shown(row).splitlines()
    (full,) = shown(FULL).splitlines()
    assert line.split().count("–") == dashes
    assert [m.end() for m in re.finditer(r"\S+", line)] == [
        m.end() for m in re.finditer(r"\S+", full)
    ]


def test_a_client_that_is_left_out_is_shown_as_it_is_called() -> None:
    """Square brackets in a reason are no markup, and a line is not wrapped."""
    reason = "it sent [bold]nothing[/nonsense] " + "x" * 200
    (line,) = shown(ClientLeftOut(2, "node 1001", reason)).splitlines()
    assert line == f"round 2: node 1001 left out: {reason}"


@pytest.mark.parametrize("method", ["florana", "fedsa-lora", "local", "centralised"])
def test_a_run_is_shown_from_its_plan_to_its_end(
    kinds: dict[str, Kind], tmp_path: Path, method: str
) -> None:
    """Real events of a run of each sort: plan, header, a line for each round, where everything is."""
    settings = tiny_settings(kinds["own head"], write_texts(tmp_path / "texts.csv"))
    summary, events, _ = tiny_run(settings, tmp_path / "run", f"method.name={method}")
    stream = io.StringIO()
    with Progress(Console(file=stream, width=100, highlight=False)) as progress:
        for event in events:
            progress.watch(event)
        progress.finished(summary, tmp_path / "run", report=False)
    lines = stream.getvalue().splitlines()
    header = lines.index(HEADER.splitlines()[1])
    rows = [line.split() for line in lines[header + 1 : header + 6]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    unknown = 3 if method in ("fedsa-lora", "local") else 0
    assert [row.count("–") for row in rows] == [5] + [unknown] * 4
    assert any(re.match(rf"server +{method}\b", line) for line in lines)
    assert f"Global model: accuracy {100 * summary.score:.1f} %, loss {summary.loss:.3f}" in lines
