"""The sandbox's own kind of error."""

from __future__ import annotations

from florana.errors import FloranaError


class SandboxError(FloranaError):
    """Programs that may not be run, or cannot be run safely enough on this system."""
