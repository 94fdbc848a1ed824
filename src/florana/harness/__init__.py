"""Evaluation of a finished model by lm-evaluation-harness, so that its numbers are the field's.

``florana eval`` on the command line. The harness is an extra, and is imported when it is needed.
"""

from __future__ import annotations

from florana.harness.record import read_scores, write_scores
from florana.harness.scores import Score
from florana.harness.table import HEADER, Line, lines
from florana.harness.work import Request, evaluate

__all__ = ["HEADER", "Line", "Request", "Score", "evaluate", "lines", "read_scores", "write_scores"]
