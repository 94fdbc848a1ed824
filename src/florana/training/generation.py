"""Greedy generation in batches, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from florana.training.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    batch_size: int = 16,
    stop: Collection[int] = (),
) -> list[str]:
    r"""What a causal model writes after each prompt, always taking the likeliest token.

    .. math:: y_t = \arg\max_v \; p(v \mid x, y_1, \ldots, y_{t-1})

    Prompts x of like length share a batch; the shorter ones are padded on the left and masked, so that every text is
    what the model writes after that prompt alone, up to rounding. A text ends at a stop token or after ``max_new_tokens``.
    What the model's own folder says of generation (sampling, penalties, lengths) is set aside.

    Args:
        model: a causal model of transformers or PEFT; it is put into evaluation mode.
        tokenizer: turns tokens into text; special tokens are left out of it.
        prompts: n tensors (t,) of token ids, of any lengths.
        max_new_tokens: most tokens of a text.
        batch_size: prompts that are answered together.
        stop: tokens that end a text, beside the tokenizer's end-of-sequence token.

    Returns:
        n texts, in the order of the prompts, without them.
    """
    model.eval()
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    texts = [""] * len(prompts)
    with torch.inference_mode(), quiet_transformers():
        settings = _greedy(tokenizer, stop, max_new_tokens)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            written = _continue(model, [prompts[i] for i in chosen], settings)
            decoded = tokenizer.batch_decode(written, skip_special_tokens=True)
            for i, text in zip(chosen, decoded, strict=True):
                texts[i] = text
    return texts


def _greedy(tokenizer: PreTrainedTokenizerBase, stop: Collection[int], max_new_tokens: int) -> Any:  # noqa: ANN401
    """Every setting that a model's folder might have changed, at the value that changes nothing."""
    from transformers import GenerationConfig

    ends = sorted({*stop, *_one_or_more(tokenizer.eos_token_id)})
    make: Any = GenerationConfig
    return make(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        min_length=0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=ends,
        pad_token_id=_padding(tokenizer),
    )


def _continue(model: nn.Module, prompts: Sequence[Tensor], settings: Any) -> Tensor:  # noqa: ANN401
    """New tokens (n, at most max_new_tokens); padding follows the end of a text."""
    module: Any = model
    device = module.get_input_embeddings().weight.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), settings.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    made: Tensor = module.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings
    )
    return made[:, width:]


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token will do, since it is masked."""
    return _one_or_more([tokenizer.pad_token_id, tokenizer.eos_token_id, 0])[0]


def _one_or_more(token: Any) -> list[int]:  # noqa: ANN401
    tokens = token if isinstance(token, list | tuple) else [token]
    return [int(t) for t in tokens if t is not None]
