"""docs/tasks.md says of every known task what the catalogue says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from florana.config import check_config, load_config
from florana.tasks.catalogue import tasks
from florana.tasks.judging import judge_of
from florana.tasks.metrics import METRICS

PAGE = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text("utf-8")


def test_every_task_is_in_the_table_with_its_metric() -> None:
    """A row per task of the catalogue and no other: its family, what judges it, and what is told beside."""
    rows = dict(re.findall(r"^\| `(\S+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows.keys() == tasks().keys()
    for name, row in rows.items():
        family, judge, also = (cell.strip() for cell in f"{row} ".split("|"))
        task = tasks()[name]
        config = load_config(None, [f"data.task={name}"])
        assert family == task.family
        assert judge.split(",")[0] == judge_of(config).label
        told = {METRICS[metric].label for metric in task.metrics[1:]}
        if family == "causal":
            told |= {"perplexity", "token accuracy"} - {judge}
        shown = {word for word in also.split(", ") if word and word != "mismatched"}
        assert shown == (told or ({"accuracy"} if task.second_test else set())), name


def test_its_configuration_is_one() -> None:
    """The TOML that it shows is taken as it stands."""
    for block in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL):
        check_config(tomllib.loads(block))
