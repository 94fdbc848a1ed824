"""What the harness says, as scores, as a file and as a table; no harness needed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from florana.errors import RunError
from florana.harness import HEADER, Score, lines, read_scores, write_scores
from florana.harness.scores import scores

TOLD: dict[str, Any] = {
    "results": {
        "mmlu": {"alias": "mmlu", "acc,none": 0.6, "acc_stderr,none": 0.01},
        "mmlu_law": {"alias": " - law", "acc,none": 0.5, "acc_stderr,none": 0.02},
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": 0.03,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "wikitext": {"alias": "w", "word_perplexity,none": 12.5, "odd,none": float("nan")},
    },
    "group_subtasks": {"mmlu": ["mmlu_law"]},
    "versions": {"mmlu_law": 1, "gsm8k": 3.0},
    "n-shot": {"gsm8k": 5, "mmlu_law": 0},
    "n-samples": {"gsm8k": {"original": 1319, "effective": 100}},
    "higher_is_better": {"gsm8k": {"exact_match": True}, "wikitext": {"word_perplexity": False}},
}


def test_every_number_becomes_a_score() -> None:
    """Each metric of each filter is one score with its own error; what is no number is none."""
    found = {(s.task, s.metric, s.filter): s for s in scores(TOLD, "final", limit=100)}
    assert len(found) == 5
    strict = found["gsm8k", "exact_match", "strict-match"]
    assert (strict.value, strict.stderr, strict.examples, strict.shots) == (0.25, 0.03, 100, 5)
    assert (strict.higher_is_better, strict.version, strict.limit) == (True, "3.0", 100)
    assert found["gsm8k", "exact_match", "flexible-extract"].stderr is None
    assert found["mmlu_law", "acc", "none"].group == "mmlu"
    assert found["mmlu", "acc", "none"].group is None


def test_file_keeps_what_was_measured_before(tmp_path: Path) -> None:
    """A second evaluation adds its scores; one of the same measure and model replaces the old one."""
    assert read_scores(tmp_path) == []
    first = scores(TOLD, "final")
    write_scores(tmp_path, first, "harness 1")
    newer = replace(first[0], value=0.7)
    other = replace(first[0], model="base"), replace(first[0], shots=3)
    write_scores(tmp_path, [newer, *other], "harness 2")
    assert read_scores(tmp_path) == [newer, *first[1:], *other]
    assert json.loads((tmp_path / "evaluation.json").read_text())["harness"] == "harness 2"


ROW = '{"model": "m", "task": "t", "metric": "a", "filter": "none", "value": "1"}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"scores": []}',
        '{"harness": "h", "scores": [3]}',
        f'{{"harness": "h", "scores": [{ROW}]}}',
    ],
)
def test_damaged_file(tmp_path: Path, text: str) -> None:
    """A file that is not ours is refused with the way out, not overwritten."""
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(RunError, match=r"evaluation\.json cannot be read.*remove it"):
        write_scores(tmp_path, [], "harness")
    assert (tmp_path / "evaluation.json").read_text() == text


def test_table_sets_base_beside_adapted() -> None:
    """One line for each adapter and measure, with the base's score of the very same measure."""
    perplexity = Score("final", "w", "ppl", "none", 10.0, higher_is_better=False, shots=0)
    told = [
        perplexity,
        replace(perplexity, model="best", value=9.0),
        replace(perplexity, model="base", value=12.0),
        replace(perplexity, model="base", value=11.0, shots=5),
        replace(perplexity, task="part", group="w"),
    ]
    shown = lines(told)
    assert [line.cells()[2:] for line in shown] == [
        ("0", "–", "final", "12.000", "10.000", "-2.000"),
        ("0", "–", "best", "12.000", "9.000", "-3.000"),
        ("5", "–", "–", "11.000", "–", "–"),
    ]
    assert [line.better for line in shown] == [True, True, None]
    assert len(lines(told, parts=True)) == 4
    assert all(len(line.cells()) == len(HEADER) for line in shown)


def test_table_says_what_is_no_result() -> None:
    """A limit, a filter and a chat template can be seen in the line; an unknown direction is no gain."""
    score = Score("final", "t", "exact_match", "strict", 0.5, 0.1, None, 20, 5, 20, True)
    (line,) = lines([score, replace(score, model="base", value=0.25)])
    assert line.cells() == (
        "t",
        "exact_match (strict), chat",
        "5",
        "first 20",
        "final",
        "0.250 ± 0.100",
        "0.500 ± 0.100",
        "+0.250",
    )
    assert line.better is None
