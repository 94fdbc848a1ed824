r"""How numbers are written in prose and in LaTeX, read as exact rationals.

Read: ``-7``, ``+7``, ``1,000.50`` (a comma parts thousands, in the Indian way too), ``1{,}000``, ``1\,000``, ``.5``,
``$-5``, ``-$5``, ``3/4``, ``1 3/4``, ``\frac34``, ``1\frac{3}{4}``, ``2.5e3``, ``2.5 x 10^3``, ``10^3``. Units,
currencies and percent signs are beside the number, as in the sets: 50% is 50. A scale ("5 million") is a unit too.
Words ("twelve") are no numbers. A minus between two numbers subtracts; a colon or a second slash parts numbers.

Everything is bounded, so that text from a model costs time in proportion to its length: a number has up to
400 digits and an exponent up to 400.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

DIGITS = 400
"""Digits that a number may have; a longer one is none."""
EXPONENT = 400
"""Largest power of ten that a number may be written with."""


class Numeral(NamedTuple):
    """A number as it was written."""

    value: Fraction
    decimals: int
    """Digits behind its point; 0 for fractions and powers."""


_COMMA = r"(?:,|\{,\}|\\[,!;:]|,\\!|[\u00a0\u2009\u202f'’](?=[0-9]{3}(?![0-9])))"
_THOUSANDS = rf"[0-9]{{1,3}}(?:{_COMMA}[0-9]{{2,3}}){{0,60}}{_COMMA}[0-9]{{3}}(?![0-9])"
_INTEGER = rf"[0-9]{{1,{DIGITS}}}(?![0-9])"
_FRACTION = (
    r"\\[dtc]?frac\s?(?:\{\s?([0-9]{1,99})\s?\}|([0-9]))\s?(?:\{\s?([0-9]{1,99})\s?\}|([0-9]))"
)
_NUMERAL = re.compile(
    rf"""
    (?: (?<![\w)\]}}]) (?<![\d)\]]\s) (?P<sign>[-−–+]) [ ]? )?
    (?: (?:\\?\$|[€£¥₹]) [ ]? (?P<inner>[-−])? )?
    (?:
        (?P<mixed>[0-9]{{1,99}})? \s? {_FRACTION}
      | (?<![0-9]) (?P<whole>[0-9]{{1,99}}) [ ] (?P<top>[0-9]{{1,99}})/(?P<bottom>[0-9]{{1,99}}) (?![0-9/])
      | (?<![0-9/]) (?P<over>[0-9]{{1,99}}) [ ]? / [ ]? (?P<under>[0-9]{{1,99}}) (?![0-9/]|[.,][0-9])
      | (?<![0-9]) (?: (?P<integer>{_THOUSANDS}|{_INTEGER}) (?P<decimal>\.[0-9]{{1,{DIGITS}}}(?![0-9]))?
                     | (?P<point>(?<![\w.])\.[0-9]{{1,{DIGITS}}}(?![0-9])) )
        (?: [eE] (?P<e>[+-]?[0-9]{{1,9}}) (?![0-9])
          | \s? (?:[x×*·]|\\times|\\cdot) \s? 10 \s? (?:\^|\*\*) \s? \{{? (?P<ten>[-−+]?[0-9]{{1,9}}) (?![0-9]) \}}?
          | (?:\^|\*\*) \{{? (?P<power>[0-9]{{1,9}}) (?![0-9]) \}}?
        )?
    )
    """,
    re.VERBOSE,
)

_DECIMAL = re.compile(rf"[-−+]?(?:(?:{_THOUSANDS}|{_INTEGER})(?:\.[0-9]*)?|\.[0-9]+)")


def numerals(text: str, *, last: bool = False) -> Iterator[Numeral]:
    """The numbers of a text, from the left, or only the last one.

    Args:
        text: any text.
        last: the last one only.

    Yields:
        What can be read; a number beyond the bounds, or over zero, is left out.

    Example:
        >>> [str(n.value) for n in numerals("-3 apples at $1,250.50, 2 1/2 pies, 1.5 x 10^3 m, 48-24")]
        ['-3', '2501/2', '5/2', '1500', '48', '24']
    """
    found = _numerals(text)
    yield from deque(found, maxlen=1) if last else found


def decimal(text: str) -> Fraction | None:
    """The value of a text that is one decimal number and nothing else, or None.

    Example:
        >>> decimal("-1,000.50"), decimal("1/2"), decimal("5 cm")
        (Fraction(-2001, 2), None, None)
    """
    if len(text) > 2 * DIGITS or not _DECIMAL.fullmatch(text):
        return None
    return Fraction(re.sub(r"[^0-9.+-]", "", text.replace("−", "-")))


def _numerals(text: str) -> Iterator[Numeral]:
    for match in _NUMERAL.finditer(text):
        value = _value(match)
        if value is not None:
            negative = (match["sign"] or "+") in "-−–" or match["inner"] is not None
            decimals = match["decimal"] or match["point"] or "."
            yield Numeral(-value if negative else value, len(decimals) - 1)


def _value(match: re.Match[str]) -> Fraction | None:
    top = match["over"] or match["top"] or match[_TOP] or match[_TOP + 1]
    if top is not None:
        bottom = int(match["under"] or match["bottom"] or match[_TOP + 2] or match[_TOP + 3])
        whole = int(match["whole"] or match["mixed"] or 0)
        return None if bottom == 0 else whole + Fraction(int(top), bottom)
    digits = re.sub(r"[^0-9]", "", match["integer"] or "") + (
        match["decimal"] or match["point"] or ""
    )
    if len(digits) > DIGITS:
        return None
    value = Fraction(digits)
    if match["power"] is not None:
        return _power(value, int(match["power"]))
    exponent = int((match["e"] or match["ten"] or "0").replace("−", "-"))
    return None if abs(exponent) > EXPONENT else value * Fraction(10) ** exponent


def _power(value: Fraction, exponent: int) -> Fraction | None:
    size = max(value.numerator.bit_length(), value.denominator.bit_length())
    return None if size * exponent > 4 * DIGITS else value**exponent


_TOP = _NUMERAL.groupindex["mixed"] + 1
