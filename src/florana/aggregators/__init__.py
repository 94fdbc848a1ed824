"""Aggregation methods: one method, one file, found by themselves.

To add one, put a file beside this one with a frozen dataclass under
:func:`florana.aggregators.register`; the command line, the config check, ``florana methods`` and the
contract tests find it. See CONTRIBUTING.md.
"""

from __future__ import annotations

import importlib
import pkgutil

from florana.aggregators._aggregate import (
    Aggregate,
    Errors,
    aggregate,
    with_residual,
)
from florana.aggregators._checks import check_compatible, check_finite
from florana.aggregators._contract import (
    Card,
    Method,
    Module,
    ModuleResult,
    build,
    card,
    cards,
    nearest,
    register,
)

for _found in pkgutil.iter_modules(__path__):
    if not _found.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_found.name}")

__all__ = [
    "Aggregate",
    "Card",
    "Errors",
    "Method",
    "Module",
    "ModuleResult",
    "aggregate",
    "build",
    "card",
    "cards",
    "check_compatible",
    "check_finite",
    "nearest",
    "register",
    "with_residual",
]
