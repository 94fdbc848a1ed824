"""Plain text as rows: who speaks and what is said, for language modelling with speakers as clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from florana.errors import DataError

BLOCK = 400
"""Most characters of a row, unless one line alone is longer."""

_SPEAKER = re.compile(r"([A-Z][\w .,'&()-]{0,60}):\s*(?:\n|$)")


def read(path: Path, block: int = BLOCK) -> list[dict[str, str]]:
    r"""Rows ``{"speaker", "text"}`` of a play or of any other text.

    Speeches are paragraphs, set apart by empty lines, whose first line is a name and a colon. What one speaker says is
    joined in its order, and cut at the ends of lines into rows of ``block`` characters at most, so that a row is a fair
    piece to learn from. A text with a paragraph that has no speaker is no play: its rows are cut in the same way out of
    the whole text, and their speaker is empty.

    Args:
        path: a file of UTF-8 text.
        block: most characters of a row; a line that is longer makes a row of its own.

    Raises:
        DataError: if the file cannot be read, or holds no text.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "play.txt"
        >>> _ = file.write_text("First Citizen:\nSpeak, speak.\n\nAll:\nResolved.\n")
        >>> read(file)
        [{'speaker': 'First Citizen', 'text': 'Speak, speak.'}, {'speaker': 'All', 'text': 'Resolved.'}]
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    paragraphs = [p.strip("\n") for p in re.split(r"\n[ \t]*\n", text) if p.strip()]
    if not paragraphs:
        raise DataError(f"{path} holds no text")
    said: dict[str, list[str]] = {}
    for paragraph in paragraphs:
        name = _SPEAKER.match(paragraph)
        if name is None:
            return [{"speaker": "", "text": piece} for piece in _pieces(paragraphs, block)]
        speech = paragraph[name.end() :].strip("\n")
        if speech.strip():
            said.setdefault(name[1], []).append(speech)
    return [
        {"speaker": speaker, "text": piece}
        for speaker, speeches in said.items()
        for piece in _pieces(speeches, block)
    ]


def _pieces(paragraphs: list[str], block: int) -> Iterator[str]:
    """Lines in their order, as many together as fit; an empty line between paragraphs."""
    lines = [line for p in paragraphs for line in [*p.split("\n"), ""]]
    piece = ""
    for line in lines:
        longer = f"{piece}\n{line}" if piece else line
        if len(longer) > block and piece:
            yield piece.rstrip("\n")
            longer = line
        piece = longer
    if piece.strip():
        yield piece.rstrip("\n")
