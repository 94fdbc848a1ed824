"""The text that a run learns from, and what is asked of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from florana.config._section import Count, Name, Section
from florana.errors import DataError
from florana.tasks.templates import template_columns

NODES = "nodes"
"""As ``data.source``: every SuperNode of a deployment brings its own file."""

Family = Literal["classification", "regression", "causal"]
"""What is learnt: a class of a text, a number for a text, or to write a text."""

Column = Name | Annotated[tuple[Name, ...], Field(min_length=1)]
"""A column, or names of which the first that the data have is taken."""


class DataConfig(Section):
    r"""The text, and what is asked of it.

    ``task`` names a known task, such as ``"sst2"`` or ``"gsm8k"``; it fills the keys below that are not set, or at
    their default. ``family``:
    a model learns a class for a text (``classification``), a number (``regression``), or to write a response to a
    prompt (``causal``). ``metric`` judges rounds; by default the family's or task's first.

    ``source`` is ``"docstrings"``, a jsonl, csv or txt file, a folder of them, or a hub name
    ``owner/name[:config][@split]``; ``$VARIABLES`` of the environment are filled in. ``test`` is a second source for the global test set; without it
    ``test_fraction`` of the data is held out. ``second_test`` is one more, or the name of a known task, whose scores are told and judge nothing.
    Each client holds out ``local_test_fraction`` of its own.
    ``max_examples`` takes a random part of the source, before anything is held out.
    ``text``, ``text_pair`` and ``label`` are columns; a list of names means the first that the data have.
    ``labels`` names the classes, in the order of the head's outputs; by default those found in the
    data. Data that number their classes from 0 may be given names so. With ``source = "nodes"`` every node of a Flower deployment brings a file of its own (``florana app``); nobody
    sees all of the data then, so ``labels`` has to be given.

    Regression: ``value_range`` are the least and the greatest value that a label can have, told in advance and not
    taken from clients' data; the model is trained on labels mapped linearly from it onto -1 to 1, on the labels
    as they are without it.

    Causal: ``prompt`` and ``response`` are templates over columns, such as ``"Question: {question}\nAnswer:"``;
    ``system`` is a first message for models with a chat template, which ``chat`` uses, does not use, or uses where the
    tokenizer has one (``"auto"``). ``reference`` is a template for what ``scorer`` (``number``, ``math``, ``program``)
    holds a generated answer against; without a scorer nothing is generated.
    """

    task: Name | None = None
    family: Family = "classification"
    metric: Name | None = None
    source: Name = "docstrings"
    test: Name | None = None
    second_test: Name | None = None
    labels: Annotated[tuple[Name, ...], Field(min_length=2)] | None = None
    text: Column = "text"
    text_pair: Column | None = None
    label: Column = "label"
    value_range: tuple[float, float] | None = None
    prompt: str | None = None
    response: Name | None = None
    system: Name | None = None
    chat: bool | Literal["auto"] = "auto"
    reference: Name | None = None
    scorer: Literal["number", "math", "program"] | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    local_test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_examples: Count | None = None

    @model_validator(mode="after")
    def _labels_fit(self) -> DataConfig:
        classes = self.family == "classification"
        if self.source == NODES and self.labels is None and classes:
            raise ValueError("source = 'nodes' needs labels, the names of the classes on all nodes")
        if self.labels and not classes:
            raise ValueError(f"labels are of classification, family is {self.family!r}")
        if self.labels and len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels names a class twice: {', '.join(self.labels)}")
        return self

    @model_validator(mode="after")
    def _family_fits(self) -> DataConfig:
        if self.family == "causal" and self.response is None:
            raise ValueError(
                "family = 'causal' needs response, a template of what the model is to write, such as "
                "' {answer}'"
            )
        if self.family != "causal" and (self.prompt is not None or self.response is not None):
            raise ValueError(
                f"prompt and response are of family = 'causal', family is {self.family!r}"
            )
        for key in ("prompt", "response", "reference"):
            try:
                template_columns(getattr(self, key) or "")
            except DataError as error:
                raise ValueError(f"{key}: {error}") from error
        if self.source == "docstrings" and self.family != "classification":
            raise ValueError(f"family = {self.family!r} needs data.source; docstrings have classes")
        return self

    @model_validator(mode="after")
    def _range_fits(self) -> DataConfig:
        if self.value_range is None:
            return self
        low, high = self.value_range
        if self.family != "regression":
            raise ValueError(f"value_range is of family = 'regression', family is {self.family!r}")
        if not -float("inf") < low < high < float("inf"):
            raise ValueError(f"value_range is [{low:g}, {high:g}], expected [least, greatest]")
        return self
