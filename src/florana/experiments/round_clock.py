"""Where the time of a round goes."""

from __future__ import annotations

import time
from collections.abc import Callable


class RoundClock:
    """Seconds of a round by part. Each part lasts from the end of the one before.

    Args:
        trained: seconds of training in this process so far; None if clients are elsewhere.
    """

    def __init__(self, trained: Callable[[], float] | None) -> None:
        self._trained = trained
        self._before = trained() if trained else 0.0
        self._mark = time.perf_counter()
        self._parts: dict[str, float] = {}

    def note_training(self, slowest: float) -> None:
        """Split what has passed into training and federation.

        Args:
            slowest: the longest that a client elsewhere says it trained, which counts as the training of them all.
        """
        passed = self._since()
        training = slowest
        if self._trained is not None:
            training, self._before = self._trained() - self._before, self._trained()
        self._parts |= {"training": training, "federation": passed - training}

    def note(self, part: str) -> None:
        """Put what has passed under ``part``."""
        self._parts[part] = self._since()

    def take(self) -> dict[str, float]:
        """The parts noted so far; the next round begins."""
        parts, self._parts = self._parts, {}
        self._since()
        return parts

    def give_back(self, parts: dict[str, float]) -> None:
        """Put parts back that were taken for something in between."""
        self._parts = parts | self._parts

    def _since(self) -> float:
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        return passed
