"""MBPP and HumanEval: the right answers pass, wrong ones do not, however they are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from florana.errors import DataError
from florana.sandbox import Limits, Reference, SandboxError, outcomes, passes, protection
from florana.sandbox.reference import program
from florana.tasks import catalogue
from florana.tasks.programs import HUMANEVAL_STOPS, humaneval_reference, mbpp_reference

Row = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    try:
        protection().check()
    except SandboxError as error:
        pytest.skip(f"programs cannot be run here: {error}")


def rows(root: Path, *names: str) -> list[Row]:
    """Problems of jsonl files; skips where they are not there."""
    files = [root / "code" / name for name in names]
    if not all(file.is_file() for file in files):
        pytest.skip(f"no problems in {files[0]}: set FLORANA_DATA")
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def mbpp(data_root: Path) -> list[Row]:
    """Problems of MBPP."""
    return rows(data_root, "mbpp/train.jsonl", "mbpp/validation.jsonl")


@pytest.fixture(scope="module")
def humaneval(data_root: Path) -> list[Row]:
    """Problems of HumanEval."""
    return rows(data_root, "humaneval/sample.jsonl")


def failures(written: Sequence[str], references: Sequence[str]) -> list[tuple[int, str]]:
    """Index and reason of the answers that do not pass."""
    found = outcomes(written, references, allow=True)
    return [(i, outcome.detail) for i, outcome in enumerate(found) if not outcome.passed]


def fenced(code: str) -> str:
    """As a chat model writes it."""
    return f"Sure! Here it is:\n\n```python\n{code}\n```\n\nIt loops over the input. Let me know!"


@pytest.mark.parametrize("style", [str, fenced, "{}\n[DONE]\nanother task".format])
def test_mbpp_gold_passes(mbpp: list[Row], style: Callable[[str], str]) -> None:
    """Every solution of the data set passes: plain, in a chat answer, and with text behind the end mark."""
    chosen = mbpp if style is str else mbpp[::10]
    references = [mbpp_reference(row) for row in chosen]
    assert failures([style(row["code"]) for row in chosen], references) == []


def test_mbpp_wrong_answers_fail(mbpp: list[Row]) -> None:
    """Nothing, prose, broken syntax, and the next problem's solution pass for no problem."""
    chosen = mbpp[::10]
    references = [mbpp_reference(row) for row in chosen]
    others = [row["code"] for row in chosen[1:] + chosen[:1]]
    for wrong in (
        [""],
        ["I cannot do that."],
        ["def broken(:\n    return"],
        ["import sys; sys.exit(0)"],
    ):
        assert not any(passes(wrong * len(chosen), references, allow=True))
    assert not any(passes(others, references, allow=True))


def whole(row: Row) -> str:
    """The whole function."""
    return str(row["prompt"]) + str(row["canonical_solution"])


HUMANEVAL_STYLES = {
    "continuation": lambda row: row["canonical_solution"],
    "continuation that goes on": lambda row: (
        row["canonical_solution"] + "\n\ndef other(:\n    oops"
    ),
    "whole function": whole,
    "chat": lambda row: fenced(whole(row)),
    "chat, body alone": lambda row: fenced(row["canonical_solution"]),
    "fence opened by the prompt": lambda row: whole(row) + "\n```\nAs you see, it works.",
    "two blocks": lambda row: (
        f"```bash\npip install x\n```\n```python\nx = 1\n```\n{fenced(whole(row))}"
    ),
    "cut off": lambda row: "Sure:\n```python\n" + whole(row),
}


@pytest.mark.parametrize("style", HUMANEVAL_STYLES)
def test_humaneval_gold_passes(humaneval: list[Row], style: str) -> None:
    """Every solution of the data set passes, in whatever way models write theirs."""
    references = [humaneval_reference(row) for row in humaneval]
    assert failures([HUMANEVAL_STYLES[style](row) for row in humaneval], references) == []


@pytest.mark.parametrize(
    "wrong",
    ["    return None\n", "    return (\n", "", "    pass\n\ndef check(candidate):\n    pass\n"],
)
def test_humaneval_wrong_answers_fail(humaneval: list[Row], wrong: str) -> None:
    """None, broken syntax, nothing, and a ``check`` of the program's own pass for no problem."""
    references = [humaneval_reference(row) for row in humaneval]
    assert not any(passes([wrong] * len(humaneval), references, allow=True))


def test_wrong_name_fails(humaneval: list[Row]) -> None:
    """A right function under another name is not what was asked for."""
    renamed = [
        fenced(whole(row).replace(f"def {row['entry_point']}(", "def something_else("))
        for row in humaneval
        if row["canonical_solution"].count(row["entry_point"]) == 0
    ]
    references = [
        humaneval_reference(row)
        for row in humaneval
        if row["canonical_solution"].count(row["entry_point"]) == 0
    ]
    assert len(renamed) > 10
    assert not any(passes(renamed, references, allow=True))


HEAD = 'import math\n\n\ndef area(r):\n    """Of a circle."""\n'
AREA = "assert abs(area(1) - 3.1416) < 1e-3"
BODY = "    return math.pi * r * r\n"
CASES: dict[str, tuple[str, str]] = {
    "body": (BODY, "passed"),
    "body behind an empty line": ("\n" + BODY, "passed"),
    "whole, which needs the prompt's import": ("def area(r):\n" + BODY, "passed"),
    "whole, with a helper in front": (
        "def sq(r):\n    return r * r\n\ndef area(r):\n    return math.pi * sq(r)\n",
        "passed",
    ),
    "upper-case fence": (f"```Python\n{HEAD}{BODY}```", "passed"),
    "windows line ends": (f"{HEAD}{BODY}".replace("\n", "\r\n"), "passed"),
    "prints": ("    print('x')\n" + BODY, "passed"),
    "prints success and is wrong": ("    print('passed')\n    return 0\n", "failed"),
    "imports": ("    import decimal, fractions, json\n" + BODY, "passed"),
    "imports what is not of the standard library": ("    import florana\n" + BODY, "failed"),
    "loops": ("    while True: pass\n", "timeout"),
    "forks": ("    import os\n    os.fork()\n" + BODY, "failed"),
    "exits": ("    raise SystemExit(0)\n", "failed"),
    "exits at once": ("    import os\n    os._exit(0)\n", "failed"),
    "asks for input": ("    input()\n" + BODY, "failed"),
    "another language": ("```js\nfunction area(r) { return 3.14 * r }\n```", "failed"),
    "asserts in itself": ("    assert False\n", "failed"),
    "no text": ("", "failed"),
    "a null byte": ("    return '\0'\n", "failed"),
    "lone surrogate": ("    return '\ud800'\n", "failed"),
}


@pytest.mark.parametrize("name", CASES)
def test_hard_cases(name: str) -> None:
    """What becomes of answers as models write them, checked by hand."""
    written, expected = CASES[name]
    reference = Reference(AREA, HEAD, "area", HUMANEVAL_STOPS).text()
    (outcome,) = outcomes([written], [reference], allow=True, limits=Limits(cpu_seconds=1))
    assert outcome.status == expected, outcome


def test_program_is_cut_at_stops_but_not_before_it_begins() -> None:
    """A stop ends an answer only behind its first word; without stops nothing is cut."""
    reference = Reference("", stops=("\ndef",))
    assert program("\n\ndef f():\n    pass\ndef g():", reference) == "\n\ndef f():\n    pass"
    assert program("x\ndef g():", Reference("")) == "x\ndef g():"


def test_bad_references_are_told(mbpp: list[Row]) -> None:
    """A reference that is none, rows that make none, and unlike numbers are errors, not wrong answers."""
    for text in ("4", "{}", "no", '{"tests": "assert ("}', '{"tests": "", "more": 1}'):
        with pytest.raises(SandboxError, match="the reference of a program must be JSON"):
            passes(["x"], [text], allow=True)
    with pytest.raises(DataError, match="list of asserts"):
        mbpp_reference(mbpp[0] | {"test_list": "assert"})
    with pytest.raises(DataError, match="no Python"):
        mbpp_reference(mbpp[0] | {"test_list": ["assert ("]})
    with pytest.raises(DataError, match="name of a function"):
        humaneval_reference({"prompt": "", "test": "", "entry_point": "f()"})
    with pytest.raises(SandboxError, match="1 completions came with 0 references"):
        passes(["x"], [], allow=True)


def test_tasks_are_in_the_catalogue(mbpp: list[Row], humaneval: list[Row]) -> None:
    """Both go by their names, and their templates name columns that the data have."""
    from florana.tasks.tables import template_columns

    for name, row in (("mbpp", mbpp[0]), ("humaneval", humaneval[0])):
        task = catalogue.find(name)
        assert task.scorer == "program"
        assert {*template_columns(task.prompt or ""), *template_columns(task.response or "")} <= {
            *row
        }
        assert task.reference_of is not None
        assert Reference.of(task.reference_of(row)).tests
