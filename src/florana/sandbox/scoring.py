"""Which completions are right."""

from __future__ import annotations

from collections.abc import Sequence

from florana.sandbox.errors import SandboxError
from florana.sandbox.outcome import Limits, Outcome
from florana.sandbox.reference import Reference, program
from florana.sandbox.run import run_programs


def passes(
    completions: Sequence[str],
    references: Sequence[str],
    *,
    allow: bool = False,
    jobs: int | None = None,
    limits: Limits | None = None,
    accept_weaker: bool = False,
) -> list[bool]:
    """Which completions make a program that passes the tests of its reference.

    Args:
        completions: n texts that a model wrote.
        references: n JSON texts, see :class:`Reference`.
        allow: must be True, since this runs the programs: ``evaluation.allow_code``.
        jobs: programs at once; by default one for each processor.
        limits: of each program.
        accept_weaker: run even where network, files or left-over processes cannot be kept safe.

    Raises:
        SandboxError: without ``allow``; for references that are none; if programs cannot be run safely here.
    """
    results = outcomes(
        completions,
        references,
        allow=allow,
        jobs=jobs,
        limits=limits,
        accept_weaker=accept_weaker,
    )
    return [outcome.passed for outcome in results]


def outcomes(
    completions: Sequence[str],
    references: Sequence[str],
    *,
    allow: bool = False,
    jobs: int | None = None,
    limits: Limits | None = None,
    accept_weaker: bool = False,
) -> list[Outcome]:
    """As :func:`passes`, with the reasons."""
    if len(completions) != len(references):
        raise SandboxError(
            f"{len(completions)} completions came with {len(references)} references; one each is needed"
        )
    read = [Reference.of(text) for text in references]
    pairs = [(program(text, ref), ref.tests) for text, ref in zip(completions, read, strict=True)]
    return run_programs(pairs, allow=allow, jobs=jobs, limits=limits, accept_weaker=accept_weaker)
