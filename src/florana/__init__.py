"""florana: federated fine-tuning of foundation models with LoRA, aggregated nearly exactly.

The public names below are loaded when first used, so that ``import florana`` and
``florana --help`` cost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from florana.adapter import Adapter, ClientUpdate, LoraPair, Plan
    from florana.aggregators import Aggregate, Errors, GlobalState, aggregate
    from florana.errors import FloranaError
    from florana.experiments.loading import load_base_model, load_model
    from florana.folders.aggregate import aggregate_folders
    from florana.folders.inspect import inspect_folders
    from florana.folders.inspect_values import Inspection
    from florana.folders.result import FolderResult
    from florana.peft_io import load_adapter, save_adapter

__version__ = "0.1.0"

_HOME = {
    "Adapter": "florana.adapter",
    "Aggregate": "florana.aggregators",
    "ClientUpdate": "florana.adapter",
    "Errors": "florana.aggregators",
    "FloranaError": "florana.errors",
    "FolderResult": "florana.folders.result",
    "GlobalState": "florana.aggregators",
    "Inspection": "florana.folders.inspect_values",
    "LoraPair": "florana.adapter",
    "Plan": "florana.adapter",
    "aggregate": "florana.aggregators",
    "aggregate_folders": "florana.folders.aggregate",
    "inspect_folders": "florana.folders.inspect",
    "load_adapter": "florana.peft_io",
    "load_base_model": "florana.experiments.loading",
    "load_model": "florana.experiments.loading",
    "save_adapter": "florana.peft_io",
}

__all__ = [
    "Adapter",
    "Aggregate",
    "ClientUpdate",
    "Errors",
    "FloranaError",
    "FolderResult",
    "GlobalState",
    "Inspection",
    "LoraPair",
    "Plan",
    "__version__",
    "aggregate",
    "aggregate_folders",
    "inspect_folders",
    "load_adapter",
    "load_base_model",
    "load_model",
    "save_adapter",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
