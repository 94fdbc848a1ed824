"""Comparisons: the statistics, what is refused, what is written, and real runs that are killed and go on."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from comparisons import (
    METHODS,
    ROUNDS,
    change,
    compare_toy,
    made_up,
    markdown_table,
    small_grid,
    strict_json,
    write,
)
from crash import SMALL
from florana.config import load_config
from florana.errors import ConfigError, RunError
from florana.experiments.comparison.fairness import differing
from florana.experiments.comparison.grid import slug
from florana.experiments.comparison.items import parse_method, split_items
from florana.experiments.comparison.jobs import choose_jobs
from florana.experiments.comparison.progress import ComparisonEvent, Planned, RunFailed, RunFinished
from florana.experiments.statistics import (
    first_at_or_above,
    mean_of,
    paired_difference,
    student_interval,
)
from florana.tasks.metrics import METRICS

numbers = st.floats(-10, 10).map(lambda x: round(x, 3))


# Statistics, against scipy's own tests.


@given(st.lists(numbers, min_size=2, max_size=12), st.floats(0.5, 0.999))
def test_the_interval_is_students(values: list[float], confidence: float) -> None:
    """Mean and half-width are those of scipy's one-sample t test."""
    assume(len(set(values)) > 1)
    interval = student_interval(values, confidence)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert interval is not None
    assert interval.n == len(values)
    assert interval.mean - interval.half_width == pytest.approx(low, rel=1e-9, abs=1e-9)
    assert interval.mean + interval.half_width == pytest.approx(high, rel=1e-9, abs=1e-9)


@given(
    st.dictionaries(st.integers(0, 9), numbers),
    st.dictionaries(st.integers(0, 9), numbers),
)
def test_differences_are_paired_by_seed(a: dict[int, float], b: dict[int, float]) -> None:
    """Only common seeds count, each with its own partner, and a sure sign is a rejected paired t test."""
    common = sorted(a.keys() & b.keys())
    interval = paired_difference(a, b)
    if not common:
        assert interval is None
        return
    assert interval is not None
    assert interval.n == len(common)
    assert interval.mean == pytest.approx(np.mean([a[s] - b[s] for s in common]), abs=1e-9)
    if len(common) == 1:
        assert interval.half_width is None
        assert not interval.below_zero
        assert not interval.above_zero
        return
    differences = [a[s] - b[s] for s in common]
    assume(max(differences) - min(differences) > 1e-6)
    p = stats.ttest_rel([a[s] for s in common], [b[s] for s in common]).pvalue
    assume(abs(p - 0.05) > 1e-6)
    assert interval.below_zero == (p < 0.05 and interval.mean < 0)
    assert interval.above_zero == (p < 0.05 and interval.mean > 0)


def test_the_mean_of_a_diverged_run_is_no_number() -> None:
    """NaN is neither hidden nor fatal, and no difference with it is sure."""
    interval = student_interval([0.5, math.nan])
    assert interval is not None
    assert math.isnan(interval.mean)
    assert not interval.below_zero
    assert not interval.above_zero


@given(st.lists(st.none() | numbers), numbers)
def test_numbers_that_are_not_there_count_for_nothing(
    values: list[float | None], level: float
) -> None:
    """They move no mean and reach no level."""
    present = [value for value in values if value is not None]
    assert mean_of(values) == (pytest.approx(np.mean(present)) if present else None)
    found = first_at_or_above(values, level)
    reached = [i for i, value in enumerate(values) if value is not None and value >= level]
    assert found == (reached[0] if reached else None)


# The grid.


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True, max_size=8))
def test_folders_tell_labels_apart(labels: list[str]) -> None:
    """Unlike labels get unlike folders, each a plain name that leads nowhere else."""
    slugs = [slug(label) for label in labels]
    assert len(set(slugs)) == len(slugs)
    for name in slugs:
        assert Path(name).name == name
        assert not name.startswith(".")
        assert name.isascii()
        assert len(name) <= 100


@given(
    st.lists(st.sampled_from(["fedit", 'a:k=["x","y"]', "b:k={a=1, b=2}", "c:k='x,y'"]), min_size=1)
)
def test_commas_inside_values_do_not_split(items: list[str]) -> None:
    """Joining with commas and splitting again gives the same items."""
    assert split_items(" , ".join(items)) == items


def test_a_method_item_sets_options_and_keys() -> None:
    """A key without a dot is the method's, one with a dot the config's; colons may stand in values."""
    item = parse_method("florana:solver=gradient:training.learning_rate=0.02:lora.x=a:b")
    assert (item.name, dict(item.settings)) == (
        "florana",
        {"method.solver": "gradient", "training.learning_rate": "0.02", "lora.x": "a:b"},
    )


def test_runs_differ_in_method_and_seed_alone(tmp_path: Path) -> None:
    """Whatever the file says of method, seed and output, a task's runs are alike but for these."""
    (tmp_path / "task.toml").write_text(
        'seed = 7\noutput = "elsewhere"\n[method]\nname = "florana"\nsolver = "gradient"\n'
        "[federation]\nrounds = 4\n"
    )
    items = [*METHODS, "fedit:training.learning_rate=0.5"]
    grid = small_grid(tmp_path, configs={"t": tmp_path / "task.toml"}, methods=items)
    assert len(grid.cells) == len(items) * 3
    for cell in grid.cells:
        alike = cell.config.model_dump(exclude={"seed", "output", "method", "training"})
        first = grid.cells[0].config.model_dump(exclude={"seed", "output", "method", "training"})
        assert alike == first
        assert cell.config.seed == cell.key.seed
        assert cell.config.output == str(cell.folder)
        assert cell.config.federation.rounds == 4
        assert cell.config.method.name == cell.key.method.split(":")[0]
        rate = 0.5 if "learning_rate" in cell.key.method else 0.01
        assert cell.config.training.learning_rate == rate
    assert grid.cells[1].config.method.options == {"gauge": "balanced"}


def test_a_checked_configuration_stays_as_it_is(tmp_path: Path) -> None:
    """A RunConfig gives the same runs as the overrides that made it."""
    overrides = [*SMALL, 'lora.target_modules=["key", "value"]', 'data.source="a\\"b=c.jsonl"']
    config = load_config(None, overrides)
    (one,), (other,) = (
        small_grid(tmp_path, configs={"t": source}, methods=["fedit"], seeds=[0]).cells
        for source in (config, overrides)
    )
    assert one == other
    assert one.config.data.source == 'a"b=c.jsonl'


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"methods": []}, ["no method is given"]),
        ({"configs": {}}, ["no task is given"]),
        ({"seeds": []}, ["no seed is given"]),
        ({"methods": ["fedit", "ideal", "fedit"]}, ["method 'fedit' is given twice"]),
        ({"seeds": [1, 1]}, ["seed 1 is given twice"]),
        ({"seeds": [-1]}, ["all runs: seed: Input should be greater than or equal to 0"]),
        ({"methods": ["ideal"]}, ["baseline 'fedit' is not among the methods (ideal)"]),
        ({"methods": ["fedit", "florna"]}, ["method florna: unknown method 'florna', did you mean"]),
        ({"methods": ["fedit", ""]}, ["expected NAME or NAME:key=value"]),
        ({"methods": ["fedit", "florana:als"]}, ["method 'florana:als': expected NAME or"]),
        ({"methods": ["fedit", "florana:solver=x:solver=y"]}, ["sets a key twice"]),
        ({"methods": ["fedit", "florana:name=ideal"]}, ["sets a key twice"]),
        ({"methods": ["fedit", "florana:data.source=x"]}, ["sets data.source", "make the task"]),
        ({"methods": ["fedit", "ideal:federation.rounds=9"]}, ["sets federation.rounds"]),
        ({"methods": ["fedit", "ideal:lora.alpha=3", "ideal:lora.alpha=3.0"]}, ["are the same"]),
        ({"overrides": ["method.name=ideal"]}, ["a comparison sets method.name for each run"]),
        ({"overrides": ["seed=3"]}, ["a comparison sets seed for each run"]),
        ({"overrides": ["output=x"]}, ["a comparison sets output for each run"]),
        ({"overrides": ["lora.rnak=3"]}, ["all runs: unknown key 'lora.rnak', did you mean 'rank'?"]),
        ({"configs": {"a": ["lora.rank=0"], "b": []}}, ["task a: lora.rank: "]),
        ({"configs": {"a": ["threads=1"], "b": []}}, ["threads differ between tasks (a 1, b not set)"]),
        ({"configs": {"a": [], "A": []}}, ["tasks 'a' and 'A' would have one folder, a"]),
        ({"configs": {"a": Path("gone.toml")}}, ["there is no configuration file gone.toml"]),
        (
            {"methods": ["fedit", "x", "ideal:gauge=y"], "overrides": ["sed=1"], "seeds": [0, 0]},
            ["seed 0 is given twice", "unknown method 'x'", "option gauge", "unknown key 'sed'"],
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_together_and_once(
    tmp_path: Path, given: dict[str, Any], expected: list[str]
) -> None:
    """Whatever is wrong with tasks, methods, seeds and keys, in one message, with nothing written."""
    with pytest.raises(ConfigError) as refused:
        small_grid(tmp_path / "out", **given)
    message = str(refused.value)
    for part in expected:
        assert message.count(part) == 1, message
    assert len(message.splitlines()) == 1 + len(expected) or len(expected) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "jobs", "cores", "expected"),
    [
        (None, None, 16, (16, 1)),
        (None, 4, 16, (4, 4)),
        (None, 5, 16, (5, 3)),
        (None, 32, 16, (32, 1)),
        (4, None, 16, (4, 4)),
        (32, None, 16, (1, 32)),
        (2, 3, 16, (3, 2)),
    ],
)
def test_jobs_and_threads_share_the_cores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: int | None,
    jobs: int | None,
    cores: int,
    expected: tuple[int, int],
) -> None:
    """By default jobs × threads is at most the number of cores; what is given stands, for all runs alike."""
    monkeypatch.setattr("florana.experiments.comparison.jobs.available_cores", lambda: cores)
    threads = [f"threads={given}"] if given else []
    grid = small_grid(tmp_path, configs={"t": ["device=cpu", *threads]})
    cells, *found = choose_jobs(grid.cells, jobs)
    assert tuple(found) == expected
    assert {cell.config.threads for cell in cells} == {expected[1]}


def test_an_accelerator_is_not_shared_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where runs would go to a GPU, one at a time by default; on the CPU beside it as many as there are cores."""
    monkeypatch.setattr("florana.experiments.comparison.jobs.available_cores", lambda: 16)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    on_gpu = small_grid(tmp_path, configs={"t": []}).cells
    on_cpu = small_grid(tmp_path, configs={"t": ["device=cpu"]}).cells
    assert choose_jobs(on_gpu, None)[1:] == (1, 16)
    assert choose_jobs(on_gpu, 8)[1:] == (8, 2)
    assert choose_jobs(on_cpu, None)[1:] == (16, 1)


# What is written, from run folders made up here.


def test_rows_are_what_the_runs_say(tmp_path: Path) -> None:
    """Every number of the table, from its definition and the files of the runs alone."""
    runs = {cell.key: made_up(cell) for cell in small_grid(tmp_path).cells}
    events: list[ComparisonEvent] = []
    result = compare_toy(tmp_path, watch=events.append, command="florana compare x | y")
    assert events == [Planned(9, 9, 0, 0, events[0].jobs, 1)]  # type: ignore[union-attr]
    of = {m: [rounds for key, rounds in runs.items() if key.method == m] for m in METHODS}
    plain = np.array([rounds[-1]["score"] for rounds in of["fedit"]])
    level = 0.95 * plain.mean()
    for method in METHODS:
        row, last = result.row("toy", method), [rounds[-1] for rounds in of[method]]
        accuracy = np.array([line["score"] for line in last])
        assert row.score is not None
        assert row.score.mean == pytest.approx(accuracy.mean())
        for name in ("client_score", "worst_client", "gap", "loss"):
            assert getattr(row, name) == pytest.approx(np.mean([line[name] for line in last]))
        assert row.error_last_round == pytest.approx(np.mean([x["error_used"] for x in last]))
        first = [rounds[1]["error_used"] for rounds in of[method]]
        assert row.error_round_1 == pytest.approx(np.mean(first))
        up = [sum(line["bytes_up"] for line in rounds) for rounds in of[method]]
        assert row.megabytes_up == pytest.approx(np.mean(up) / 1e6)
        assert row.seconds == 4 * 2.5 + 6
        costs = []
        for rounds in of[method]:
            total = 0
            for line in rounds:
                total += line["bytes_up"] + line["bytes_down"]
                if line["score"] >= level:
                    costs.append(total / 1e6)
                    break
        assert row.reached == len(costs)
        assert row.megabytes_to_reach == (pytest.approx(np.mean(costs)) if costs else None)
        if method == "fedit":
            assert row.difference is None
        else:
            low, high = stats.ttest_rel(accuracy, plain).confidence_interval(0.95)
            assert row.difference is not None
            assert row.difference.half_width == pytest.approx((high - low) / 2)
            assert row.difference.mean == pytest.approx((high + low) / 2)


def test_all_files_tell_the_same(tmp_path: Path) -> None:
    """Markdown, CSV, JSON and the lines of the runs agree with the value that is returned."""
    for cell in small_grid(tmp_path).cells:
        made_up(cell)
    result = compare_toy(tmp_path, command="florana compare toy.toml")
    text = (tmp_path / "comparison.md").read_text()
    content = strict_json((tmp_path / "comparison.json").read_text())
    table = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    lines = [strict_json(x) for x in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert "    florana compare toy.toml\n" in text
    assert content["command"] == "florana compare toy.toml"
    assert next(iter(content)) == "command"
    for row, shown, flat, kept in zip(
        result.rows, markdown_table(text), table, content["rows"], strict=True
    ):
        assert row.score is not None
        assert shown["method"] == flat["method"] == kept["method"] == row.method
        assert shown["accuracy"] == f"{row.score.mean:.3f} ± {row.score.half_width:.3f}"
        assert shown["loss"] == f"{row.loss:.3f}"
        assert float(flat["score"]) == kept["score"]["mean"] == row.score.mean
        assert float(flat["score_half_width"]) == kept["score"]["half_width"]
        assert (flat["difference"] == "") == (kept["difference"] is None) == (row.method == "fedit")
        assert (shown["− fedit"] == "–") == (row.method == "fedit")
    assert len(lines) == len(result.runs) == 9
    for line, run in zip(lines, result.runs, strict=True):
        assert (tmp_path / line["folder"]) == run.folder
        assert line["curves"]["score"] == list(run.curves.score)
        assert line["curves"]["round"] == [0, 1, 2, 3]
    (task,) = content["tasks"]
    assert task["config"]["federation"]["rounds"] == ROUNDS
    assert task["config"].keys().isdisjoint({"seed", "output", "method"})


def test_what_is_not_there_stays_empty(tmp_path: Path) -> None:
    """A method without an error or clients of its own: a dash in Markdown, nothing in CSV, null in JSON."""
    for cell in small_grid(tmp_path).cells:
        absent = {} if cell.key.method != "ideal" else dict.fromkeys(
            ("error_used", "error_average", "error_optimum", "client_score", "worst_client", "gap")
        )  # fmt: skip
        made_up(cell, **absent)
    compare_toy(tmp_path, reach=1.0)
    shown = markdown_table((tmp_path / "comparison.md").read_text())[2]
    assert [shown[x] for x in ("clients", "worst", "gap", "error, last", "MB to level")] == [
        "–"
    ] * 5
    flat = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))[2]
    kept = strict_json((tmp_path / "comparison.json").read_text())["rows"][2]
    for name in ("client_score", "gap", "error_round_1", "megabytes_to_reach"):
        assert flat[name] == ""
        assert kept[name] is None


def test_a_diverged_run_is_shown_and_breaks_no_file(tmp_path: Path) -> None:
    """NaN is told as such in Markdown and CSV, and is null in JSON, which has no NaN."""
    for cell in small_grid(tmp_path).cells:
        made_up(cell, **({"loss": math.nan} if cell.key.method == "ideal" else {}))
    compare_toy(tmp_path)
    assert markdown_table((tmp_path / "comparison.md").read_text())[2]["loss"] == "nan"
    assert strict_json((tmp_path / "comparison.json").read_text())["rows"][2]["loss"] is None
    last = (tmp_path / "runs.jsonl").read_text().splitlines()[-1]
    assert strict_json(last)["curves"]["loss"][1:] == [None] * 3


def test_labels_cannot_break_the_table(tmp_path: Path) -> None:
    """Bars, backquotes, tags and line ends in labels stay text in one cell."""
    task = "a | b\n`c` <d>"
    for cell in small_grid(tmp_path, configs={task: SMALL}).cells:
        made_up(cell)
    compare_toy(tmp_path, configs={task: SMALL})
    rows = markdown_table((tmp_path / "comparison.md").read_text().replace("\\|", "¦"))
    assert {row["task"] for row in rows} == {"a ¦ b \\`c\\` \\<d>"}
    assert strict_json((tmp_path / "comparison.json").read_text())["rows"][0]["task"] == task


def test_a_failed_run_is_marked_and_not_paired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are over the seeds that are done, differences over the common ones; the others are named."""
    failing = {("fedit", 2), ("ideal", 1)}

    def some_fail(cells: Any, jobs: int, threads: int, log: Path, watch: Any) -> None:
        for cell in cells:
            if (cell.key.method, cell.key.seed) in failing:
                watch(RunFailed(cell.key, "no luck"))
                continue
            made_up(cell)
            watch(RunFinished(cell.key, 0.5, METRICS["accuracy"], 1.0))

    monkeypatch.setattr("florana.experiments.compare.do_runs", some_fail)
    result = compare_toy(tmp_path)
    ideal, fedit = result.row("toy", "ideal"), result.row("toy", "fedit")
    assert (ideal.seeds, ideal.missing_seeds) == ((0, 2), (1,))
    one = {run.key.method: run for run in result.runs if run.key.seed == 0}
    ends = [one[method].curves.score[-1] for method in ("ideal", "fedit")]
    assert ideal.difference is not None
    assert (ideal.difference.n, ideal.difference.half_width) == (1, None)
    assert ends[0] is not None
    assert ends[1] is not None
    assert ideal.difference.mean == pytest.approx(ends[0] - ends[1])
    assert fedit.score is not None
    assert fedit.score.n == 2
    assert result.missing
    assert {(f.key.method, f.key.seed) for f in result.failures} == failing
    text = (tmp_path / "comparison.md").read_text()
    assert [row["seeds"] for row in markdown_table(text)] == ["2 of 3", "3", "2 of 3"]
    assert "- toy, fedit: seed 2\n- toy, ideal: seed 1\n" in text


def test_all_tasks_count_alike(tmp_path: Path) -> None:
    """Overall: mean over tasks of the difference, and on how many tasks it surely has which sign."""
    ends = {  # (task, method) → accuracy by seed
        ("a", "fedit"): [0.50, 0.60, 0.70], ("b", "fedit"): [0.50, 0.60, 0.70],
        ("a", "ideal"): [0.60, 0.70, 0.81], ("b", "ideal"): [0.30, 0.41, 0.50],
        ("a", METHODS[1]): [0.60, 0.50, 0.73], ("b", METHODS[1]): [0.60, 0.70, 0.81],
    }  # fmt: skip
    configs = {"a": SMALL, "b": SMALL}
    for cell in small_grid(tmp_path, configs=configs).cells:
        made_up(cell, score=ends[cell.key.task, cell.key.method][cell.key.seed])
    found = {line.method: line for line in compare_toy(tmp_path, configs=configs).overall}
    ideal, best, fedit = found["ideal"], found[METHODS[1]], found["fedit"]
    assert (ideal.tasks, ideal.behind, ideal.ahead) == (2, 1, 1)
    assert (best.tasks, best.behind, best.ahead) == (2, 0, 1)
    assert (fedit.tasks, fedit.difference) == (0, None)
    assert ideal.difference == pytest.approx((0.31 / 3 - 0.59 / 3) / 2)
    text = (tmp_path / "comparison.md").read_text()
    assert re.search(r"\| ideal +\| +-0\.047 \| +2 \| +1 \| +1 \|", text)
    assert [" *" in row["− fedit"] for row in markdown_table(text)] == [
        *(False, False, True),
        *(False, True, True),
    ]


# Which runs may stand in one table.


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("partition",), [[1, 3], [4, 6]], "task toy, seed 1: partition is [[1, 3], [4, 5]] in"),
        (("data", "fingerprint"), "x", "task toy, seed 1: data.fingerprint is '1' in"),
        (("labels",), ["no", "yes"], "task toy, seed 1: labels is"),
        (("base_model", "sha256"), "1" * 64, "task toy: base_model.sha256 is"),
        (("versions", "torch"), "2.12.0", "versions.torch is '2.13.0' in"),
        (("machine", "device"), "cuda", "machine.device is 'cpu' in"),
    ],
)
def test_unlike_runs_make_no_table(
    tmp_path: Path, path: tuple[str, ...], value: object, expected: str
) -> None:
    """One run of other data, model, machine or libraries is named with what differs."""
    for cell in small_grid(tmp_path).cells:
        made_up(cell)
        if (cell.key.method, cell.key.seed) == ("ideal", 1):
            change(cell, *path, value=value)
    with pytest.raises(RunError) as refused:
        compare_toy(tmp_path)
    assert "these runs cannot stand in one table" in str(refused.value)
    assert expected in str(refused.value)
    assert "(toy, ideal, seed 1)" in str(refused.value)
    assert not (tmp_path / "comparison.md").exists()


def test_unlike_runs_are_told_after_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison that goes on with other libraries ends after one run, not after all."""
    done = []

    def with_another_torch(cells: Any, jobs: int, threads: int, log: Path, watch: Any) -> None:
        for cell in cells:
            done.append(cell.key)
            made_up(cell)
            change(cell, "versions", "torch", value="2.14.0")
            watch(RunFinished(cell.key, 0.5, METRICS["accuracy"], 1.0))

    for cell in small_grid(tmp_path).cells[:4]:
        made_up(cell)
    monkeypatch.setattr("florana.experiments.compare.do_runs", with_another_torch)
    with pytest.raises(RunError, match=r"versions\.torch is '2\.13\.0' in .* '2\.14\.0' in"):
        compare_toy(tmp_path)
    assert len(done) == 1


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    """A finished run of another configuration is not taken for the one asked for."""
    for cell in small_grid(tmp_path).cells:
        made_up(cell)
    with pytest.raises(RunError) as refused:
        compare_toy(tmp_path, overrides=["training.steps=2"], methods=METHODS[:2])
    assert "training.steps is 1 there, 2 was asked for" in str(refused.value)
    assert str(tmp_path / "toy" / "fedit" / "seed0") in str(refused.value)
    with pytest.raises(RunError, match="threads is 1 there, 2 was asked for"):
        compare_toy(tmp_path, configs={"toy": [*SMALL, "threads=2"]})


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    """Files that no run wrote are left alone, and nothing is started."""
    cells = small_grid(tmp_path).cells
    write(cells[3], "thesis.txt", "all of it")
    with pytest.raises(RunError, match="not empty"):
        compare_toy(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl"])
@pytest.mark.parametrize("damage", ["", "{", '{"kind": "round", "round": 0}\n', None])
def test_a_damaged_run_is_named(tmp_path: Path, name: str, damage: str | None) -> None:
    """A file of a finished run that is cut or gone is told by its path; no number is made up."""
    cells = small_grid(tmp_path).cells
    for cell in cells:
        made_up(cell)
    if name == "timings.jsonl" and damage in ("", '{"kind": "round", "round": 0}\n'):
        damage = '{"round": 0, "training": null}\n'
    if damage is None:
        (cells[4].folder / name).unlink()
    else:
        write(cells[4], name, damage)
    with pytest.raises(RunError) as refused:
        compare_toy(tmp_path)
    assert str(cells[4].folder) in str(refused.value)


nested = st.recursive(
    st.integers(0, 2), lambda x: st.dictionaries(st.sampled_from("abc"), x), max_leaves=8
)


@given(nested, nested)
def test_values_differ_nowhere_only_if_they_are_equal(a: object, b: object) -> None:
    """What is told to differ is never nothing, and nothing is told of equals."""
    assert (not list(differing(a, b))) == (a == b)
