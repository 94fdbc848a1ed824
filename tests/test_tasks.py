"""Labelled text and how it is spread over clients."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from florana.errors import DataError
from florana.tasks import docstrings, tables
from florana.tasks.dataset import TextDataset
from florana.tasks.partition import (
    MIN_EXAMPLES,
    SCHEMES,
    Indices,
    Scheme,
    hold_out,
    partition,
    split_clients,
)
from strategies import few, seeds

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def rng(seed: int = 0) -> np.random.Generator:
    """A generator for one call."""
    return np.random.default_rng(seed)


def spread(labels: Indices, clients: int, scheme: Scheme, seed: int = 0) -> list[Indices]:
    """A partition with three times as many groups as clients."""
    groups = [f"group {i % (3 * clients)}" for i in range(len(labels))]
    return partition(
        labels, clients, scheme, rng(seed), dirichlet_alpha=5.0, min_labels=1, groups=groups
    )


def sizes(parts: Sequence[Indices]) -> list[int]:
    """Number of examples of every part."""
    return [len(part) for part in parts]


# How examples are spread over clients


@every_scheme
@few
@given(seed=seeds, clients=st.integers(2, 8), classes=st.integers(2, 6), more=st.integers(0, 99))
def test_a_partition_gives_every_example_to_one_client(
    scheme: Scheme, seed: int, clients: int, classes: int, more: int
) -> None:
    """Parts are disjoint, cover everything, and none is smaller than the minimum."""
    count = 40 * clients + more
    labels = rng(seed).integers(classes, size=count)
    assume(len(np.unique(labels)) == classes)
    parts = spread(labels, clients, scheme, seed)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert min(sizes(parts)) >= MIN_EXAMPLES


@every_scheme
@few
@given(seed=seeds)
def test_a_partition_is_a_function_of_its_generator(scheme: Scheme, seed: int) -> None:
    """The same generator gives the same parts, whatever was drawn elsewhere in between."""
    labels = np.arange(300) % 4
    first = spread(labels, 4, scheme, seed)
    np.random.rand()  # the global generator is the point
    again = spread(labels, 4, scheme, seed)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "label"])
def test_another_generator_gives_another_partition(scheme: Scheme) -> None:
    """Parts depend on the seed, except where a column decides."""
    labels = np.arange(300) % 4
    first, other = spread(labels, 4, scheme, 0), spread(labels, 4, scheme, 1)
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_parts_are_sorted_and_do_not_follow_the_order_of_the_data() -> None:
    """Indices ascend within a part; an iid part is no slice of the file."""
    for part in spread(np.arange(400) % 4, 4, "iid"):
        assert np.array_equal(part, np.sort(part))
        assert np.ptp(part) > 200


def test_a_dirichlet_part_holds_two_labels_and_small_alpha_is_more_skewed() -> None:
    """Every client has two classes or more, and the largest class share falls as alpha grows."""

    def skew(alpha: float) -> float:
        labels = np.arange(2000) % 5
        parts = partition(labels, 4, "dirichlet", rng(), dirichlet_alpha=alpha)
        assert min(len(np.unique(labels[p])) for p in parts) >= 2
        return float(np.mean([np.bincount(labels[p]).max() / len(p) for p in parts]))

    assert skew(0.3) > skew(3.0) > skew(100.0) > 0.19
    assert skew(100.0) < 0.3


@few
@given(seed=seeds, per_client=st.integers(1, 3))
def test_a_label_shard_limits_the_labels_of_a_client(seed: int, per_client: int) -> None:
    """With equal classes and as many shards as a multiple of classes, a shard has one label."""
    labels = rng(seed).permutation(np.arange(720) % 3)
    parts = partition(labels, 6, "label", rng(seed), labels_per_client=per_client, min_labels=1)
    assert sizes(parts) == [120] * 6
    assert max(len(np.unique(labels[part])) for part in parts) <= per_client


@few
@given(seed=seeds, clients=st.integers(2, 5), values=st.integers(5, 12))
def test_a_column_value_stays_with_one_client(seed: int, clients: int, values: int) -> None:
    """No group is split, and loads differ by no more than the largest group."""
    drawn = rng(seed).integers(values, size=60 * clients)
    assume(len(np.unique(drawn)) == values)
    groups = [f"speaker {v}" for v in drawn]
    labels = np.zeros_like(drawn)
    parts = partition(labels, clients, "column", rng(), min_labels=1, groups=groups)
    owners = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, owners)) == values
    assert max(sizes(parts)) - min(sizes(parts)) <= np.bincount(drawn).max()


@pytest.mark.parametrize(
    ("scheme", "options", "expected"),
    [
        ("iid", {}, ["client 0 would have 1 training examples", "40 examples", "40 clients", "fewer clients"]),
        ("label", {}, ["would have", "40 clients", "use fewer clients or more data"]),
        ("dirichlet", {}, ["Dirichlet(0.3)", "40 clients", "federation.dirichlet_alpha", "'label'"]),
        ("dirichlet", {"dirichlet_alpha": 1e-300}, ["Dirichlet(1e-300)", "raise federation.dirichlet_alpha"]),
        ("column", {"groups": ["a", "b"] * 20}, ["2 values", "40 clients", "set federation.clients to 2 or less"]),
        ("column", {}, ["federation.column"]),
    ],
)  # fmt: skip
def test_an_impossible_partition_says_what_to_change(
    scheme: Scheme, options: dict[str, Any], expected: list[str]
) -> None:
    """Too many clients, no column or too few values of it: a DataError names the key to change."""
    with pytest.raises(DataError) as caught:
        partition(np.arange(40) % 4, 40, scheme, rng(), **options)
    for part in expected:
        assert part in str(caught.value)


def test_a_poor_group_is_named() -> None:
    """A column whose rarest value alone makes a client is refused with the client's number."""
    groups = ["common"] * 95 + ["rare"] * 5
    with pytest.raises(DataError, match="client 1 would have 5 training examples"):
        partition(np.arange(100) % 2, 2, "column", rng(), groups=groups)


@given(count=st.integers(0, 300), fraction=st.floats(0.01, 0.99), seed=seeds)
def test_hold_out_splits_into_two(count: int, fraction: float, seed: int) -> None:
    """Kept and held out are disjoint, sorted, cover everything, and neither is empty from two on."""
    kept, held = hold_out(count, fraction, rng(seed))
    assert np.array_equal(np.sort(np.concatenate([kept, held])), np.arange(count))
    assert np.array_equal(kept, np.sort(kept))
    assert np.array_equal(held, np.sort(held))
    if count >= 2:
        assert len(kept) >= 1
        assert len(held) == min(max(1, round(count * fraction)), count - 1)


@few
@given(seed=seeds, fraction=st.sampled_from([0.05, 0.1, 0.5]))
def test_clients_hold_out_of_their_own(seed: int, fraction: float) -> None:
    """Each client's train and test are its own part, cut in two."""
    parts = spread(np.arange(300) % 4, 4, "dirichlet", seed)
    splits = split_clients(parts, fraction, rng(seed))
    for part, split in zip(parts, splits, strict=True):
        assert np.array_equal(np.sort(np.concatenate([split.train, split.test])), part)
        assert len(split.test) == max(1, round(len(part) * fraction))


# Labelled text as a value

SMALL = TextDataset(
    "small",
    ["one", "two", "three", "four"],
    np.array([0, 1, 0, 1]),
    ["odd", "even"],
    ["1", "2", "3", "4"],
    ["a", "a", "b", "b"],
)


def test_a_client_of_one_label_is_refused_unless_allowed() -> None:
    """A client with fewer labels than min_labels is named with what to change; min_labels=1 allows it."""
    labels = np.repeat([0, 1], 50)
    groups = ["a"] * 50 + ["b"] * 50
    with pytest.raises(DataError, match=r"client 0 .*min_labels"):
        partition(labels, 2, "column", rng(), groups=groups)
    assert sizes(partition(labels, 2, "column", rng(), min_labels=1, groups=groups)) == [50, 50]


def test_a_single_class_is_refused() -> None:
    """A classifier needs two labels; the message says how many examples and labels there are."""
    with pytest.raises(DataError, match=r"^lonely: 2 examples with 1 label\(s\)"):
        TextDataset("lonely", ["a", "b"], np.array([1, 1]), ["no", "yes"])
    with pytest.raises(DataError, match="0 examples with 0 label"):
        TextDataset("none", [], np.array([], dtype=np.int64), ["no", "yes"])


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ["one"]},
        {"labels": np.array([0, 1])},
        {"text_pairs": ["1"]},
        {"groups": ["a", "b", "c"]},
    ],
)
def test_columns_of_unlike_length_are_refused(change: dict[str, Any]) -> None:
    """Texts, labels, pairs and groups must be of one length."""
    with pytest.raises(DataError, match=r"small: columns have unlike lengths \[\d, 4\]"):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ["one", "two", "three", "five"]},
        {"texts": ["two", "one", "three", "four"]},
        {"labels": np.array([0, 1, 1, 0])},
        {"label_names": ["odd", "level"]},
        {"label_names": ["even", "odd"]},
        {"text_pairs": ["1", "2", "3", "5"]},
        {"text_pairs": None},
        {"groups": ["a", "b", "b", "b"]},
        {"groups": None},
        {"text_pairs": ["a", "a", "b", "b"], "groups": ["1", "2", "3", "4"]},
    ],
)
def test_the_fingerprint_changes_with_any_change(change: dict[str, Any]) -> None:
    """Texts, pairs, labels, groups, label names and their order all count; the name does not."""
    assert replace(SMALL, **change).fingerprint != SMALL.fingerprint
    assert replace(SMALL, name="other").fingerprint == SMALL.fingerprint


def test_the_fingerprint_tells_where_one_text_ends() -> None:
    """Moving a border between two texts changes it."""
    texts = [TextDataset("x", t, np.array([0, 1]), ["a", "b"]) for t in (["ab", "c"], ["a", "bc"])]
    assert texts[0].fingerprint != texts[1].fingerprint


def test_select_takes_every_column() -> None:
    """The chosen examples keep text, label, pair and group; the label names stay."""
    chosen = SMALL.select(np.array([3, 0]))
    assert list(chosen.texts) == ["four", "one"]
    assert chosen.labels.tolist() == [1, 0]
    assert (chosen.text_pairs, chosen.groups) == (["4", "1"], ["b", "a"])
    assert chosen.label_names == SMALL.label_names


def test_head_draws_at_random_and_keeps_the_order() -> None:
    """A random share without repetition; all of it where no count is given or it is too large."""
    data = TextDataset("x", [str(i) for i in range(50)], np.arange(50) % 2, ["a", "b"])
    head = data.head(20, rng())
    numbers = [int(text) for text in head.texts]
    assert len(set(numbers)) == 20
    assert numbers == sorted(numbers)
    assert numbers != list(range(20))
    assert data.head(None, rng()) is data
    assert data.head(99, rng()) is data


# The default data


@pytest.fixture(scope="module")
def library() -> TextDataset:
    """The running Python's docstrings."""
    return docstrings.load()


def test_docstrings_are_many_different_and_long_enough(library: TextDataset) -> None:
    """Ten labels, each with examples; no text twice; six words or more, one blank between words."""
    assert len(library.label_names) == 10
    assert np.bincount(library.labels, minlength=10).min() > 30
    assert len(set(library.texts)) == len(library) > 3000
    for text in library.texts:
        assert len(text.split()) >= docstrings.MIN_WORDS
        assert text == " ".join(text.split())


def test_parts_of_the_library_do_not_overlap() -> None:
    """Every module belongs to one part."""
    modules = [module for names in docstrings.PARTS.values() for module in names.split()]
    assert len(modules) == len(set(modules))


def test_docstrings_are_the_same_every_time_and_import_nothing(library: TextDataset) -> None:
    """Another process gets the same fingerprint; sources are parsed, not run, and print nothing."""
    code = (
        "import sys\n"
        "from florana.tasks import docstrings\n"
        "before = set(sys.modules)\n"
        "print(docstrings.load().fingerprint)\n"
        "new = set(sys.modules) - before\n"
        "assert not new & {'antigravity', 'this', 'turtle', 'tkinter', 'mailbox', 'nntplib'}, new\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == library.fingerprint + "\n"


def write(root: Path, name: str, content: str | bytes) -> None:
    """Write a source file."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def test_docstrings_of_another_library(tmp_path: Path) -> None:
    """Broken, binary, test and unknown files are passed over; a repeated text counts once, for its first file."""
    write(tmp_path, "json/__init__.py", '"""Reads and writes the JSON format here."""\n')
    write(tmp_path, "json/tool.py", 'def f():\n    """Too short."""\n')
    write(
        tmp_path, "random.py", 'class A:\n    """Draws numbers of   all kinds\n    at random."""\n'
    )
    write(tmp_path, "secrets.py", '"""Reads and writes the JSON format here."""\n')
    write(tmp_path, "csv.py", "def broken(:\n")
    write(tmp_path, "html.py", b'"""Holds a null byte \x00 in its docstring."""\n')
    write(tmp_path, "ssl.py", b'"""Not in UTF-8: \xff one two three."""\n')
    write(tmp_path, "json/test/test_json.py", '"""A test of the library does not count."""\n')
    write(tmp_path, "mymodule.py", '"""A module that is not of the library."""\n')
    data = docstrings.load(tmp_path)
    found = {t: data.label_names[i] for t, i in zip(data.texts, data.labels, strict=True)}
    assert found == {
        "Reads and writes the JSON format here.": "data formats",
        "Draws numbers of all kinds at random.": "numbers and dates",
    }


@pytest.mark.parametrize("root", ["", "not there"])
def test_a_python_without_sources_is_told(tmp_path: Path, root: str) -> None:
    """No docstrings at all: a DataError says where it looked and what else to use."""
    with pytest.raises(DataError, match=r"no docstrings under .*set data\.source"):
        docstrings.load(tmp_path / root)


# The user's own tables


def table(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def read(source: str | Path, **columns: Any) -> TextDataset:
    """Load with the default columns."""
    return tables.load(str(source), **{"text": "text", "label": "label", **columns})


ROWS = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]


def test_jsonl_with_sorted_labels(tmp_path: Path) -> None:
    """Labels are sorted whatever their order in the file; blank lines are passed over."""
    source = Path(table(tmp_path / "data.jsonl", ROWS))
    source.write_text(source.read_text() + "\n  \n")
    data = read(source)
    assert (list(data.texts), data.labels.tolist()) == (["good", "bad"], [1, 0])
    assert list(data.label_names) == ["no", "yes"]


def test_a_line_of_jsonl_ends_at_a_newline_only(tmp_path: Path) -> None:
    r"""A text may hold U+2028, U+0085 or a form feed, which ``str.splitlines`` would cut at."""
    texts = ["a\u2028b", "c\x85d"]
    rows = [{"text": text, "label": i} for i, text in enumerate(texts)]
    assert list(read(table(tmp_path / "data.jsonl", rows)).texts) == texts


def test_csv_reads_as_the_same_jsonl(tmp_path: Path) -> None:
    """One table in both formats has one fingerprint; quotes, commas and newlines survive."""
    rows = [{"text": 'he said, "no"\nand left', "label": "1"}, {"text": "é", "label": "0"}]
    path = tmp_path / "data.csv"
    path.write_text('text,label\n"he said, ""no""\nand left",1\né,0\n', "utf-8")
    assert read(path).fingerprint == read(table(tmp_path / "data.jsonl", rows)).fingerprint


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl"])
def test_the_mark_that_spreadsheets_write_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    """A file that begins with a UTF-8 byte order mark reads like one without."""
    content = "text,label\na,0\nb,1\n"
    if name.endswith("jsonl"):
        content = '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert list(read(tmp_path / name).texts) == ["a", "b"]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """All jsonl and csv files of a folder, and nothing else."""
    table(tmp_path / "b.jsonl", [{"text": "second", "label": 1}])
    (tmp_path / "a.csv").write_text("text,label\nfirst,0\n")
    (tmp_path / "README.md").write_text("not data")
    assert list(read(tmp_path).texts) == ["first", "second"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([10, 9, 1, 2], ["1", "2", "9", "10"]),
        (["10", "b", "9", "a"], ["9", "10", "a", "b"]),
        ([1.5, -1, 0, 1], ["-1", "0", "1", "1.5"]),
        ([True, False], ["false", "true"]),
        (["nan", "3", "inf", "-inf", "nope", "1"], ["1", "3", "-inf", "inf", "nan", "nope"]),
        ([None, 1], None),
    ],
)
def test_numbers_sort_by_value_and_words_by_letter(
    tmp_path: Path, labels: list[Any], expected: list[str] | None
) -> None:
    """Ten comes after nine; the words nan and inf are words, so that the order is total."""
    source = table(tmp_path / "data.jsonl", [{"text": "t", "label": label} for label in labels])
    if expected is None:
        with pytest.raises(DataError, match="example 1: column 'label' holds no value"):
            read(source)
    else:
        assert list(read(source).label_names) == expected


def test_pairs_groups_and_other_names(tmp_path: Path) -> None:
    """Columns may have any name; the second text and the group are read where asked for."""
    rows = [{"q": f"q{i}", "a": f"a{i}", "y": i % 2, "who": i} for i in range(4)]
    data = read(table(tmp_path / "d.jsonl", rows), text="q", text_pair="a", label="y", group="who")
    assert data.text_pairs == ["a0", "a1", "a2", "a3"]
    assert data.groups == ["0", "1", "2", "3"]


def test_the_classes_of_a_test_file_are_those_of_the_training_data(tmp_path: Path) -> None:
    """Indices follow the given names, and a label that training did not have is named."""
    source = table(tmp_path / "test.jsonl", ROWS)
    data = read(source, label_names=["maybe", "no", "yes"])
    assert (data.labels.tolist(), list(data.label_names)) == ([2, 1], ["maybe", "no", "yes"])
    with pytest.raises(DataError, match=r"test\.jsonl: labels \['yes'\] do not occur in the train"):
        read(source, label_names=["maybe", "no"])


GOOD = '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'

MALFORMED = {
    "bad JSON": ("d.jsonl", GOOD + "\n{oops\n", r"d\.jsonl, line 4: not JSON"),
    "deep JSON": ("d.jsonl", GOOD + "[" * 100_000, r"d\.jsonl, line 3: not JSON"),
    "no object": ("d.jsonl", GOOD + "[1, 2]\n", "line 3: expected an object, got list"),
    "no column": ("d.jsonl", GOOD + '{"txt": "c", "label": 1}\n', "example 3: no column 'text'; it has txt, label"),
    "null": ("d.jsonl", GOOD + '{"text": null, "label": 1}\n', "example 3: column 'text' holds no value"),
    "empty": ("d.jsonl", "", r"d\.jsonl: no examples"),
    "not UTF-8": ("d.jsonl", b'{"text": "\xff"}\n', r"d\.jsonl cannot be read as UTF-8 jsonl"),
    "csv not UTF-8": ("d.csv", b"text,label\n\xff,1\n", r"d\.csv cannot be read as UTF-8 csv"),
    "csv header only": ("d.csv", "text,label\n", r"d\.csv: no examples"),
    "csv without column": ("d.csv", "text,class\na,0\n", "example 1: no column 'label'; it has text, class"),
    "csv short row": ("d.csv", "text,label\na,0\nb\n", "example 2: column 'label' holds no value"),
    "csv long row": ("d.csv", "text,class\na,0,more\n", "example 1: no column 'label'; it has text, class, None"),
    "csv huge field": ("d.csv", 'text,label\n"' + "x" * 200_000 + '",1\n', r"d\.csv cannot be read as UTF-8 csv: field larger"),
    "no table": ("d.tsv", GOOD, r"d\.tsv is none of \.jsonl, \.csv and \.txt"),
    "one label": ("d.jsonl", GOOD[:26] * 2, "2 examples with 1 label"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_table_is_told_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    """One DataError names the file and the line, example or column that is wrong."""
    write(tmp_path, name, content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_folder_without_tables_is_told(tmp_path: Path) -> None:
    """A folder must hold a jsonl, csv or txt file; texts beside tables are notes, not data."""
    with pytest.raises(DataError, match=r"holds no \.jsonl, \.csv or \.txt file"):
        read(tmp_path)
    (tmp_path / "LICENCE.txt").write_text("No speaker says this.")
    (tmp_path / "a.jsonl").write_text(GOOD)
    assert len(read(tmp_path)) == GOOD.count("\n")


def test_a_source_that_is_nowhere_is_told() -> None:
    """Neither a path nor a hub data set that can be had: the message names it."""
    with pytest.raises(DataError, match="nobody/nothing"):
        read("nobody/nothing:config@train")


def test_a_real_table(data_root: Path) -> None:
    """Banking77: 10,003 questions with 77 intents."""
    data = read(data_root / "nlu" / "banking77" / "train.jsonl")
    assert (len(data), len(data.label_names)) == (10_003, 77)
    assert np.bincount(data.labels).min() > 10
    parts = partition(data.labels, 10, "dirichlet", rng(), dirichlet_alpha=0.3)
    assert sum(sizes(parts)) == len(data)


def test_a_source_that_is_neither_file_nor_folder_is_told() -> None:
    """A device has no suffix that could be read, and no files in it."""
    with pytest.raises(DataError, match="/dev/null is none of"):
        tables.load("/dev/null", text="text", label="label")
