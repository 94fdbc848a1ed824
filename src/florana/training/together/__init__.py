"""The clients of a round trained together: one pass of the frozen base for all, every row with its own client's factors."""

from __future__ import annotations

from florana.training.together.choose import choose
from florana.training.together.fit import fit
from florana.training.together.merged import merged
from florana.training.together.swap import Fit
from florana.training.together.training import Job, Trained, held, put, train_together

__all__ = ["Fit", "Job", "Trained", "choose", "fit", "held", "merged", "put", "train_together"]
