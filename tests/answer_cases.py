"""The hand-checked cases of the answer scorers, and the tables of them in docs/answers.md.

Write the tables anew with ``python tests/answer_cases.py``.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

CASES = Path(__file__).with_name("answer_cases.toml")
PAGE = Path(__file__).parent.parent / "docs" / "answers.md"


@dataclass(frozen=True, slots=True)
class Case:
    """What a model wrote, the gold answer, and whether it is right."""

    written: str
    reference: str
    right: bool
    why: str


def cases(scorer: str) -> list[Case]:
    """The cases of a scorer, in the file's order."""
    return [Case(**row) for row in tomllib.loads(CASES.read_text("utf-8"))[scorer]]


def table(scorer: str) -> str:
    """The cases as a Markdown table."""
    rows = [
        f"| {_code(case.written)} | {_code(case.reference)} | {'right' if case.right else 'wrong'} | {case.why} |"
        for case in cases(scorer)
    ]
    return "\n".join(["| written | reference | verdict | |", "| --- | --- | --- | --- |", *rows])


def filled(page: str) -> str:
    """The page with both tables as they are now."""

    def fresh(found: re.Match[str]) -> str:
        return f"{found[1]}\n{table(found[2])}\n<!-- end -->"

    return re.sub(
        r"(<!-- made by: python tests/answer_cases.py, (\w+) -->)\n.*?\n?<!-- end -->",
        fresh,
        page,
        flags=re.DOTALL,
    )


def _code(text: str) -> str:
    shown = text.replace("\n", " ⏎ ").replace("|", r"\|")
    return f"`{shown}`" if shown else "(nothing)"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
    sys.stdout.write(f"{PAGE}\n")
