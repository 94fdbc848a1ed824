"""The tasks that go by a name: where they are, what their columns are called, and how they are judged.

``data.task`` fills the keys of ``[data]`` that a configuration leaves out. Every module of this package that
has ``TASKS``, a tuple of :class:`NamedTask`, adds to the catalogue: a new family of tasks is one new file.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from florana.errors import ConfigError

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A known task.

    Args:
        name: for ``data.task``.
        family: ``classification``, ``regression`` or ``causal``.
        source: of the training examples, on the hub: ``owner/name[:config][@split]``.
        metrics: names of :data:`florana.tasks.metrics.METRICS`; the first judges rounds.
        summary: one line for people, with the source's paper or terms where they matter.
        test: source of the test set, if the hub has a labelled one.
        second_test: of another test set, told beside the first.
        text: columns that may hold the text; the first that is there is taken. The hub's own and those of local files.
        text_pair: likewise the second text of a pair; None for single texts.
        label: likewise the label, or the value of a regression.
        labels: names of the classes, in the order of the numbers that the hub has for them; None: those found.
        value_range: least and greatest value of a regression.
        prompt: causal: a template over columns.
        response: likewise, what the model is to write.
        system: first message of a chat.
        reference: likewise, what the scorer needs; or
        reference_of: the same as a function of the row, for what a template cannot say.
        prompt_of: in place of ``prompt``, a function of the row.
        scorer: a name of :data:`florana.tasks.scorers.SCORERS`.
        max_new_tokens: bound on a generated answer; None: the configuration's default.
    """

    name: str
    family: Literal["classification", "regression", "causal"]
    source: str
    metrics: tuple[str, ...]
    summary: str
    test: str | None = None
    second_test: str | None = None
    text: tuple[str, ...] = ("text",)
    text_pair: tuple[str, ...] | None = None
    label: tuple[str, ...] = ("label",)
    labels: tuple[str, ...] | None = None
    value_range: tuple[float, float] | None = None
    prompt: str | None = None
    response: str | None = None
    system: str | None = None
    reference: str | None = None
    reference_of: Callable[[Row], str] | None = None
    prompt_of: Callable[[Row], str] | None = None
    scorer: str | None = None
    max_new_tokens: int | None = None

    def settings(self) -> dict[str, Any]:
        """What it says of the keys of ``[data]``; a key that it says nothing of is not there."""
        common = ("family", "source", "test", "second_test")
        own = {
            "classification": ("text", "text_pair", "label", "labels"),
            "regression": ("text", "text_pair", "label", "value_range"),
            "causal": ("prompt", "response", "system", "reference", "scorer"),
        }[self.family]
        said = {key: getattr(self, key) for key in (*common, *own)}
        said["metric"] = self.metrics[0]
        return {key: value for key, value in said.items() if value is not None}


@cache
def tasks() -> Mapping[str, NamedTask]:
    """Every known task by name.

    Raises:
        ValueError: if two have one name.
    """
    import florana.tasks

    found: dict[str, NamedTask] = {}
    for module in pkgutil.iter_modules(florana.tasks.__path__, "florana.tasks."):
        for task in getattr(importlib.import_module(module.name), "TASKS", ()):
            if task.name in found:
                raise ValueError(f"two tasks are called {task.name!r}")
            found[task.name] = task
    return found


def find(name: str) -> NamedTask:
    """A task by name.

    Raises:
        ConfigError: if there is none, with the names that are near, or all.

    Example:
        >>> find("stsb").metrics
        ('pearson', 'spearman')
    """
    known = tasks()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    raise ConfigError(f"data.task: there is no task {name!r}, {hint}")
