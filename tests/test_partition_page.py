"""docs/partitions.md: its program prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "partitions.md"


def test_the_table_of_skews_is_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """The page's Python block, run as it stands, prints the block behind it."""
    text = PAGE.read_text("utf-8")
    ((program, printed),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    exec(compile(program, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == printed
