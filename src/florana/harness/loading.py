"""The model to evaluate: of a run folder, or of any PEFT folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florana.errors import ConfigError, ModelError, RunError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from florana.training.base_model import ModelSource

SETTINGS = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model with an adapter.

    Args:
        name: of the adapter, for tables: ``final``, ``best``, or ``adapter`` of a PEFT folder.
        model: in evaluation mode; ``disable_adapter()`` makes it its base.
        tokenizer: the base model's.
    """

    name: str
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase


def load(folder: Path, adapter: str = "final", base: str | None = None) -> Adapted:
    """Load what is to be evaluated, on a GPU if there is one.

    Args:
        folder: of a run, or a PEFT folder.
        adapter: ``final`` or ``best``, of a run.
        base: name or folder of the base model, for a PEFT folder whose own word for it means nothing here.

    Raises:
        RunError: if there is neither, or the run is not finished.
        ConfigError: if the model does not write text.
        ModelError: if the base model or the adapter cannot be loaded.
    """
    if (folder / "provenance.json").is_file():
        if base is not None:
            raise ConfigError("--base-model is for PEFT folders; a run knows its base model")
        return _of_run(folder, adapter)
    if (folder / SETTINGS).is_file():
        return _of_peft(folder, base)
    raise RunError(
        f"{folder} is neither a run (no provenance.json) nor a PEFT adapter (no {SETTINGS}); give the folder that "
        "florana run has made"
    )


def _of_run(folder: Path, adapter: str) -> Adapted:
    from florana.experiments.loading import load_model
    from florana.experiments.run_folder import RunFolder
    from florana.training.base_model import find_model

    config = RunFolder.open(folder).read_config()
    if config.data.family != "causal":
        raise ConfigError(
            f"{folder} is a run of data.family = {config.data.family!r}; the harness evaluates models that write text "
            "(causal). The run's own scores are in its metrics.jsonl and report.html"
        )
    if not (folder / adapter / SETTINGS).is_file():
        raise RunError(
            f"{folder} has no adapter {adapter!r} yet; finish it: florana run --resume {folder}"
        )
    model: Any = load_model(folder, adapter)
    return _ready(adapter, model, find_model(config.model.name))


def _of_peft(folder: Path, base: str | None) -> Adapted:
    from peft import PeftModel

    from florana.config import ModelConfig
    from florana.training.base_model import build_model, find_model
    from florana.training.head import Head

    settings = _settings(folder)
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise ConfigError(
            f"{folder} is an adapter with task_type {settings['task_type']!r}; the harness evaluates models that write "
            "text (CAUSAL_LM)"
        )
    name = base or settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder / SETTINGS} names no base model; say it with --base-model")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"{folder} holds no adapter_model.safetensors; pickled weights are not loaded"
        )
    source = find_model(name)
    whole: Any = build_model(source, ModelConfig(), Head("causal", 0), 0)
    try:
        adapted = PeftModel.from_pretrained(whole, str(folder)).eval()
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} does not fit {source.name}: {error}") from error
    return _ready("adapter", adapted, source)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / SETTINGS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / SETTINGS} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{folder / SETTINGS} holds {type(found).__name__}, expected an object")
    return found


def _ready(name: str, model: PeftModel, source: ModelSource) -> Adapted:
    import torch

    from florana.training.base_model import load_tokenizer

    inner: Any = model.get_base_model()
    placed = getattr(inner, "hf_device_map", None) or getattr(inner, "is_quantized", False)
    if torch.cuda.is_available() and not placed:
        model.to("cuda")
    return Adapted(name, model.eval(), load_tokenizer(source))
