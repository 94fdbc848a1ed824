"""How an inspection reads on a terminal: eighty columns of ASCII, but for the spectrum on one that has blocks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from florana.folders._text import LONGEST, plain
from florana.folders.inspect_values import Client, Inspection, Losses, Overlap, Spectrum

WIDTH = 80
NAME = 16
"""Width of the first column of a table of errors."""
MOST_CLIENTS = 24
"""Clients that get a row; of more, those that are unlike the others come first."""
MOST_MODULES = 5
"""Modules that are shown as the worst."""
BLOCKS = "▁▂▃▄▅▆▇█"
DIGITS = "0123456789"


def text(found: Inspection, blocks: bool) -> str:
    """All of an inspection that a person reads.

    Args:
        found: the inspection.
        blocks: whether block characters can be shown.
    """
    parts = [
        _head(found),
        _clients(found.clients),
        _together(found),
        _by_rank(found.losses),
        _own_rank(found.losses),
        _spectrum(found.spectrum, blocks),
        _recommendation(found),
        _modules(found),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _head(found: Inspection) -> list[str]:
    ranks = sorted({rank for client in found.clients for rank in client.ranks})
    said = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    many = len(found.clients) > 1
    kind = {"lora": "LoRA", "dora": "DoRA", "hira": "HiRA"}[found.variant]
    modules = f"{len(found.modules)} module{'s' if len(found.modules) > 1 else ''}"
    lines = [f"{len(found.clients)} {kind} adapter{'s' if many else ''}, {said}, {modules}"]
    if found.base_model:
        lines[0] += f", for {_end(found.base_model, WIDTH - len(lines[0]) - 6)}"
    if found.variant != "lora":
        lines.append("norms, cosines and angles are of the products B A, errors of the weights")
    return lines


def _clients(clients: Sequence[Client]) -> list[str]:
    shown = sorted(clients, key=lambda c: not c.unlike)[:MOST_CLIENTS]
    shown = [client for client in clients if client in shown]
    width = min(25, max(6, *(len(_end(client.name, 25)) for client in shown)))
    lines = [f"  {'client':<{width}}  weight   rank      norm  cosine to the others' mean"]
    for client in shown:
        ranks = [*map(str, dict.fromkeys([*client.ranks[:1], *client.ranks[-1:]]))]
        lines.append(
            f"{'!' if client.unlike else ' '} {_end(client.name, width):<{width}}  {client.weight:6.3f} "
            f"{'-'.join(ranks):>6}  {client.norm:8.4g}  {_number(client.cosine_to_others, 6, 2)}"
        )
    if len(clients) > len(shown):
        lines.append(f"  and {len(clients) - len(shown):,} more; --json has all")
    for client in shown:
        said = [client.note] if client.note else []
        if client.missing:
            said.append(f"it lacks {len(client.missing)} modules")
        if said:
            lines += _wrapped(f"{_end(client.name, 60)}: {'; '.join(said)}", "  ", "    ")
    return lines


def _together(found: Inspection) -> list[str]:
    survives = (
        ""
        if found.survives is None
        else f", {100 * found.survives:.0f} % of the clients' mean norm"
    )
    lines = [f"mean update    norm {found.norm:.4g}{survives}"]
    if len(found.clients) > 1:
        lines.append(f"in common      {found.agreement:.2f} of it (1: all agree, 0: nothing)")
        lines.append(f"column spaces  {_overlap(found.columns)}")
        lines.append(f"row spaces     {_overlap(found.rows)}")
    return lines


def _overlap(overlap: Overlap) -> str:
    if overlap.mean_cosine is None or overlap.chance is None or overlap.largest is None:
        return "unknown: updates are zero"
    return (
        f"mean cosine {overlap.mean_cosine:.2f} (random ones {overlap.chance:.2f}), largest angle "
        f"{overlap.largest:.0f} degrees"
    )


def _by_rank(losses: Losses) -> list[str]:
    room = (WIDTH - NAME) // 7
    rows = {"optimum": losses.optimum} | {m.method: m.by_rank for m in losses.methods if m.by_rank}
    lines = ["error, relative to the mean update's norm, by the rank of the result"]
    for start in range(0, len(losses.ranks), room):
        ranks = losses.ranks[start : start + room]
        lines.append(f"{'':{NAME}}" + "".join(f"{rank:7}" for rank in ranks))
        lines += [_row(name, errors, ranks) for name, errors in rows.items()]
    return lines


def _row(name: str, errors: Mapping[int, float], ranks: Sequence[int]) -> str:
    return f"{name:{NAME}}" + "".join(_number(errors[rank], 7, 3) for rank in ranks)


def _own_rank(losses: Losses) -> list[str]:
    lines = ["error of methods that have a rank of their own", f"{'':{NAME}}  error   rank"]
    lines.append(f"{'plain averaging':{NAME}}{_number(losses.average, 7, 3)}")
    for method in losses.methods:
        if method.own is not None:
            lines.append(
                f"{method.method:{NAME}}{_number(method.own, 7, 3)}{method.own_rank or 0:7}"
            )
    return lines


def _spectrum(spectrum: Spectrum, blocks: bool) -> list[str]:
    if not spectrum.energy:
        return ["energy   none: the mean update is zero"]
    shown = spectrum.energy[: WIDTH - 16]
    line = "".join(_level(share, BLOCKS if blocks else DIGITS) for share in shown)
    last = f"rank 1 to {len(shown)}, share held"
    key = "" if blocks else ", in tenths"
    return [
        f"energy by {last}{key}: 90 % at {spectrum.rank_90}, 95 % at {spectrum.rank_95}, 99 % at {spectrum.rank_99}",
        f"  {line}",
        f"effective rank {spectrum.effective_rank:.1f} (mean of the modules)",
    ]


def _level(share: float, levels: str) -> str:
    return levels[min(len(levels) - 1, int(share * len(levels)))]


def _recommendation(found: Inspection) -> list[str]:
    advice = found.recommendation
    odd = ", ".join(_end(client.name, 25) for client in found.clients if client.unlike)
    first = [*_wrapped(f"first: look at what is marked with ! ({odd})")] if odd else []
    return [
        f"recommended: --rank {advice.rank} --method {advice.method}",
        *first,
        *_wrapped(f"rank: {advice.rank_reason}"),
        *_wrapped(f"method: {advice.method_reason}"),
    ]


def _modules(found: Inspection) -> list[str]:
    if len(found.modules) < 2:
        return []
    total = found.norm**2
    worst = sorted(found.modules, key=lambda m: -_known(m.losses.average))[:MOST_MODULES]
    lines = [
        f"{'worst modules by plain averaging':<41}share of    error of   rank for",
        f"{'':<41}  energy   averaging       95 %",
    ]
    for module in worst:
        share = 100 * module.norm**2 / total if total > 0 else 0.0
        lines.append(
            f"  {_end(module.name, 39):<39}{share:7.1f} % {_number(module.losses.average, 10, 3)} "
            f"{module.spectrum.rank_95:10}"
        )
    return lines


def _known(value: float) -> float:
    return value if value == value else 0.0


def _number(value: float | None, width: int, digits: int) -> str:
    if value is None:
        return f"{'-':>{width}}"
    if abs(value) >= 100:  # of a mean that is next to nothing
        return f"{value:{width}.0e}"
    return f"{value:{width}.{digits}f}"


def _end(name: str, width: int) -> str:
    """The end of a name that is too long, where names of modules and folders differ."""
    shown = plain(name[-LONGEST:])
    return shown if len(shown) <= width else "..." + shown[len(shown) - width + 3 :]


def _wrapped(said: str, first: str = "  ", later: str = "  ") -> Iterator[str]:
    yield from textwrap.wrap(said, WIDTH, initial_indent=first, subsequent_indent=later)
