"""Words and numbers as a report shows them; everything that comes from outside is made harmless here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from florana.tasks.metrics import Metric

NONE = "–"
"""Stands where there is no value."""

_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
_BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """``text`` with every character that a page or an SVG file cannot take replaced by U+FFFD.

    Control characters are no XML, lone surrogates are no UTF-8, and direction marks would reorder what
    stands beside them. Tabs and ends of lines stay.
    """
    return "".join(
        "\ufffd"
        if c in _BIDI or (c not in "\n\t" and unicodedata.category(c) in _UNPRINTABLE)
        else c
        for c in text
    )


def plain(text: object, limit: int | None = None) -> str:
    """One printable line of what may be any text, such as the name of a label.

    Args:
        text: anything; its ``str`` is taken.
        limit: longest length wanted; a longer text loses its end to an ellipsis.

    Example:
        >>> plain("a  name of a label", 12)
        'a name of a…'
    """
    line = printable(" ".join(str(text).split()))
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with so many digits after the point, or a dash where there is none.

    Example:
        >>> number(-0.25), number(None)
        ('−0.250', '–')
    """
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def points(difference: float | None, digits: int = 1, scale: float = 100.0) -> str:
    """A difference of two shares in percentage points, with its sign; of other scores with another scale.

    Example:
        >>> points(0.208), points(-0.01), points(-1.25, scale=1)
        ('+20.8', '−1.0', '−1.2')
    """
    return NONE if difference is None else f"{scale * difference:+.{digits}f}".replace("-", "−")


def score(value: float | None, metric: Metric) -> str:
    """A score under its name.

    Example:
        >>> from florana.tasks.metrics import METRICS
        >>> score(0.652, METRICS["accuracy"]), score(14.21, METRICS["perplexity"])
        ('accuracy 65.2 %', 'perplexity 14.2')
    """
    told = NONE if value is None else metric.text(value).replace("-", "−")
    return f"{metric.label} {told}"


def axis(metric: Metric) -> str:
    """What an axis of scores is called.

    Example:
        >>> from florana.tasks.metrics import METRICS
        >>> axis(METRICS["accuracy"]), axis(METRICS["perplexity"])
        ('accuracy (share)', 'perplexity, lower is better')
    """
    if not metric.higher_is_better:
        return f"{metric.label}, lower is better"
    return f"{metric.label} (share)" if metric.percent else metric.label


def capital(text: str) -> str:
    """A text that begins a sentence.

    Example:
        >>> capital("accuracy by round"), capital("F1 by round")
        ('Accuracy by round', 'F1 by round')
    """
    return text[:1].upper() + text[1:]


def megabytes(size: float) -> str:
    """Bytes as megabytes (10⁶ bytes).

    Example:
        >>> megabytes(3_121_170), megabytes(37_450_000), megabytes(1_234_500_000)
        ('3.12', '37.5', '1,234')
    """
    digits = 2 if size < 1e7 else 1 if size < 1e9 else 0
    return f"{size / 1e6:,.{digits}f}"


def duration(seconds: float) -> str:
    """Wall time in the unit that fits it.

    Example:
        >>> duration(0.04), duration(7.25), duration(161), duration(7384)
        ('0.04 s', '7.2 s', '2.7 min', '2.1 h')
    """
    if seconds < 90:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts ``layer.2`` before ``layer.10``.

    Example:
        >>> sorted(["layer.10", "layer.2"], key=natural)
        ['layer.2', 'layer.10']
    """
    parts = re.findall(r"\d+|\D+", name)
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in parts)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Module names without the parts that all of them have; still no two alike.

    Example:
        >>> short_names(["model.layer.0.attention.query", "model.layer.1.attention.query"])
        {'model.layer.0.attention.query': '0', 'model.layer.1.attention.query': '1'}
        >>> list(short_names(["net.0.attn.q_proj", "net.0.mlp.up_proj", "net.1.attn.q_proj"]).values())
        ['0.attn.q_proj', '0.mlp.up_proj', '1.attn.q_proj']
    """
    parts = {name: name.split(".") for name in dict.fromkeys(names)}
    if len(parts) < 2:
        return {name: split[-1] for name, split in parts.items()}
    common = set.intersection(*(set(split) for split in parts.values()))
    short = {n: ".".join(p for p in split if p not in common) for n, split in parts.items()}
    if len(set(short.values())) == len(parts) and all(short.values()):
        return short
    kept = _common_length(list(parts.values()))
    return {name: ".".join(split[kept:]) for name, split in parts.items()}


def _common_length(lists: Sequence[Sequence[str]]) -> int:
    """How many leading parts all have, leaving each at least one."""
    most = min(len(parts) for parts in lists) - 1
    alike = (len({parts[k] for parts in lists}) == 1 for k in range(most))
    return next((k for k, same in enumerate(alike) if not same), most)
