"""The model card of an aggregated adapter: README.md, as PEFT and the hub read it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from florana import __version__
from florana.aggregators import card
from florana.aggregators._checks import NAMES
from florana.folders._text import command_line, is_hub_name, markdown, yaml
from florana.folders.result import FolderResult, ModuleReport

MOST_ROWS = 20
"""Rows of a table that stand open; more are folded up."""

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task type -> the class of transformers that loads the base model for it."""

_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def model_card(result: FolderResult) -> str:
    """The card: what went in, how it was combined, how near the result is to the ideal, and how to load it.

    Names come from the inputs and are escaped; paths are left out but for their ends.

    Args:
        result: what was made.
    """
    parts = [
        _front_matter(result.base_model, result.variant),
        f"# {_title(result)}",
        _summary(result),
        "## Inputs",
        _inputs(result),
        "## Method",
        _method(result),
        "## Distance to the mean update",
        _distance(result),
        "## Use",
        _use(result),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(base_model: str, variant: str) -> str:
    named = is_hub_name(base_model)
    tags = [f"base_model:adapter:{base_model}"] if named else []
    tags += [*dict.fromkeys(["lora", variant]), "federated", "florana"]
    lines = [
        "---",
        *([f"base_model: {yaml(base_model)}"] if named else []),
        "library_name: peft",
        "tags:",
        *(f"- {yaml(tag)}" for tag in tags),
        "---",
    ]
    return "\n".join(lines)


def _title(result: FolderResult) -> str:
    count = len(result.weights)
    made_of = f"{count:,}" if count > 1 else "one"
    return f"{NAMES[result.variant]} adapter made of {made_of}"


def _summary(result: FolderResult) -> str:
    base = re.split(r"[\\/]", result.base_model.rstrip("\\/"))[-1]
    if is_hub_name(result.base_model):
        base = result.base_model
    belongs = f" It belongs to the base model {markdown(base)}." if base else ""
    return (
        f"One PEFT adapter made of {len(result.weights):,} by florana {__version__}, method `{result.method}`, without "
        f"training.{belongs}"
    )


def _inputs(result: FolderResult) -> str:
    equal = (
        "All weights are equal: none were given, and an adapter does not say how many examples it was trained on.\n\n"
        if result.equal and len(result.weights) > 1
        else ""
    )
    lacking = result.absent
    header = ["adapter", "weight", *(["modules it lacks"] if lacking else [])]
    rows = [
        [
            markdown(name),
            f"{share:.4g}",
            *([str(len(lacking.get(name, ())))] if lacking else []),
        ]
        for name, share in result.weights.items()
    ]
    done = {
        "zero": "A module that an adapter lacks counts as no change, ΔW = 0.",
        "mean": "A module that an adapter lacks is averaged over those that have it.",
    }
    said = f"\n\n{done[result.missing]}" if lacking else ""
    return equal + _folded(_table(header, rows), len(rows), "adapters") + said


def _method(result: FolderResult) -> str:
    chosen = card(result.method)
    paper = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", chosen.paper)
    ranks = ", ".join(map(str, result.ranks)) or "none"
    dtypes = ", ".join(result.dtypes)
    settings = ", ".join(f"{key} = {value}" for key, value in result.options.items())
    lines = [
        f"**{chosen.title}** ({paper}): {chosen.summary}.",
        "",
        f"- rank: {ranks}",
        f"- dtype: {dtypes}",
        *([f"- options: {markdown(settings)}"] if settings else []),
        *(
            [
                f"- averaged as they are, with the same weights: {len(result.parameters):,} parameters beside the LoRA pairs"
            ]
            if result.parameters
            else []
        ),
        "",
        "The same again:",
        "",
        _fenced(command_line(result.command), "bash"),
    ]
    return "\n".join(lines)


def _distance(result: FolderResult) -> str:
    told = _IDEAL if result.variant == "lora" else _IDEAL_OF_WEIGHTS
    streamed = result.estimate is not None
    columns = ("used", "bound", "least") if streamed else ("used", "average", "optimum")
    rows = [
        [markdown(m.name), f"{m.shape[0]} × {m.shape[1]}", str(m.rank), *_numbers(m, streamed)]
        for m in result.modules
    ]
    table = _folded(_table(["module", "weight", "rank", *columns], rows), len(rows), "modules")
    return f"{told} {_ESTIMATED if streamed else _EXACT} {_overall(result)}\n\n{table}"


def _overall(result: FolderResult) -> str:
    if result.estimate is not None:
        used, bound, *_ = result.estimate
        return f"Over all modules: used {used:.4g}, at most {bound:.4g}."
    if result.error is None:
        return ""
    used, average, optimum, _ = result.error
    return f"Over all modules: used {used:.4g}, average {average:.4g}, optimum {optimum:.4g}."


def _numbers(module: ModuleReport, streamed: bool) -> list[str]:
    told = module.told if streamed or module.errors is None else module.errors
    return [f"{number:.4g}" for number in told[:3]]


_IDEAL = (
    "The ideal is the weighted mean of the updates, T = Σ w s B A, module by module; a distance is ‖T − X‖ / ‖T‖ in the "
    "Frobenius norm."
)
_IDEAL_OF_WEIGHTS = (
    "The ideal is the weighted mean of the whole weights, module by module; a distance is that of the changed weights, "
    "relative to the size of the ideal change, in the Frobenius norm."
)
_EXACT = (
    "`used` is this adapter's, `average` that of plain averaging of A and of B, `optimum` the least that any pair of its "
    "rank can have."
)
_ESTIMATED = (
    "Modules were read in passes, so `used` is an estimate from random probes, `bound` is not exceeded with 99 % "
    "certainty, and no pair of this rank comes nearer than `least`."
)


def _use(result: FolderResult) -> str:
    base = result.base_model if is_hub_name(result.base_model) else "the-base-model"
    auto = AUTO_CLASSES.get(result.task_type)
    why = "" if auto else "  # or the class that the adapters were trained with"
    auto = auto or "AutoModel"
    code = (
        "from peft import PeftModel\n"
        f"from transformers import {auto}{why}\n\n"
        f'model = {auto}.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(model, "path/of/this/folder")'
    )
    return _fenced(code, "python")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _folded(table: str, rows: int, what: str) -> str:
    if rows <= MOST_ROWS:
        return table
    return f"<details>\n<summary>{rows:,} {what}</summary>\n\n{table}\n\n</details>"


def _fenced(code: str, language: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"
