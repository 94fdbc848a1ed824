"""Whether what a model wrote is right, by the name that a task or a configuration gives its scorer.

A reference is text: the gold answer for ``number`` and ``math``; for ``program`` a JSON object with the tests of a
program, as :mod:`florana.sandbox` reads it. No written text makes a scorer raise or hang.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from florana.errors import DataError
from florana.tasks.answers import mathematics, numbers

Scorer = Callable[[Sequence[str], Sequence[str]], list[bool]]
"""n written texts, n references -> n verdicts."""


def by_number(written: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Which texts end in the number of their reference: GSM8K, SVAMP, MAWPS.

    Raises:
        DataError: if there are not as many references as texts.

    Example:
        >>> by_number(["#### 7", "The answer is 8."], ["7", "7"])
        [True, False]
    """
    return [numbers.correct(*pair) for pair in _pairs(written, references)]


def by_mathematics(written: Sequence[str], references: Sequence[str]) -> list[bool]:
    r"""Which texts give an answer in LaTeX that equals their reference: MATH.

    Raises:
        DataError: if there are not as many references as texts.
        ConfigError: if Math-Verify, of the extra ``math``, is not installed.

    Example:
        >>> by_mathematics([r"\boxed{\frac{2}{4}}", r"\boxed{x}"], ["0.5", "0.5"])
        [True, False]
    """
    return [mathematics.correct(*pair) for pair in _pairs(written, references)]


def by_running(written: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Which texts are programs that pass the tests of their reference: MBPP, HumanEval.

    The programs are run, by :mod:`florana.sandbox`: whoever takes this scorer has been allowed to, by
    ``evaluation.allow_code``.

    Raises:
        SandboxError: if there are not as many references as texts, or programs cannot be run safely here.
    """
    from florana.sandbox import passes

    return passes(written, references, allow=True)


def check_references(scorer: str, references: Sequence[str], name: str) -> None:
    r"""Refuse references that no answer can ever equal, before anything is trained.

    Args:
        scorer: a name of :data:`SCORERS`.
        references: what answers will be held against.
        name: of the data, for the message.

    Raises:
        DataError: naming the first example whose reference holds no answer.
        SandboxError: likewise, of programs.

    Example:
        >>> check_references("number", ["#### 7", "none"], "mine.jsonl")
        Traceback (most recent call last):
        ...
        florana.errors.DataError: mine.jsonl, example 2: the reference 'none' holds no number; ...
    """
    if scorer == "program":
        from florana.sandbox import Reference

        for reference in references:
            Reference.of(reference)
        return
    kind, answer = {
        "number": ("number", numbers.final_number),
        "math": ("answer", mathematics.gold_answer),
    }[scorer]
    for number, reference in enumerate(references, start=1):
        if answer(reference) is None:
            raise DataError(
                f"{name}, example {number}: the reference {reference[:60]!r} holds no {kind}; mend data.reference or take "
                f"the example out, or set data.metric to what needs no scorer {scorer!r}"
            )


def _pairs(written: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    if len(written) != len(references):
        raise DataError(
            f"{len(written)} written answers, but {len(references)} references; each answer needs its own"
        )
    return list(zip(written, references, strict=True))


SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {"number": by_number, "math": by_mathematics, "program": by_running}
)
"""Every scorer by name."""
