"""Scorers by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from florana.errors import DataError
from florana.tasks.catalogue import find
from florana.tasks.scorers import SCORERS, check_references


def test_number() -> None:
    """Verdicts come in the order of the answers."""
    assert SCORERS["number"](["#### 7", "8", ""], ["7", "7", "7"]) == [True, False, False]


def test_math() -> None:
    """Verdicts come in the order of the answers, through the library where letters differ."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    written = [r"\boxed{\frac{2}{4}}", r"\boxed{0.25}", "no\nanswer"]
    assert SCORERS["math"](written, ["0.5", "0.5", "0.5"]) == [True, False, False]


@pytest.mark.parametrize("name", ["number", "math"])
def test_unlike_lengths(name: str) -> None:
    """A list of references that does not fit is refused, not cut."""
    with pytest.raises(DataError, match="2 written answers, but 1 references"):
        SCORERS[name](["1", "2"], ["1"])


@pytest.mark.parametrize(
    ("name", "bad"), [("number", "none"), ("number", "#### "), ("math", " "), ("math", "$ $")]
)
def test_references_without_answers(name: str, bad: str) -> None:
    """A gold answer that nothing can equal is found before training, by its number; all others pass."""
    check_references(name, ["7", r"so \boxed{7}"], "mine.jsonl")
    with pytest.raises(DataError, match=r"mine\.jsonl, example 2: the reference"):
        check_references(name, ["7", bad], "mine.jsonl")


def test_program() -> None:
    """Programs are run against the tests of their reference; what is no reference is refused at once."""
    sandbox = pytest.importorskip("florana.sandbox")
    reference = sandbox.Reference("assert one() == 1").text()
    check_references("program", [reference], "mine.jsonl")
    with pytest.raises(sandbox.SandboxError):
        check_references("program", ["no JSON"], "mine.jsonl")
    written = ["def one():\n    return 1", "def one():\n    return 2"]
    assert SCORERS["program"](written, [reference, reference]) == [True, False]


def filled(name: str, rows: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    """What a perfect model writes in a known task, and the references that it is held against."""
    task = find(name)
    assert task.response is not None
    assert task.reference is not None
    written = [task.response.format(**row) for row in rows]
    return written, [task.reference.format(**row) for row in rows]


@pytest.mark.parametrize(
    ("name", "row", "wrong"),
    [
        ("gsm8k", {"question": "?", "answer": "48/2 = <<48/2=24>>24.\n#### 24"}, " 25\n#### 25"),
        ("svamp", {"question_concat": "?", "Answer": "145.0"}, " The answer is 290."),
        ("mawps", {"question": "?", "result": "9.43"}, " The answer is 9.4."),
        ("math", {"problem": "?", "solution": r"Thus \boxed{\frac{1}{2}}."}, r" \boxed{2}"),
    ],
)
def test_known_tasks(name: str, row: dict[str, str], wrong: str) -> None:
    """A known task's own response is right by its reference and its scorer; another answer is not."""
    if name == "math":
        pytest.importorskip("math_verify", reason="needs the extra math")
    task = find(name)
    assert task.prompt is not None
    assert task.prompt.format(**row)
    assert task.scorer is not None
    written, references = filled(name, [row])
    check_references(task.scorer, references, name)
    assert SCORERS[task.scorer]([*written, wrong], references * 2) == [True, False]


@pytest.mark.parametrize(("name", "scorer"), [("gsm8k", "number"), ("math", "math")])
def test_known_tasks_on_real_sets(data_root: Path, name: str, scorer: str) -> None:
    """Every worked answer of the real set is right by the task's templates and scorer."""
    lines = (data_root / "math" / name / "train.jsonl").read_text("utf-8").rstrip("\n").split("\n")
    written, references = filled(name, [json.loads(line) for line in lines])
    check_references(scorer, references, name)
    assert len(written) >= 4500
    assert all(SCORERS[scorer](written, references))
