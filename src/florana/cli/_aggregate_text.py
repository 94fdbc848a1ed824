"""How an aggregation of folders reads on a terminal: eighty columns, the worst modules, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from florana.aggregators import card
from florana.folders._text import plain
from florana.folders.result import FolderResult, ModuleReport

MOST_ADAPTERS = 12
"""Adapters that get a line; of more, the first ones do."""
MOST_MODULES = 5
NAME = 42
"""Width of a module's name."""


_EXACT = ["average: of plain averaging of A and of B; optimum: the least at this rank"]
_STREAMED = [
    "used: estimated; bound: not exceeded, with 99 % certainty; least: no pair of this",
    "rank comes nearer. Modules were read in passes; --no-streaming needs more memory",
    "and is exact",
]


def text(result: FolderResult, out: Path) -> str:
    """All that a person reads.

    Args:
        result: what was made.
        out: where, as it was given.
    """
    parts = [_head(result), _adapters(result), _errors(result), _others(result), _next(result, out)]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _head(result: FolderResult) -> list[str]:
    count, ranks = len(result.weights), result.ranks
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    kind = {"lora": "LoRA", "dora": "DoRA", "hira": "HiRA"}[result.variant]
    settings = "".join(f", {key} = {value}" for key, value in result.options.items())
    residual = (
        [
            f"the rank is larger than the adapters', since {result.method} keeps a residual beside the pair"
        ]
        if card(result.method).keeps_residual
        else []
    )
    return [
        f"{count:,} {kind} adapter{'s' if count > 1 else ''} made into one of {rank}, {', '.join(result.dtypes)}",
        plain(f"method {result.method}{settings}"),
        *residual,
    ]


def _adapters(result: FolderResult) -> list[str]:
    if result.equal and len(result.weights) > 1:
        head = ["weights are equal, since none were given (--weights N,N,...)"]
    else:
        head = []
    if result.equal and not result.absent:
        return head
    lines = []
    width = max(len(_cut(name)) for name in result.weights)
    for name, share in result.weights.items():
        lacks = len(result.absent.get(name, ()))
        done = {"zero": "counted as no change", "mean": "averaged over the others"}
        said = f", lacks {lacks:,} modules: {done[result.missing]}" if lacks else ""
        lines.append(f"  {_cut(name):<{width}}  weight {share:.3f}{said}")
    more = len(lines) - MOST_ADAPTERS
    return [*head, *lines[:MOST_ADAPTERS], *([f"  and {more:,} more"] if more > 0 else [])]


def _errors(result: FolderResult) -> list[str]:
    overall = result.estimate or result.error
    if overall is None:
        return []
    streamed = result.estimate is not None
    names = ("used", "bound", "least") if streamed else ("used", "average", "optimum")
    worst = result.worst(MOST_MODULES)
    width = max(len("all modules"), *(len(_cut(m.name)) for m in worst))
    meaning = _STREAMED if streamed else _EXACT
    lines = [
        "distance to the weighted mean of the updates, relative to its size",
        *meaning,
        "",
        _row("", "rank", names, width),
        _row("all modules", _span(result.ranks), [f"{n:.3f}" for n in overall[:3]], width),
    ]
    if len(result.modules) > 1:
        lines += [_module(m, streamed, width) for m in worst]
    if len(result.modules) > len(worst):
        lines.append(
            f"{len(result.modules) - len(worst):,} more modules are nearer; README.md has them all"
        )
    return lines


def _module(module: ModuleReport, streamed: bool, width: int) -> str:
    told = module.told if streamed or module.errors is None else module.errors
    return _row(_cut(module.name), str(module.rank), [f"{n:.3f}" for n in told[:3]], width)


def _row(name: str, rank: str, cells: Sequence[str], width: int) -> str:
    return f"{name:<{width}}  {rank:>5}" + "".join(f"  {cell:>8}" for cell in cells)


def _span(ranks: Sequence[int]) -> str:
    return f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _others(result: FolderResult) -> list[str]:
    count = len(result.parameters)
    plural = "s" if count > 1 else ""
    return (
        [f"{count:,} parameter{plural} beside the pairs averaged with the same weights"]
        if count
        else []
    )


def _next(result: FolderResult, out: Path) -> list[str]:
    return [
        f"the adapter is in {plain(str(out))} ({result.seconds:.1f} s); load it with",
        f"  PeftModel.from_pretrained(model, {plain(repr(str(out)))})",
    ]


def _cut(name: str) -> str:
    """The end of a name, which says more than its beginning."""
    shown = plain(name)
    return shown if len(shown) <= NAME else "…" + shown[1 - NAME :]
