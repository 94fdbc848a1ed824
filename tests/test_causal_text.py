"""Plain text as rows: speakers, pieces, and nothing lost."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from florana.errors import DataError
from florana.tasks.plain_text import read
from strategies import few

LINES = st.lists(st.text(alphabet="abc de.", min_size=1, max_size=30), min_size=1, max_size=5)
SPEECHES = st.lists(
    st.tuples(st.sampled_from(["ROMEO", "First Citizen", "Lady A."]), LINES), min_size=1, max_size=6
)


def words(text: str) -> list[str]:
    """What a text says, whatever its lines."""
    return text.split()


@few
@given(SPEECHES, st.integers(5, 60))
def test_every_word_stays_with_its_speaker_in_order(
    tmp_path_factory: pytest.TempPathFactory, speeches: list[tuple[str, list[str]]], block: int
) -> None:
    """Rows of one speaker, one after the other, are what that speaker says; none is longer than a block or one line."""
    spoken = [(name, [line for line in lines if line.strip()]) for name, lines in speeches]
    spoken = [(name, lines) for name, lines in spoken if lines]
    if not spoken:
        return
    file = tmp_path_factory.mktemp("play") / "play.txt"
    file.write_text("\n\n".join(f"{name}:\n" + "\n".join(lines) for name, lines in spoken))
    rows = read(file, block)
    for speaker in {name for name, _ in spoken}:
        said = " ".join(line for name, lines in spoken if name == speaker for line in lines)
        made = " ".join(row["text"] for row in rows if row["speaker"] == speaker)
        assert words(made) == words(said)
    for row in rows:
        assert row["text"].strip()
        assert len(row["text"]) <= block or "\n" not in row["text"]


def test_a_text_that_is_no_play_has_no_speakers(tmp_path: Path) -> None:
    """One paragraph without a name is enough; then every word is in a row, names as well."""
    file = tmp_path / "story.txt"
    file.write_text("Once upon a time.\n\nTom:\nHello.\n\n\nThe end.")
    rows = read(file, block=20)
    assert {row["speaker"] for row in rows} == {""}
    assert words(" ".join(row["text"] for row in rows)) == words(file.read_text())


def test_shakespeare_has_speakers(data_root: Path) -> None:
    """All of tinyshakespeare is speeches, and no word of them is lost."""
    file = data_root / "lm" / "tinyshakespeare.txt"
    rows = read(file)
    speakers = Counter(row["speaker"] for row in rows)
    assert {"ROMEO", "JULIET", "First Citizen"} < set(speakers)
    assert "" not in speakers
    speeches = re.split(r"\n{2,}", file.read_text("utf-8"))
    said = [speech.partition("\n")[2] for speech in speeches]
    made = " ".join(row["text"] for row in rows)
    assert Counter(words(made)) == Counter(words(" ".join(said)))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read as UTF-8 text"), (b"\xff\xfe\xff", "UTF-8"), (b" \n\n ", "no text")],
)
def test_a_text_that_cannot_be_had_is_told(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    """Not there, not UTF-8, or nothing in it."""
    file = tmp_path / "x.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(file)
