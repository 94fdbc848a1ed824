"""The reports: what is in the page is true, safe and whole, and a real browser lays it out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from PIL import Image

from florana import cli
from florana.errors import ConfigError, RunError
from florana.experiments.events import ClientLeftOut, Prepared, RoundRow
from florana.experiments.statistics import Interval
from florana.report import (
    TensorBoardWatcher,
    _style,
    module_plots,
    write_comparison_report,
    write_report,
    write_run_report,
)
from florana.report._cast import cast_of, figure_names
from florana.report._plot import Plot
from florana.report._settings import common, without_common
from florana.report._svg import inline
from florana.report._text import plain, printable, short_names
from florana.report.comparison_records import read_comparison
from florana.report.difference_plots import _limits
from florana.report.records import read_run
from report_fixtures import MODULES, RANK, light, lines_of, round_line, write_comparison, write_run
from strategies import few

VOID = {
    "meta",
    "link",
    "br",
    "hr",
    "img",
    "input",
    "wbr",
    "base",
    "area",
    "col",
    "embed",
    "source",
    "track",
}
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{1$ ]]> \x00\x07\u202e\ud800'
METHODS = (
    "fedit",
    "florana",
    "florana-opt:gauge=balanced",
    "ideal",
    "ffa-lora",
    "local",
    EVIL[:-1],
)


class Page(HTMLParser):
    """What a page consists of; elements that are not closed as they were opened are an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element, and open it."""
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text, and put it into the cell that is open."""
        if "style" not in self._open:
            self.text.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()

    @property
    def words(self) -> str:
        """All text, in one line."""
        return " ".join(" ".join(self.text).split())

    def of(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def table(self, *head: str) -> list[list[str]]:
        """The rows of the table whose head begins so."""
        return next(t[1:] for t in self.tables if t[0][: len(head)] == list(head))


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run."""
    return write_report(write_run(tmp_path_factory.mktemp("run") / "demo"))


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose every name is an attack."""
    lines = lines_of(1)
    lines[-1]["left_out"] = {EVIL: EVIL}
    lines[-1]["modules"] = {f"{EVIL}.{n}": e for n, e in lines[-1]["modules"].items()}
    lines[-1]["spectra"] = {f"{EVIL}.{n}": e for n, e in lines[-1]["spectra"].items()}
    data = {
        "name": EVIL,
        "examples": 3,
        "fingerprint": EVIL,
        "test_examples": 1,
        "test_fingerprint": EVIL,
    }
    folder = write_run(
        tmp_path_factory.mktemp("evil") / "run",
        lines,
        data=data,
        labels=[f"{EVIL}{k}" for k in range(4)],
        base_model={"name": EVIL, "sha256": EVIL},
        config={"method": {"name": EVIL, EVIL: EVIL}},
        versions={EVIL: EVIL},
    )
    (folder / "config.toml").write_text("# </pre><script>alert(1)</script>\n", "utf-8")
    return write_run_report(folder)


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a comparison with more methods than colours, one of an evil name, and two runs missing."""
    missing = [("sst2", "florana", 2), ("ag_news", "ideal", 0)]
    folder = tmp_path_factory.mktemp("comparison") / "compare"
    return write_report(write_comparison(folder, methods=METHODS, skip=missing))


@pytest.fixture(params=["run_page", "evil_page", "comparison_page"])
def page_path(request: pytest.FixtureRequest) -> Path:
    """Each of the reports."""
    path: Path = request.getfixturevalue(request.param)
    return path


# The page


def test_page_needs_nothing_from_elsewhere(page_path: Path) -> None:
    """No script, no handler, no address but parts of the page, files beside it and data of its own."""
    page = Page(page_path)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {
        t for t, _ in page.elements
    }
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "action", "poster", "srcset"):
                assert re.match(
                    r"#[\w.-]+$|figures/[a-z0-9-]+\.(svg|png)$|data:image/png;base64,", value
                ), (tag, value[:80])
            assert not re.search(r"url\((?!#)", value), (tag, value[:80])
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert not re.search(r"url\(|@import|https?:|//", style)


def test_page_forbids_what_it_does_not_need(page_path: Path) -> None:
    """The page's own policy lets nothing be loaded or run, and it fits itself to a phone."""
    metas = Page(page_path).of("meta")
    (policy,) = [m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy
    assert any(m.get("name") == "viewport" and "width=device-width" in m["content"] for m in metas)


def test_ids_are_unique_and_references_end_somewhere(page_path: Path) -> None:
    """No two elements share an id, and every #reference is to one of them."""
    page = Page(page_path)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    values = [(n, v) for _, attributes in page.elements for n, v in attributes.items()]
    wanted = {v[1:] for n, v in values if n == "href" and v.startswith("#")}
    wanted |= {found for _, v in values for found in re.findall(r"url\(#([^)]+)\)", v)}
    assert wanted
    assert wanted <= set(ids)


def test_every_figure_says_what_it_shows(page_path: Path) -> None:
    """Each SVG is an image with a label of a few words or more, and each figure has a caption."""
    page = Page(page_path)
    figures = page.of("svg")
    assert len(figures) >= 8
    for figure in figures:
        assert figure["role"] == "img"
        assert len(figure["aria-label"].split()) >= 4
    assert len(page.of("figcaption")) == len(page.of("figure"))


def test_files_beside_the_page(page_path: Path) -> None:
    """Every linked figure is there; PNGs decode; SVGs keep text as text, of at least 7 points."""
    linked = {a["href"] for a in Page(page_path).of("a") if a["href"].startswith("figures/")}
    there = {f"figures/{p.name}" for p in (page_path.parent / "figures").iterdir()}
    assert linked == there
    for name in linked:
        path = page_path.parent / name
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 5, name
            continue
        sizes = re.findall(r"(?:font-size|font):[^;\"]*?([\d.]+)px", path.read_text("utf-8"))
        assert sizes, f"{name} has no text"
        assert min(map(float, sizes)) >= 7
        assert next(ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")).text


def test_names_from_outside_are_text(evil_page: Path) -> None:
    """What would be markup stands in the page as it was written, unprintable characters replaced."""
    page = Page(evil_page)
    assert not page.of("img")
    assert " ".join(printable(EVIL).split()) in page.words
    assert "alert(1)" in page.words
    assert not {"\x00", "\x07", "\u202e", "\ud800"} & set(page.source)


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    """A report written again is the same, page and figures, wherever in memory the layout's solver has its variables."""
    folder = write_run(tmp_path / "run", lines_of(1))

    def written() -> dict[str, str]:
        write_report(folder)
        files = [folder / "report.html", *(folder / "figures").iterdir()]
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    first = written()
    for _ in range(4):  # without the rounded layout about one time in five differs
        shutil.rmtree(folder / "figures")
        again = written()
        assert {name for name in again if again[name] != first.get(name)} == set()
        assert again.keys() == first.keys()


def test_run_folder_is_only_added_to(tmp_path: Path) -> None:
    """A report changes no file of the run and leaves nothing half-written behind."""
    folder = write_run(tmp_path / "run", [round_line(0)])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    write_report(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name in before} == before
    assert {p.name for p in folder.iterdir()} == {*before, "report.html", "figures"}
    assert not list(folder.rglob(".*"))


# What a run's page says


def test_numbers_of_the_rounds(run_page: Path) -> None:
    """The table of rounds holds what metrics.jsonl holds, a dash where there is no value."""
    rows = Page(run_page).table("round", "accuracy", "loss")
    lines = [line for line in lines_of(3) if line["kind"] == "round"]
    for row, line in zip(rows, lines, strict=True):
        assert row[:3] == [str(line["round"]), f"{line['score']:.3f}", f"{line['loss']:.3f}"]
        assert row[3] == ("–" if line["client_score"] is None else f"{line['client_score']:.3f}")
        assert row[6] == f"{line['bytes_up'] / 1e6:.2f}"


def test_headline_of_a_run(run_page: Path) -> None:
    """Accuracy, best client and megabytes are those of the last round, the summary and the sum of the rounds."""
    words = Page(run_page).words
    assert "Global accuracy 70.0 % loss 0.625, round 3" in words
    assert "Best single client 45.0 % client 3; global 25.0 points better" in words
    assert f"Sent {3 * (3_121_170 + 3_120_510) / 1e6:.1f} MB" in words
    assert "not finished" not in words


def test_modules_have_full_names_and_the_share_cut_off(run_page: Path) -> None:
    """The table of modules has every full name; the energy beyond the rank is the square of the optimum's error."""
    rows = Page(run_page).table("module", "used")
    assert [row[0] for row in rows] == MODULES
    assert rows[0][1:4] == ["0.100", "0.167", "0.083"]
    assert rows[0][5:] == [str(RANK), f"{(0.25 / 3) ** 2:.2%}"]


def test_seed_versions_hashes_and_config_are_told(run_page: Path) -> None:
    """What is needed to do the run again stands in the page."""
    page = Page(run_page)
    for told in (
        "Seed 0",
        "python 3.11.7",
        "53aa" * 16,
        "cee0" * 16,
        "bc65" * 16,
        'name = "florana-opt"',
    ):
        assert told in page.words


def test_left_out_clients_are_told_with_the_reason(tmp_path: Path) -> None:
    """A reply that was not used has its round, client and reason in the page."""
    lines = light(lines_of(1))
    lines[-1]["left_out"] = {"client 2": "its loss is not a number"}
    rows = Page(write_run_report(write_run(tmp_path / "run", lines))).table(
        "round", "client", "reason"
    )
    assert rows == [["1", "client 2", "its loss is not a number"]]


def test_run_that_is_not_finished(tmp_path: Path) -> None:
    """A run killed while a round was being written is reported on up to the round before, and marked."""
    folder = write_run(tmp_path / "run", light(lines_of(2)[:-1]), finished=False)
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "round", "round": 2, "accu')
    assert [r.server_round for r in read_run(folder).rounds] == [0, 1]
    assert {c.server_round for c in read_run(folder).clients} == {1}
    page = Page(write_run_report(folder))
    assert "This run is not finished: 1 of 3 rounds are done" in page.words
    assert "tested after the last round" in page.words


def test_figures_without_values_say_why(tmp_path: Path) -> None:
    """Errors, spectra, clients and labels may be missing: no figure, but its reason, and no axis without data."""
    lines = []
    for line in lines_of(2):
        nulls = {k: None for k in line if k.startswith(("error_", "client_", "worst_"))}
        if line["kind"] == "round":
            lines.append({**line, **nulls, "modules": {}, "spectra": {}})
    page = Page(write_run_report(write_run(tmp_path / "run", lines, labels=[], partition=[])))
    for reason in (
        "No figure: The method florana-opt defines no aggregation error.",
        "No figure: metrics.jsonl of this run holds no singular values",
        "No figure: provenance.json holds no label counts.",
        "No figure: metrics.jsonl holds no client's score.",
    ):
        assert reason in page.words
    assert len(page.of("figure")) == 4


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """A run that diverged has a report too: NaN and infinity leave gaps."""
    lines = [
        {**line, "loss": float("nan") if line["kind"] == "round" else float("inf")}
        for line in light(lines_of(1))
    ]
    page = Page(write_run_report(write_run(tmp_path / "run", lines)))
    assert "loss nan" in page.words


def test_errors_are_on_one_scale(tmp_path: Path) -> None:
    """The three heat maps of the error share one colour scale, which begins at 0 and ends at the largest value."""
    run = read_run(write_run(tmp_path / "run"))
    plot = module_plots.errors(run)
    assert isinstance(plot, Plot)
    with mpl.rc_context(_style.SETTINGS):
        figure = plot.draw(3)
    meshes = [c for axes in figure.axes[:3] for c in axes.collections if isinstance(c, QuadMesh)]
    assert len(meshes) == 3
    top = max(e["average"] for line in lines_of(3) for e in line.get("modules", {}).values())
    for mesh in meshes:
        assert mesh.get_clim() == (0, pytest.approx(top))
    assert meshes[0].get_array().shape == (len(MODULES), 3)


def test_spectra_are_cut_at_the_rank(tmp_path: Path) -> None:
    """Every panel shows the last round's singular values and a line between the rank and the next."""
    run = read_run(write_run(tmp_path / "run"))
    plot = module_plots.spectra(run)
    assert isinstance(plot, Plot)
    with mpl.rc_context(_style.SETTINGS):
        figure = plot.draw(4)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == len(MODULES)
    for axes in panels:
        last = next(line for line in axes.get_lines() if line.get_label() == "round 3")
        np.testing.assert_allclose(
            last.get_ydata(), run.rounds[-1].spectra[MODULES[0]].singular_values
        )
        (cut,) = [line for line in axes.get_lines() if line.get_label() == module_plots.CUT]
        assert list(cut.get_xdata()) == [RANK + 0.5, RANK + 0.5]


# What a comparison's page says


def test_numbers_of_a_comparison(comparison_page: Path) -> None:
    """The tables hold the rows of comparison.json, methods from the best mean score down."""
    page, told = (
        Page(comparison_page),
        json.loads((comparison_page.parent / "comparison.json").read_text()),
    )
    rows = {(r["task"], r["method"]): r for r in told["rows"]}
    table = page.table("method", "difference", "ahead", "behind", "sst2", "ag_news")
    means = [np.mean([rows[t, m]["score"]["mean"] for t in ("sst2", "ag_news")]) for m in METHODS]
    order = [METHODS[k] for k in np.argsort(means)[::-1]]
    for rank, (cells, method) in enumerate(zip(table, order, strict=True), start=1):
        assert cells[0] == printable(f"{rank}  {method}")
        accuracy = rows["sst2", method]["score"]
        assert cells[4] == f"{accuracy['mean']:.3f} ± {accuracy['half_width']:.3f}"
    assert table[order.index("fedit")][1] == "–"


def test_unfinished_comparison_is_marked(comparison_page: Path) -> None:
    """Missing runs are counted, failures named with their message, and the rows say over how many seeds they are."""
    words = Page(comparison_page).words
    assert "2 runs not finished" in words
    assert "sst2, florana, seed 2: the disk is full" in words
    assert "2 of 3 seeds" in words


def test_what_runs_share_and_what_differs(comparison_page: Path) -> None:
    """The command, each method's settings, what is shared and what is one task's alone stand in the page."""
    page = Page(comparison_page)
    assert "florana compare sst2.toml ag_news.toml" in page.words
    rows = page.table("label", "method", "settings")
    assert ["florana-opt:gauge=balanced", "florana-opt", "gauge = balanced"] in rows
    assert 'Only sst2 [data] source = "sst2.jsonl"' in page.words
    assert "Shared by all runs [lora] rank = 8" in page.words


def test_one_method_alone(tmp_path: Path) -> None:
    """A comparison of the baseline with itself has curves, and says that there is nothing to compare."""
    page = Page(write_comparison_report(write_comparison(tmp_path, ["sst2"], ["fedit"], [0])))
    assert "No figure: There is no second method" in page.words
    assert "the baseline itself" in page.words


def test_baseline_and_best_stand_out(tmp_path: Path) -> None:
    """The baseline and the four best methods have looks of their own; all methods have a name and are drawn."""
    methods = [f"method-{k}" for k in range(9)]
    folder = write_comparison(tmp_path, ["sst2"], methods, [0, 1])
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    best = sorted(rows[1:], key=lambda row: -row["score"]["mean"])[:4]
    cast = cast_of(read_comparison(folder))
    assert list(cast.looks) == ["method-0", *(row["method"] for row in best)]
    assert len({(look.colour, look.marker) for look in cast.looks.values()}) == 5
    assert sorted(cast.back_to_front) == sorted(methods)


# Bad folders


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("metrics.jsonl", "{]\n", ["metrics.jsonl, line 1", "JSON"]),
        ("metrics.jsonl", "[1]\n", ["metrics.jsonl, line 1", "'round' or 'client'"]),
        ("metrics.jsonl", "", ["no finished round"]),
        ("metrics.jsonl", '{"kind": "round", "round": 0, "score": "high"}\n', ["line 1", "score", "'high'", "loss"]),
        ("provenance.json", "{}", ["provenance.json", "base_model", "versions"]),
        ("summary.json", '{"rounds": 3}', ["summary.json", "best_round"]),
        ("timings.jsonl", '{"round": 1, "training": "long"}\n', ["timings.jsonl, line 1", "training"]),
        ("config.toml", None, ["config.toml"]),
    ],
)  # fmt: skip
def test_damaged_run_is_told(
    tmp_path: Path, file: str, content: str | None, told: Sequence[str]
) -> None:
    """A file that is damaged, missing or of another kind is named, with the line and the key; nothing is written."""
    folder = write_run(tmp_path / "run")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(RunError) as error:
        write_report(folder)
    for part in told:
        assert part in str(error.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 99}, "layout 99"),
        ({"rows": [{}]}, "rows.0"),
        ({"methods": "fedit"}, "methods"),
    ],
)
def test_damaged_comparison_is_told(tmp_path: Path, change: Mapping[str, Any], told: str) -> None:
    """A comparison of another layout, or with a key that does not fit, is named."""
    path = write_comparison(tmp_path, ["sst2"], ["fedit"], [0]) / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunError, match=re.escape(told)):
        write_report(tmp_path)


def test_comparison_without_a_finished_run(tmp_path: Path) -> None:
    """There is nothing to report on before a run is finished."""
    write_comparison(tmp_path, ["sst2"], ["fedit"], [0], skip=[("sst2", "fedit", 0)])
    with pytest.raises(RunError, match="no finished run"):
        write_report(tmp_path)


def test_folder_of_neither_kind(tmp_path: Path) -> None:
    """A folder that holds neither says so and how to make one, whichever function is asked."""
    for function in (write_report, write_run_report, write_comparison_report):
        with pytest.raises(RunError, match=r"florana (run|compare)"):
            function(tmp_path)


def test_report_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where the figures should go is a message, not a traceback."""
    folder = write_run(tmp_path / "run", [round_line(0)])
    (folder / "figures").write_text("in the way")
    with pytest.raises(RunError, match="cannot write"):
        write_report(folder)


# The parts


@given(st.text())
@few
def test_printable_text_can_stand_in_xml(text: str) -> None:
    """Whatever the text, its printable form is UTF-8 and XML, and plain() makes one line of it."""
    element = ElementTree.Element("text")
    element.text = printable(text)
    assert ElementTree.fromstring(ElementTree.tostring(element, encoding="utf-8")) is not None
    assert len(plain(text).splitlines()) <= 1
    assert len(plain(text, 9)) <= 9


names = st.lists(
    st.lists(st.sampled_from("abc01"), min_size=1, max_size=4).map(".".join),
    unique=True,
    max_size=8,
)


@given(names)
@few
def test_short_names_stay_apart(found: list[str]) -> None:
    """Shortened names are as many as before, none empty, none longer."""
    short = short_names(found)
    assert list(short) == found
    assert len(set(short.values())) == len(found)
    assert all(short[name] and len(short[name]) <= len(name) for name in found)


@given(st.lists(st.text(max_size=60), unique_by=lambda text: plain(text), max_size=12))
@few
def test_figure_names_stay_apart(labels: list[str]) -> None:
    """However alike the labels begin, their names in figures differ."""
    found = figure_names(labels)
    assert len(set(found.values())) == len(labels)


values = st.dictionaries(
    st.sampled_from("abcd"),
    st.integers(0, 2) | st.dictionaries(st.sampled_from("xyz"), st.integers(0, 1)),
    max_size=4,
)


@given(st.lists(values, min_size=1, max_size=3))
@few
def test_shared_and_own_settings_make_the_whole(configs: list[dict[str, Any]]) -> None:
    """What all share and what one has alone are together its configuration, and hold no key twice."""
    shared = common(configs)
    for config in configs:
        own = without_common(config, shared)
        merged = {**shared}
        for key, value in own.items():
            merged[key] = {**shared.get(key, {}), **value} if isinstance(value, dict) else value
        assert merged == {k: v for k, v in config.items() if v != {}}
        assert not {k for k in own if k in shared and not isinstance(own[k], dict)}


intervals = st.builds(
    Interval,
    st.floats(-0.5, 0.5),
    st.none() | st.floats(0, 2, allow_subnormal=False),
    st.integers(1, 9),
)


@given(st.lists(intervals, min_size=1, max_size=9))
@few
def test_forest_axis_holds_zero_and_every_mean(found: list[Interval]) -> None:
    """However wide an interval is, the axis shows 0 and all means."""
    low, high = _limits(found, 100.0)
    assert low < 0 < high
    assert all(low < 100 * interval.mean < high for interval in found)


def test_inlined_figure_keeps_to_itself() -> None:
    """Ids and references get the prefix, colours of the theme become variables, others stay, the rest is dropped."""
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 252 180" width="252pt" height="180pt">'
        "<metadata>made with</metadata><defs><style>*{fill: red}</style><path id='a' d='M 0.123456 1'/></defs>"
        f"<!-- --><use xlink:href='#a' clip-path='url(#a)' style='fill: {_style.BLUE}; stroke: #123456'/>"
        "<text style=\"font: bold 8px 'DejaVu Sans'; text-anchor: middle\">&lt;b&gt;</text></svg>"
    )
    text = inline(svg, "demo", 'a "label"')
    root = ElementTree.fromstring(text)
    use = next(root.iter("use"))
    assert (use.get("href"), use.get("clip-path")) == ("#demo-a", "url(#demo-a)")
    assert use.get("style") == "fill: var(--blue); stroke: #123456"
    assert root.get("aria-label") == 'a "label"'
    assert (
        next(root.iter("text")).get("style")
        == "font-size: 8px; font-weight: bold ; text-anchor: middle"
    )
    assert next(root.iter("path")).get("d") == "M 0.12 1"
    assert not re.search("metadata|<style|xmlns|http|<!--|height=", text)


def theme(name: str, css: str) -> dict[str, str]:
    """The variables of the light or the dark theme in the style sheet."""
    block = css.split("@media (prefers-color-scheme: dark)")[name == "dark"]
    return dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6});", block[: block.index("}")]))


@pytest.mark.parametrize("name", ["light", "dark"])
def test_colours_can_be_seen(name: str) -> None:
    """In either theme curves stand out from the paper (3 : 1 or more), and text does (4.5 : 1)."""
    css = (Path(_style.__file__).parent / "templates" / "style.css").read_text()
    colours = theme(name, css)
    against = _style.luminance(colours["--paper"])
    for variable in ("--blue", "--vermilion", "--green", "--purple"):
        assert _style.contrast(_style.luminance(colours[variable]), against) >= 3, variable
    for variable in ("--ink", "--muted", "--link"):
        for ground in ("--paper", "--page"):
            ratio = _style.contrast(
                _style.luminance(colours[variable]), _style.luminance(colours[ground])
            )
            assert ratio >= 4.5, (variable, ground)
    if name == "light":
        assert {v: colours[v] for v in _style.THEMED.values()} == {
            v: c for c, v in _style.THEMED.items()
        }


def test_shades_keep_their_order_in_grey() -> None:
    """The scale of heat maps grows darker from end to end, text on it is readable, and no theme changes it."""
    shades = [to_hex(_style.SHADES(k)) for k in range(256)]
    luminances = [_style.luminance(shade) for shade in shades]
    assert luminances == sorted(luminances, reverse=True)
    assert len(set(luminances)) > 200
    for k, luminance in enumerate(luminances):
        text = _style.on_shade(k / 255, 1.0)
        assert _style.contrast(_style.luminance(text), luminance) >= 4.5
    assert not {*shades, _style.ON_LIGHT, _style.ON_DARK} & set(_style.THEMED)


# The command


def test_command_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``florana report DIR`` prints the path of the page; a folder of neither kind is exit code 2 and one message."""
    folder = write_run(tmp_path / "run", [round_line(0)])
    for argument, code in ((folder, 0), (tmp_path, 2)):
        monkeypatch.setattr(sys, "argv", ["florana", "report", str(argument)])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        assert ending.value.code == code
    captured = capsys.readouterr()
    assert captured.out.split() == [str(folder / "report.html")]
    assert captured.err.startswith("florana: ")
    assert "Traceback" not in captured.err


# TensorBoard


def test_tensorboard_holds_every_round(tmp_path: Path) -> None:
    """What is read back from the event file is what the rounds said; what a round lacks is not there."""
    pytest.importorskip(
        "tensorboard",
        reason="the package tensorboard is missing: pip install 'florana[tensorboard]'",
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardWatcher() as board:
        board.watch(Prepared({}, tmp_path, 0))
        board.watch(RoundRow(0, 0.1, 2.5))
        board.watch(ClientLeftOut(1, "client 2", "late"))
        board.watch(RoundRow(1, 0.4, 1.5, 0.6, 0.3, 0.2, 0.5, 0.1, 2_000_000, 1_000_000, 0.2))
        board.watch(RoundRow(2, 0.5, 1.0, 0.7, 0.4, 0.1, 0.3, 0.1, 2_000_000, 1_000_000, 0.2))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def told(tag: str) -> dict[int, float]:
        return {e.step: pytest.approx(e.value, rel=1e-6) for e in events.Scalars(tag)}

    assert told("global/score") == {0: 0.1, 1: 0.4, 2: 0.5}
    assert told("global/loss") == {0: 2.5, 1: 1.5, 2: 1.0}
    assert told("error/used") == {1: 0.2, 2: 0.1}
    assert told("clients/gap") == {1: 0.2, 2: 0.2}
    assert told("megabytes/up") == {0: 0, 1: 2, 2: 4}
    assert told("clients/left_out") == {1: 1}


def test_tensorboard_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the message says how to install it."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'florana[tensorboard]'")):
        TensorBoardWatcher()


def test_tensorboard_needs_the_plan_first(tmp_path: Path) -> None:
    """A round that belongs to no run is refused."""
    pytest.importorskip(
        "tensorboard",
        reason="the package tensorboard is missing: pip install 'florana[tensorboard]'",
    )
    with TensorBoardWatcher(tmp_path) as board, pytest.raises(RunError, match="plan"):
        board.watch(RoundRow(0, 0.1, 2.5))


# A real browser

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
MEASURE = """<script>
addEventListener("load", () => {
  const width = document.documentElement.clientWidth, wide = [], cut = [], sizes = [];
  const seen = e => e.getClientRects().length > 0;
  const all = what => [...document.body.querySelectorAll(what)].filter(seen);
  for (const e of all("*")) {
    if (e.ownerSVGElement || e.closest(".scroll, pre, details:not([open])")) continue;
    const box = e.getBoundingClientRect();
    if (box.right > width + 1 || box.left < -1) wide.push(e.outerHTML.slice(0, 60));
  }
  for (const e of all("svg text")) {
    const box = e.getBoundingClientRect(), paper = e.ownerSVGElement.getBoundingClientRect();
    const m = e.getScreenCTM();
    sizes.push(parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b));
    if (box.left < paper.left - 1 || box.right > paper.right + 1 || box.top < paper.top - 1
        || box.bottom > paper.bottom + 1) cut.push(e.textContent);
  }
  parent.postMessage({page: document.documentElement.scrollWidth, width, wide, cut, smallest: Math.min(...sizes),
    figures: all("svg").length, tables: all(".scroll").map(e => e.clientWidth)}, "*");
});
</script>"""
FRAME = """<!doctype html><body style="margin:0"><iframe style="border:0;width:{width}px;height:{height}px"
src="{source}"></iframe><script>
addEventListener("message", e => {{ document.body.setAttribute("data-found", JSON.stringify(e.data)); }});
</script>"""


class Browser:
    """A headless browser: every call is a process of its own, which is ended with all its children."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def __call__(self, *arguments: str) -> str:
        """Run the browser; what it printed."""
        profile = self._folder / "profile"
        command = [self._program, *FLAGS, f"--user-data-dir={profile}", *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            return process.communicate(timeout=120)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of it may have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(profile, ignore_errors=True)

    def measure(self, page: Path, width: int) -> dict[str, Any]:
        """What a copy of the page with a measuring script finds, in a frame of this width."""
        text = page.read_text("utf-8")
        text, count = re.subn(r"<meta http-equiv[^>]*>", MEASURE, text)
        assert count == 1
        (self._folder / "copy.html").write_text(text, "utf-8")
        frame = self._frame("copy.html", width, 900)
        dom = self("--virtual-time-budget=20000", "--dump-dom", frame.as_uri())
        found = re.search(r'data-found="([^"]*)"', dom)
        assert found, dom[:2000]
        measured: dict[str, Any] = json.loads(found[1].replace("&quot;", '"'))
        return measured

    def picture(self, page: Path, width: int, height: int) -> Image.Image:
        """The page as it is, in a frame of this width: a window cannot be as narrow as a phone."""
        frame = self._frame(page.as_uri(), width, height)
        file = self._folder / "picture.png"
        self(f"--window-size={max(width, 600)},{height}", f"--screenshot={file}", frame.as_uri())
        with Image.open(file) as image:
            return image.convert("RGB").crop((0, 0, width, height))

    def _frame(self, source: str, width: int, height: int) -> Path:
        frame = self._folder / "frame.html"
        frame.write_text(FRAME.format(source=source, width=width, height=height), "utf-8")
        return frame


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """A real browser, where there is one."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)}): apt-get install chromium")
    return Browser(found, tmp_path)


@pytest.mark.parametrize("width", [390, 1200])
def test_browser_lays_the_page_out(browser: Browser, page_path: Path, width: int) -> None:
    """On a phone and on a desk: nothing is wider than the page, tables scroll in their own box, no text in a figure is cut off, and all of it is large enough."""
    found = browser.measure(page_path, width)
    assert found["page"] == found["width"] == width
    assert found["wide"] == []
    assert found["cut"] == []
    assert found["tables"]
    assert max(found["tables"]) <= width
    assert found["figures"] >= 4
    assert found["smallest"] >= 9  # CSS pixels


@pytest.mark.parametrize("width", [390, 1200])
def test_browser_paints_the_page(browser: Browser, run_page: Path, width: int) -> None:
    """A picture of the page is not blank: ink, a figure's blue, and the page's own ground are in it."""
    image = browser.picture(run_page, width, 2400)
    counts = {colour: count for count, colour in image.getcolors(1 << 24) or ()}
    assert len(counts) > 200
    for colour in (_style.INK, _style.BLUE, "#f5f7f9"):
        rgb = tuple(int(colour[k : k + 2], 16) for k in (1, 3, 5))
        assert counts.get(rgb, 0) > 100, colour
    upper, lower = image.crop((0, 0, width, 1200)), image.crop((0, 1200, width, 2400))
    assert all(len(part.getcolors(1 << 24) or ()) > 50 for part in (upper, lower))


def test_browser_prints_the_page(browser: Browser, run_page: Path, tmp_path: Path) -> None:
    """Printed, the page is a PDF of a few pages, with what is folded on a screen."""
    file = tmp_path / "report.pdf"
    browser("--no-pdf-header-footer", f"--print-to-pdf={file}", run_page.as_uri())
    data = file.read_bytes()
    assert data.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 12
