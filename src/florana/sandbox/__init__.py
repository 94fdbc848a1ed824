"""Running programs that a model wrote, and counting how many are right.

Nothing is run unless it is allowed explicitly. docs/sandbox.md says what holds a program back.
"""

from __future__ import annotations

from florana.sandbox.errors import SandboxError
from florana.sandbox.estimate import mean_pass_at_k, pass_at_k
from florana.sandbox.outcome import Limits, Outcome
from florana.sandbox.protection import Protection
from florana.sandbox.reference import Reference
from florana.sandbox.run import protection, run_program, run_programs
from florana.sandbox.scoring import outcomes, passes

__all__ = [
    "Limits",
    "Outcome",
    "Protection",
    "Reference",
    "SandboxError",
    "mean_pass_at_k",
    "outcomes",
    "pass_at_k",
    "passes",
    "protection",
    "run_program",
    "run_programs",
]
