"""Generated word problems of one and two steps, with worked answers; every word is a token of a small vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LARGEST = 30
"""No number in a problem or in an answer is above it."""

NAMES = "anna ben carla david emma frank gina hugo iris jack kate leo mia noah olga paul".split()  # noqa: SIM905
THINGS = "apples books coins cards eggs flags grapes hats keys lamps nuts pens rings stones".split()  # noqa: SIM905


class Problem(NamedTuple):
    """One row of a data file."""

    operation: str
    question: str
    answer: str
    result: str


@dataclass(frozen=True, slots=True)
class Operation:
    """What is computed and how people ask for it.

    Args:
        numbers: draws three numbers, of which a step more than the wordings name is not used.
        steps: numbers -> the steps, each as (left, sign, right).
        wordings: templates over n, t (name and thing) and a, b, c (numbers).
    """

    numbers: Callable[[np.random.Generator], tuple[int, int, int]]
    steps: Callable[[int, int, int], list[tuple[int, str, int]]]
    wordings: tuple[str, ...]


SIGNS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}


def _sum(rng: np.random.Generator) -> tuple[int, int, int]:
    total = int(rng.integers(2, LARGEST + 1))
    a = int(rng.integers(1, total))
    return a, total - a, int(rng.integers(1, total))


def _product(rng: np.random.Generator) -> tuple[int, int, int]:
    a = int(rng.integers(2, 11))
    b = int(rng.integers(2, min(10, LARGEST // a) + 1))
    return a, b, int(rng.integers(1, LARGEST - a * b + 1)) if a * b < LARGEST else 1


def _less(rng: np.random.Generator) -> tuple[int, int, int]:
    a, b, c = _sum(rng)
    return a + b, b, c


def _share(rng: np.random.Generator) -> tuple[int, int, int]:
    a, b, c = _product(rng)
    return a * b, a, c


def _more(rng: np.random.Generator) -> tuple[int, int, int]:
    while True:
        a, b, c = _product(rng)
        if a * b + c <= LARGEST:
            return a, b, c


OPERATIONS: Mapping[str, Operation] = {
    "join": Operation(
        _sum,
        lambda a, b, _: [(a, "+", b)],
        (
            "{n} has {a} {t} and gets {b} more . how many {t} has {n} now ?",
            "there are {a} {t} in a box and {b} in a bag . how many {t} are there ?",
        ),
    ),
    "leave": Operation(
        _less,
        lambda a, b, _: [(a, "-", b)],
        (
            "{n} has {a} {t} and loses {b} . how many {t} has {n} now ?",
            "of {a} {t} in a box {b} are sold . how many {t} are left ?",
        ),
    ),
    "groups": Operation(
        _product,
        lambda a, b, _: [(a, "*", b)],
        (
            "{n} has {a} bags with {b} {t} each . how many {t} has {n} ?",
            "there are {a} rows of {b} {t} . how many {t} are there ?",
        ),
    ),
    "share": Operation(
        _share,
        lambda a, b, _: [(a, "/", b)],
        (
            "{n} shares {a} {t} equally among {b} friends . how many {t} gets each ?",
            "{a} {t} are packed into {b} equal boxes . how many {t} are in each ?",
        ),
    ),
    "join, then leave": Operation(
        _sum,
        lambda a, b, c: [(a, "+", b), (a + b, "-", c)],
        (
            "{n} has {a} {t} , gets {b} more and then loses {c} . how many {t} has {n} now ?",
            "a shop has {a} {t} , buys {b} and sells {c} . how many {t} has the shop now ?",
        ),
    ),
    "groups, then join": Operation(
        _more,
        lambda a, b, c: [(a, "*", b), (a * b, "+", c)],
        (
            "{n} has {a} bags with {b} {t} each and {c} more . how many {t} has {n} ?",
            "there are {a} rows of {b} {t} and {c} on the floor . how many {t} are there ?",
        ),
    ),
}
"""Operation by name: the clients' skew is over these."""

KNOWN = ("join", "leave")
"""What the base model has seen in words; the others it knows as sums in signs alone."""


def problem(operation: str, rng: np.random.Generator, *, words: bool = True) -> Problem:
    """A problem with its worked answer.

    Args:
        operation: a key of :data:`OPERATIONS`.
        rng: the only source of randomness.
        words: asked in words, or in signs.

    Example:
        >>> made = problem("share", np.random.default_rng(1), words=False)
        >>> made.question, made.answer
        ('24 / 6', '24 / 6 = 4 #### 4')
    """
    kind = OPERATIONS[operation]
    a, b, c = kind.numbers(rng)
    steps = kind.steps(a, b, c)
    results = [SIGNS[sign](left, right) for left, sign, right in steps]
    worked = " ".join(
        f"{left} {sign} {right} = {result}"
        for (left, sign, right), result in zip(steps, results, strict=True)
    )
    wording = str(rng.choice(kind.wordings))
    name, thing = str(rng.choice(NAMES)), str(rng.choice(THINGS))
    question = wording.format(n=name, t=thing, a=a, b=b, c=c)
    if not words:
        first, *later = steps
        question = " ".join(map(str, [*first, *(part for step in later for part in step[1:])]))
    return Problem(operation, question, f"{worked} #### {results[-1]}", str(results[-1]))


def vocabulary() -> list[str]:
    """Every word, number and sign that a problem can have, in one order."""
    text = " ".join(w for kind in OPERATIONS.values() for w in kind.wordings)
    words = {word for word in text.split() if not word.startswith("{")}
    return [
        *map(str, range(LARGEST + 1)),
        *SIGNS,
        *["=", "####", "question", "answer", ":"],
        *sorted({*words, *NAMES, *THINGS}),
    ]
