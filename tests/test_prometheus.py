"""The text file for Prometheus: parsed back, after each event that should change it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from florana.experiments.events import ClientLeftOut, ClientReplied, Prepared, RoundRow, Summary
from florana.report.prometheus import FILE, PrometheusWatcher

PROVENANCE = {
    "config": {"federation": {"rounds": 3}},
    "metric": {"name": "accuracy", "higher_is_better": True, "percent": True},
}
SAMPLE = re.compile(r'^([a-z_]+)((?:\{[a-z]+="(?:[^"\\]|\\.)*"\})?) (\S+)$')


def read(folder: Path) -> dict[str, float]:
    """Every sample of the file; each is preceded by the type of its family, said once."""
    values, typed = {}, []
    for line in (folder / FILE).read_text().splitlines():
        if line.startswith("# TYPE "):
            typed.append(line.split()[2])
            continue
        found = SAMPLE.match(line)
        assert found, line
        assert found[1] == typed[-1]
        values[found[1] + found[2]] = float(found[3])
    assert len(typed) == len(set(typed))
    return values


def test_the_file_says_what_the_events_said(tmp_path: Path) -> None:
    """Gauges hold the last round; counters add up; what a round does not have is not there."""
    watcher = PrometheusWatcher()
    watcher.watch(Prepared(PROVENANCE, tmp_path, 0))
    watcher.watch(RoundRow(0, 0.25, 1.5))
    assert "florana_client_score" not in (tmp_path / FILE).read_text()
    watcher.watch(ClientReplied(1, 'client 0 on node "a\\b"', 2.5))
    watcher.watch(ClientReplied(1, "node 7", 9.0, failed=True))
    watcher.watch(ClientLeftOut(1, "client 1", "it raised"))
    watcher.watch(RoundRow(1, 0.5, 1.0, 0.75, 0.625, 0.25, 0.5, 0.125, 1000, 2000))
    watcher.watch(RoundRow(2, 0.5, 1.0, 0.75, 0.625, None, None, None, 1000, 2000))
    found = read(tmp_path)
    assert found.pop("florana_round_end_timestamp_seconds") > 1.7e9
    assert found == {
        "florana_rounds_planned": 3,
        "florana_finished": 0,
        "florana_round": 2,
        'florana_score{metric="accuracy"}': 0.5,
        "florana_loss": 1.0,
        'florana_client_score{clients="mean"}': 0.75,
        'florana_client_score{clients="worst"}': 0.625,
        'florana_bytes_total{direction="up"}': 2000,
        'florana_bytes_total{direction="down"}': 4000,
        'florana_replies_total{result="answered"}': 1,
        'florana_replies_total{result="failed"}': 1,
        "florana_left_out_total": 1,
        'florana_reply_seconds{client="client 0 on node \\"a\\\\b\\""}': 2.5,
        'florana_reply_seconds{client="node 7"}': 9.0,
    }


def test_the_end_is_told(tmp_path: Path) -> None:
    """A run that only tells its summary, as a finished one that is resumed, has no round to tell."""
    watcher = PrometheusWatcher()
    watcher.watch(Prepared(PROVENANCE, tmp_path, 3))
    watcher.watch(Summary(3, 0.5, 1.0, 2, 0.5, "client 1", 0.4, 10.0))
    assert read(tmp_path)["florana_finished"] == 1


def test_nothing_is_written_before_the_folder_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run that is resumed has no plan to tell."""
    monkeypatch.chdir(tmp_path)
    PrometheusWatcher().watch(Summary(3, 0.5, 1.0, 2, 0.5, "client 1", 0.4, 10.0))
    assert list(tmp_path.iterdir()) == []
