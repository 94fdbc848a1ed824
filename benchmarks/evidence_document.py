"""Tables into the blocks of docs/evidence.md that are marked for them, so that no figure there is typed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

END = "<!-- end -->"
DOCUMENT = Path(__file__).parents[1] / "docs" / "evidence.md"


def fill(text: str, blocks: Mapping[str, str]) -> str:
    r"""Replace what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` for every NAME among ``blocks``.

    Raises:
        KeyError: if the document has no place for one of them.

    Example:
        >>> fill("<!-- table a -->\nold\n<!-- end -->", {"a": "new"}).splitlines()[1]
        'new'
    """
    for name, block in blocks.items():
        start = f"<!-- table {name} -->\n"
        before, found, rest = text.partition(start)
        if not found:
            raise KeyError(name)
        text = before + start + block + "\n" + rest[rest.index(END) :]
    return text


def write_document(blocks: Mapping[str, str]) -> None:
    """Bring docs/evidence.md up to date, where it exists."""
    if DOCUMENT.exists():
        DOCUMENT.write_text(fill(DOCUMENT.read_text(), blocks))
