"""Runs that are judged by something else than accuracy: what is best, ahead and worst, and what it is called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from comparisons import METHODS, compare_toy, made_up, markdown_table
from crash import SMALL
from florana.errors import ConfigError
from florana.experiments.comparison.grid import build_grid
from florana.experiments.statistics import paired_difference
from florana.report import write_report
from florana.report.comparison_records import read_comparison
from florana.report.comparison_report import write_comparison_report
from florana.tasks.metrics import METRICS
from report_fixtures import lines_of, write_comparison, write_run

WRITING = [*SMALL, "data.family=causal", "data.source=x.jsonl", "data.response={answer}"]
ENDS = {
    "fedit": (14.0, 15.0, 16.0),
    "florana-opt:gauge=balanced": (13.0, 14.1, 15.0),
    "ideal": (16.0, 17.2, 18.1),
}


def perplexities(folder: Path) -> None:
    """Finished runs of a causal task whose final perplexities are those above."""
    grid = build_grid({"toy": WRITING}, METHODS, [0, 1, 2], folder, baseline="fedit")
    for cell in grid.cells:
        lines = made_up(cell, score=ENDS[cell.key.method][cell.key.seed])
        lines[0]["score"] = 40.0  # the untrained start
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def test_lower_is_ahead_where_lower_is_better(tmp_path: Path) -> None:
    """Differences are baseline minus score, paired by seed: above 0 means ahead; the level is reached from above."""
    assert set(METHODS) == set(ENDS)
    perplexities(tmp_path)
    result = compare_toy(tmp_path, configs={"toy": WRITING})
    assert result.tasks[0].metric == METRICS["perplexity"]
    assert result.tasks[0].level == pytest.approx(15.0 / 0.95)
    for method in ENDS.keys() - {"fedit"}:
        row = result.row("toy", method)
        expected = paired_difference(dict(enumerate(ENDS["fedit"])), dict(enumerate(ENDS[method])))
        assert row.difference == expected
    overall = {line.method: line for line in result.overall}
    assert (overall["florana-opt:gauge=balanced"].ahead, overall["ideal"].behind) == (1, 1)
    assert result.row("toy", "ideal").reached == sum(v <= 15.0 / 0.95 for v in ENDS["ideal"]) == 0
    assert result.row("toy", "florana-opt:gauge=balanced").reached == 3
    text = (tmp_path / "comparison.md").read_text()
    assert {row["perplexity"].split()[0] for row in markdown_table(text)} == {
        f"{np.mean(values):.3f}" for values in ENDS.values()
    }
    assert "Lower is better: perplexity." in text
    order = read_comparison(tmp_path).order
    assert list(order) == sorted(ENDS, key=lambda method: np.mean(ENDS[method]))


def test_unlike_metrics_have_no_mean(tmp_path: Path) -> None:
    """Accuracy and perplexity have no common unit: every row names its metric, and no difference is averaged."""
    perplexities(tmp_path)
    grid = build_grid({"plain": SMALL}, METHODS, [0, 1, 2], tmp_path, baseline="fedit")
    for cell in grid.cells:
        made_up(cell)
    result = compare_toy(tmp_path, configs={"toy": WRITING, "plain": SMALL})
    assert all(line.difference is None for line in result.overall)
    assert sum(line.tasks for line in result.overall) == 4
    rows = markdown_table((tmp_path / "comparison.md").read_text())
    assert {row["task"] for row in rows} == {"toy (perplexity)", "plain (accuracy)"}
    assert "score" in rows[0]
    assert read_comparison(tmp_path).score_name == "score"
    assert write_comparison_report(tmp_path).exists()


def test_a_level_that_no_score_reaches_is_refused(tmp_path: Path) -> None:
    """Above 1 is a level of perplexity alone."""
    with pytest.raises(ConfigError, match="reach is 20: accuracy is at most 1"):
        compare_toy(tmp_path, reach=20.0)
    perplexities(tmp_path)
    assert compare_toy(tmp_path, configs={"toy": WRITING}, reach=20.0).tasks[0].level == 20.0


@pytest.mark.parametrize("name", ["matthews", "perplexity"])
def test_the_report_of_a_run_names_its_metric(tmp_path: Path, name: str) -> None:
    """Headline, table and figures say what the score is; the best round is the best by that metric."""
    metric = METRICS[name]
    lines = lines_of(3)
    for line in lines:
        line["score"] = {0: 0.1, 1: -0.2, 2: 0.4, 3: 0.3}[line["round"]] * (
            1 if name == "matthews" else 30
        )
        line["metrics"] = {"token_accuracy" if name == "perplexity" else "accuracy": 0.25}
    page = write_report(
        write_run(
            tmp_path / "demo",
            lines,
            metric={"name": name, "higher_is_better": metric.higher_is_better, "percent": False},
        )
    )
    text = page.read_text()
    best = 2 if name == "matthews" else 1
    assert f"Global {metric.label}" in text
    assert f"{metric.label} by round" in text or f"{metric.label.capitalize()} by round" in text
    shown = metric.text({1: -6.0, 2: 0.4}[best]).replace("-", "−")
    assert f"{metric.label} {shown}" in text
    assert "accuracy (share)" not in text


def test_the_report_of_a_comparison_names_its_metric(tmp_path: Path) -> None:
    """The method with the lowest perplexity comes first, and no axis speaks of accuracy."""
    folder = write_comparison(tmp_path / "all", metric=METRICS["perplexity"])
    text = write_comparison_report(folder).read_text()
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    first = read_comparison(folder).order[0]
    means = {
        m: np.mean([r["score"]["mean"] for r in rows if r["method"] == m])
        for m in {r["method"] for r in rows}
    }
    assert means[first] == min(means.values())
    assert "Best mean perplexity" in text
    assert "accuracy" not in text
