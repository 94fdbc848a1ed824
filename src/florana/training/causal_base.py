"""A base model that writes text: loaded whole, and checked to be one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from florana.errors import ModelError
from florana.training.quantization import settle

if TYPE_CHECKING:
    from florana.training.base_model import ModelSource


def load_causal(source: ModelSource, options: dict[str, Any]) -> nn.Module:
    """The model with its own output embeddings; nothing in it is new.

    Args:
        source: which model it is.
        options: what ``from_pretrained`` is told.

    Raises:
        ModelError: if it has no head for the next token, or reads ahead.
        OSError, ValueError: if transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    model, report = load(source.path, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{source.name} is no causal language model: {source.path} has no weights for {missing[0]}; take a model that "
            "writes text, or data.family = 'classification'"
        )
    settle(model)
    if _reads_ahead(model):
        raise ModelError(
            f"{source.name} is no causal language model: what it says of a token depends on the tokens after it; take a "
            "model that writes text, or data.family = 'classification'"
        )
    model.fresh_modules = ()
    model.task_type = "CAUSAL_LM"
    whole: nn.Module = model
    return whole


def _reads_ahead(model: Any) -> bool:  # noqa: ANN401
    """Whether another second token changes what is said after the first, by more than rounding does.

    In 8 bits, which columns are kept in full depends on all tokens of a batch, so rounding does more.
    """
    rounding = 0.05 if getattr(model, "is_loaded_in_8bit", False) else 1e-4
    last = model.config.get_text_config().vocab_size - 1
    device = model.get_input_embeddings().weight.device
    with torch.inference_mode():
        said = [
            model.eval()(input_ids=torch.tensor([[last, second]], device=device)).logits[0, 0]
            for second in (0, last)
        ]
    change = (said[0] - said[1]).float().norm() / said[0].float().norm()
    return not float(change) < rounding
