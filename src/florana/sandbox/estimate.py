"""pass@k: how often one of k programs is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from florana.sandbox.errors import SandboxError


def pass_at_k(samples: int, correct: int, k: int) -> float:
    r"""Probability that at least one of k programs is right, estimated without bias from n ≥ k programs.

    pass@k = 1 − C(n − c, k) / C(n, k), computed as 1 − ∏ (1 − k / i) over i = n − c + 1, …, n, so that no binomial
    coefficient overflows and small values keep their digits. (1 − (1 − c/n)^k would be biased.)

    Args:
        samples: n, programs that were made for the problem.
        correct: c, how many of them are right.
        k: at most n.

    Raises:
        SandboxError: unless 0 <= c <= n and 1 <= k <= n.

    Source: Chen et al., Evaluating Large Language Models Trained on Code (arXiv 2107.03374), equation 1.

    Example:
        >>> pass_at_k(10, 3, 1), round(pass_at_k(10, 3, 2), 6)
        (0.3, 0.533333)
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise SandboxError(
            f"pass@{k} of {samples} programs with {correct} right is not defined: "
            "0 <= correct <= samples and 1 <= k <= samples are needed; make more programs, or lower k"
        )
    if samples - correct < k:
        return 1.0
    if k == 1:
        return correct / samples
    return -math.expm1(
        math.fsum(math.log1p(-k / i) for i in range(samples - correct + 1, samples + 1))
    )


def mean_pass_at_k(results: Sequence[Sequence[bool]], k: int) -> float:
    """The mean of :func:`pass_at_k` over problems.

    Args:
        results: for each problem, which of its programs are right; problems may have unlike numbers of programs.
        k: at most the least number of programs of a problem.

    Raises:
        SandboxError: if there is no problem, or one has fewer than k programs.

    Example:
        >>> mean_pass_at_k([[True, False], [False, False]], 1)
        0.25
    """
    if not results:
        raise SandboxError("pass@k needs at least one problem")
    return math.fsum(pass_at_k(len(r), sum(r), k) for r in results) / len(results)
