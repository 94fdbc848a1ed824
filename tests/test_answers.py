"""The answer scorers, held against cases that were decided by hand and against the gold answers of real sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from answer_cases import Case, cases, filled
from florana.tasks.answers import mathematics, numbers
from florana.tasks.answers._boxed import last_boxed
from strategies import few

ROOT = Path(__file__).parent.parent


def name(case: Case) -> str:
    """A case in a test's name."""
    return case.why


@pytest.mark.parametrize("case", cases("number"), ids=name)
def test_number_cases(case: Case) -> None:
    """Every hand-checked case of a final number has its verdict."""
    assert numbers.correct(case.written, case.reference) is case.right


@pytest.mark.parametrize("case", cases("math"), ids=name)
def test_math_cases(case: Case) -> None:
    """Every hand-checked case of an answer in LaTeX has its verdict."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    assert mathematics.correct(case.written, case.reference) is case.right


def test_page_shows_the_cases() -> None:
    """docs/answers.md holds the cases as they are tested."""
    page = (ROOT / "docs" / "answers.md").read_text("utf-8")
    assert page == filled(page)
    assert page.count(" | right | ") == sum(c.right for k in ("number", "math") for c in cases(k))


def rows(root: Path, path: str) -> list[dict[str, Any]]:
    """The rows of one of the real sets, which licences keep out of the project.

    Not by ``splitlines``: GSM8K has U+2028 inside its texts.
    """
    return [
        json.loads(line)
        for line in (root / "math" / path).read_text("utf-8").rstrip("\n").split("\n")
    ]


def written_gold(root: Path, kind: str) -> list[tuple[str, str]]:
    """(what a perfect model writes, the reference) of a whole real set."""
    if kind == "gsm8k":
        return [
            (r["answer"], r["answer"].split("####")[1].strip())
            for r in rows(root, "gsm8k/train.jsonl")
        ]
    return [
        (f"The answer is {r['target']}.", str(r["target"]))
        for r in rows(root, f"mawps/{kind}.jsonl")
    ]


@pytest.mark.parametrize("kind", ["gsm8k", "addsub", "singleeq", "singleop"])
def test_number_gold(data_root: Path, kind: str) -> None:
    """All gold answers of a real set are right; each plus one, or off by its last digit, is wrong."""
    gold = written_gold(data_root, kind)
    assert len(gold) > 300
    assert all(numbers.correct(written, reference) for written, reference in gold)
    for _, reference in gold:
        value = Decimal(reference.replace(",", ""))
        last = Decimal(1).scaleb(int(value.as_tuple().exponent))
        for wrong in (value + 1, value + last, value - last, -value if value else 1):
            assert not numbers.correct(f"#### {wrong:f}", reference)


def math_gold(root: Path) -> list[tuple[str, str]]:
    """(solution, answer) of all of MATH that is here."""
    found = [(r["solution"], last_boxed(r["solution"])) for r in rows(root, "math/train.jsonl")]
    assert all(answer for _, answer in found)
    return [(solution, answer) for solution, answer in found if answer]


def test_math_gold(data_root: Path) -> None:
    """All 4500 solutions of MATH are right by their answers, said in Minerva's words too."""
    gold = math_gold(data_root)
    assert len(gold) == 4500
    assert all(mathematics.correct(solution, answer) for solution, answer in gold)
    said = [
        (f"The final answer is ${answer}$. I hope it is correct.", answer) for _, answer in gold
    ]
    assert all(mathematics.correct(written, answer) for written, answer in said)


def test_math_wrong(data_root: Path) -> None:
    """Answers of MATH plus one are wrong (every fifteenth: a wrong answer costs the library's whole effort)."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    for _, answer in math_gold(data_root)[::15]:
        if answer.isdigit():
            assert not mathematics.correct(rf"\boxed{{{int(answer) + 1}}}", answer)
        assert not mathematics.correct(rf"\boxed{{{answer} + 1}}", answer), answer


def test_math_spellings(data_root: Path) -> None:
    """Other spellings of gold answers are right, by the library and not by their letters (every fifteenth)."""
    pytest.importorskip("math_verify", reason="needs the extra math")
    chosen = [a for _, a in math_gold(data_root)[::15] if r"\text" not in a]
    missed = [a for a in chosen if not mathematics.equivalent(a.replace("dfrac", "frac") + " ", a)]
    assert not missed


def shapes(value: Fraction, draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """One of the ways to write an integer or a decimal."""
    number = Decimal(value.numerator) / Decimal(value.denominator)
    grouped = f"{number:,f}"
    return draw(
        st.sampled_from(
            [f"{number:f}", grouped, grouped.replace(",", "{,}"), f"${grouped}", f"{number:f} km"]
        )
    )


@few
@given(st.data(), st.integers(-(10**12), 10**12), st.integers(0, 4))
def test_number_spellings(data: st.DataObject, digits: int, places: int) -> None:
    """However a number is written, and whatever sentence it is in, it is that number and no other."""
    value = Fraction(digits, 10**places)
    text = shapes(value, data.draw)
    for sentence in (
        f"It was 5 at first.\n#### {text}",
        f"The answer is {text}.",
        f"3 days, {text}",
    ):
        assert numbers.final_number(sentence) == value
        assert not numbers.correct(sentence, str(value + 1))


@few
@given(st.text() | st.text(alphabet=r"0123456789.,-/\{}$%^ eE#=×x" + "answer is boxedfrac"))
def test_any_text(text: str) -> None:
    """No text makes extraction raise, and a number that was found is equal to itself."""
    found = numbers.final_number(text)
    assert numbers.correct(text, text) is (found is not None)
    last_boxed(text)
    mathematics.final_answer(text)
    mathematics.alike(text)


@few
@given(st.recursive(st.text(alphabet="x1+ "), lambda inner: inner.map(lambda t: "{" + t + "}")))
def test_nested_boxes(inside: str) -> None:
    """What stands in the last box comes out whole, however deep its braces."""
    assert last_boxed(rf"no \boxed{{1}}, yes \boxed{{{inside}}} of 3}}") == inside


@pytest.mark.parametrize(
    "part",
    [
        "9",
        "1,",
        r"\boxed{",
        "{",
        "answer is ",
        "1/",
        "1.1",
        r"\frac{",
        "$",
        "-",
        "#",
        " ",
        "\n",
        "(",
    ],
)
def test_megabytes(part: str) -> None:
    """A million characters of anything are wrong, in time that grows with their number and not faster."""
    long = part * (300_000 // len(part))
    assert not numbers.correct(long, "2.5")
    assert not mathematics.correct(long, r"\frac{5}{2}")
    assert not mathematics.correct(rf"\boxed{{{long}}}", r"\frac{5}{2}")
