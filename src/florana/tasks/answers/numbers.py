r"""The final number of a written answer, compared exactly: GSM8K, SVAMP, MAWPS and sets like them.

Which number of a text is its answer follows the sets' own scorers, most explicit first:

1. the first number after the first ``####``, GSM8K's mark; what comes later is another question's
   (``ANS_RE`` of https://github.com/openai/grade-school-math, which searches from the left);
2. the number in the last ``\boxed{...}``;
3. the number in the sentence after the last "answer is" or "answer:" that has one
   (Kojima et al., 2022, https://arxiv.org/abs/2205.11916);
4. the last number of the text (``flexible-extract`` of lm-evaluation-harness).

In 1 to 3 it is the number behind the last ``=`` where there is one. A mark or a box without a number is no answer.
What a number looks like is in :mod:`florana.tasks.answers._numerals`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import chain, islice

from florana.tasks.answers._boxed import last_boxed
from florana.tasks.answers._numerals import Numeral, numerals

MARK = "####"
ROUNDED = 5
"""A reference with so many decimals or more is a rounded number: MAWPS writes 2/3 as 0.6666666667."""

MOST_SAID = 20
"""Answers in words that are looked at, from the last one."""
LONGEST_SENTENCE = 500

_SAID = re.compile(r"\banswer\b[*_]{0,3}[ \t]{0,3}(?:is\b|are\b|[:=])[*_]{0,3}:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?][*_)\]$]{0,3}(?:\s|$)|\n")


def correct(written: str, reference: str) -> bool:
    """Whether the final number of a text is the reference's.

    Both are rationals, so nothing is rounded; only a reference r of d >= 5 decimals stands for every
    number that rounds to it, ``|w - r| <= 10^-d / 2``, for MAWPS writes 2/3 as 0.6666666667.

    Args:
        written: what the model wrote; any text at all.
        reference: the gold answer, such as ``"1000"`` or a whole worked answer that ends in one.

    Returns:
        False too where either holds no number.

    Example:
        >>> correct("So she has $1,000.00 left.", "1000")
        True
        >>> correct("#### 18", "She makes 9 * 2 = $18. #### 18")
        True
        >>> correct("The answer is 17.", "18")
        False
    """
    found, gold = _final(written), _final(reference)
    if found is None or gold is None:
        return False
    slack = Fraction(1, 2 * 10**gold.decimals) if gold.decimals >= ROUNDED else 0
    return abs(found.value - gold.value) <= slack


def final_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer, exactly, or None.

    Example:
        >>> final_number("3 + 4 = 7, so the answer is 3 + 4 = 7 apples. There were 9 at first.")
        Fraction(7, 1)
        >>> final_number("I do not know.") is None
        True
    """
    found = _final(text)
    return None if found is None else found.value


def _final(text: str) -> Numeral | None:
    _, mark, after = text.partition(MARK)
    if mark:
        return _of(after.lstrip().partition("\n")[0])
    boxed = last_boxed(text)
    if boxed is not None:
        return _of(boxed)
    said = (_of(_sentence(text, at.end())) for at in reversed(list(_SAID.finditer(text))))
    found = next((number for number in islice(said, MOST_SAID) if number is not None), None)
    return found or next(iter(numerals(text, last=True)), None)


def _sentence(text: str, start: int) -> str:
    sentence = text[start : start + LONGEST_SENTENCE].lstrip()
    end = _SENTENCE_END.search(sentence)
    return sentence if end is None else sentence[: end.start()]


def _of(statement: str) -> Numeral | None:
    """The number that a short statement comes to: behind its last ``=``, else its first."""
    result = statement.rpartition("=")[2]
    return next(chain(numerals(result), numerals(statement)), None)
