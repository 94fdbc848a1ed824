r"""Whether two answers in LaTeX are the same mathematics: MATH and sets like it.

The answer of a text is, most explicit first: what stands in its last ``\boxed{...}``, as in MATH (Hendrycks et al., 2021,
https://arxiv.org/abs/2103.03874); what follows the last "answer is", as in Minerva's prompt (Lewkowycz et al., 2022,
https://arxiv.org/abs/2206.14858); the whole text if it is one short line. Two answers are equal if they are written
alike, or are one decimal number, or if Math-Verify (https://github.com/huggingface/Math-Verify) finds them equal, in a
process of its own with bounds on time and memory (:mod:`florana.tasks.answers._equivalence`).

Where we are stricter than Math-Verify: two decimal numbers are compared exactly (it rounds to six decimals, so that
1e-7 would be 0), and a set in braces is no point or interval in parentheses.
"""

from __future__ import annotations

import re
from collections import deque

from florana.tasks.answers._boxed import last_boxed
from florana.tasks.answers._equivalence import equivalent
from florana.tasks.answers._numerals import decimal

LONGEST = 1000
"""Characters of an answer; a longer one is right only if it is written as the reference is."""
LONGEST_LINE = 200
"""Characters of a text that is taken for an answer as a whole."""

_SAID = re.compile(r"\banswer\b[*_]{0,3}[ \t]{0,3}(?:is\b|:)[*_]{0,3}:?\s{0,9}", re.IGNORECASE)
_DOLLARS = re.compile(r"(?<!\\)\$([^$]{1,1000})(?<!\\)\$")
_WORD = re.compile(r"\s*(?:\\(?:text|mathrm|mbox|textbf)\s?\{[^{}\\]*\})+\.?\s*\Z")
_END = re.compile(r"\.(?:\s|$)|\n|\. ?I hope")
_ALIKE = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (
        re.compile(
            r"\\(?:left|right)(?![a-zA-Z])|\\[!,;: ]|[\s$~]|(?<=\d)\{(?=,\}\d{3})|(?<=,)\}(?=\d{3})"
        ),
        "",
    ),
    (re.compile(r"\\(?:text|mathrm|mbox|textbf)\{([^{}\\]{0,200})\}"), r"\1"),
    (re.compile(r"(?<=[^.])\.$"), ""),
)


def correct(written: str, reference: str) -> bool:
    r"""Whether the answer of a text equals the reference's.

    Args:
        written: what the model wrote; any text at all.
        reference: the gold answer in LaTeX, such as ``\frac{1}{2}``, or a whole solution that ends in a box.

    Returns:
        False too where the text gives no answer, or the comparison takes too long.

    Raises:
        ConfigError: if Math-Verify is not installed; no text makes it raise.

    Example:
        >>> correct(r"Half of it, so \boxed{\dfrac{1}{2}}.", r"\frac{1}{2}")
        True
        >>> correct("I do not know.\nReally.", "1")
        False
    """
    answer, gold = final_answer(written), gold_answer(reference)
    if answer is None or gold is None:
        return False
    mine, theirs = alike(answer), alike(gold)
    if mine == theirs:
        return True
    if not mine:
        return False
    if max(len(mine), len(theirs)) > LONGEST or _braced(mine) != _braced(theirs):
        return False
    if _WORD.match(gold):
        return _bare(mine) == _bare(theirs)
    number, gold_number = decimal(mine), decimal(theirs)
    if number is not None and gold_number is not None:
        return number == gold_number
    return equivalent(answer, gold)


def final_answer(text: str) -> str | None:
    r"""The answer that a text gives, as it is written there, or None.

    Example:
        >>> final_answer("Final Answer: The final answer is $x^2$. I hope it is correct.")
        'x^2'
        >>> final_answer(r"Then \boxed{(1, \{2\})} is it.")
        '(1, \\{2\\})'
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    if r"\boxed" in text:  # one that was never closed
        return None
    said = deque(_SAID.finditer(text), maxlen=1)
    if said:
        return _first(text[said[0].end() : said[0].end() + LONGEST])
    line = text.strip()
    return line if line and "\n" not in line and len(line) <= LONGEST_LINE else None


def gold_answer(reference: str) -> str | None:
    r"""The answer of a reference: as of any text, or else the whole of it; None where nothing is left.

    Example:
        >>> gold_answer("x^2"), gold_answer("It is $x^2$, so \\boxed{x^2}."), gold_answer(" ")
        ('x^2', 'x^2', None)
    """
    answer = final_answer(reference) or reference
    return answer if alike(answer) else None


def alike(answer: str) -> str:
    r"""An answer without what only concerns its looks: spaces, sizes of fractions and brackets, ``\text``.

    Example:
        >>> alike(r"\left( \dfrac{1}{2}, 10{,}000 \right).")
        '(\\frac{1}{2},10,000)'
    """
    for pattern, plain in _ALIKE:
        answer = pattern.sub(plain, answer)
    return answer


def _first(text: str) -> str | None:
    """The answer at the head of a text: between its first dollars if it starts so, else its first sentence."""
    dollars = _DOLLARS.match(text)
    if dollars:
        return dollars[1]
    end = _END.search(text)
    return (text if end is None else text[: end.start()]).strip().strip("*") or None


def _bare(word: str) -> str:
    """A word or the letter of a choice: ``(B)``, ``B.`` and ``b`` are one."""
    return word.casefold().strip("().")


def _braced(answer: str) -> bool | None:
    r"""Whether a list is a set in braces (True) or in parentheses (False); None for all else."""
    if "," not in answer:
        return None
    if answer.startswith(r"\{") and answer.endswith(r"\}"):
        return True
    return None
