"""Instruction data: Dolly (CC BY-SA 3.0) and Alpaca (CC BY-NC 4.0), learnt by the loss on responses alone.

Both have no test set: perplexity is that of held-out responses. Dolly's column ``category`` is a natural partition:
``federation.partition = "column"`` with ``federation.column = "category"``.
"""

from __future__ import annotations

from collections.abc import Callable

from florana.tasks.catalogue import NamedTask, Row

METRICS = ("perplexity", "token_accuracy")


def prompt_with(column: str) -> Callable[[Row], str]:
    r"""A prompt of the instruction and of a column that may be empty, in the form that Alpaca made common.

    Args:
        column: what the instruction is about.

    Example:
        >>> prompt_with("input")({"instruction": "Add.", "input": "1 and 2"})
        '### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n'
    """

    def prompt(row: Row) -> str:
        parts = [("Instruction", str(row["instruction"])), ("Input", str(row[column] or ""))]
        told = [f"### {name}:\n{text.strip()}\n\n" for name, text in parts if text.strip()]
        return "".join(told) + "### Response:\n"

    return prompt


TASKS = (
    NamedTask(
        "dolly",
        "causal",
        "databricks/databricks-dolly-15k@train",
        METRICS,
        "Dolly: instructions of eight categories with written responses (CC BY-SA 3.0)",
        prompt_of=prompt_with("context"),
        response="{response}",
    ),
    NamedTask(
        "alpaca",
        "causal",
        "tatsu-lab/alpaca@train",
        METRICS,
        "Alpaca: instructions with generated responses (CC BY-NC 4.0)",
        prompt_of=prompt_with("input"),
        response="{output}",
    ),
)
