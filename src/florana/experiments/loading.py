"""The model of a finished run, for people who want to use it."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from florana.errors import ModelError, RunError
from florana.experiments.run_folder import RunFolder
from florana.seeding import torch_seed
from florana.training import objectives
from florana.training.base_model import build_model, find_model


def load_model(run: str | os.PathLike[str], adapter: str = "final") -> nn.Module:
    """The model that a run made: its base model with its adapter, ready to predict.

    Args:
        run: a run folder, made by ``florana run``.
        adapter: ``"final"`` or ``"best"``.

    Returns:
        A ``PeftModel`` in evaluation mode.

    Raises:
        RunError: if the folder holds no such run or adapter.
        ModelError: if the model cannot be found here, or has other weights than the run's.
    """
    from peft import PeftModel

    folder = Path(run) / adapter
    base = load_base_model(run)
    if not folder.is_dir():
        raise RunError(
            f"{run} has no adapter {adapter!r} yet; finish it: florana run --resume {run}"
        )
    return PeftModel.from_pretrained(base, str(folder)).eval()


def load_base_model(run: str | os.PathLike[str]) -> nn.Module:
    """The base model that a run's adapters belong to, ready for ``PeftModel.from_pretrained``.

    Args:
        run: a run folder, made by ``florana run``.

    Returns:
        The model with a head for the run's labels; the adapter brings the trained head.

    Raises:
        RunError: if the folder holds no run.
        ModelError: if the model cannot be found here, or has other weights than the run's.

    Example:
        ``PeftModel.from_pretrained(load_base_model("runs/demo"), "runs/demo/final")``
    """
    folder = RunFolder.open(Path(run))
    provenance, config = folder.read_provenance(), folder.read_config()
    source = find_model(config.model.name)
    expected = provenance["base_model"]["sha256"]
    if source.sha256 != expected:
        raise ModelError(
            f"{source.name} has weights {source.sha256[:12]}…, the run used {expected[:12]}…"
        )
    objective = objectives.build(config, len(provenance["labels"]), source)
    return build_model(source, config.model, objective.head, torch_seed(config.seed, "head"))
