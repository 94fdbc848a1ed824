"""Tiny base models, one for every kind of module that PEFT adapts, with the same random numbers at every call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)


def fixed(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same random numbers at every call, in zero-initialised biases too, in evaluation mode."""

    def base() -> nn.Module:
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        return model

    return base


class Experts(nn.Module):
    """Three experts in two 3-D parameters (E, out, in) and a 2-D one, as mixtures of experts have them.

    Args:
        transposed: whether the 3-D ones are (E, in, out), as PEFT then is told.
    """

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 12, 8))
        self.down = nn.Parameter(torch.randn(3, 8, 12))
        self.gate = nn.Parameter(torch.randn(9, 8))
        self.is_transposed = transposed


def of(**modules: nn.Module) -> nn.Module:
    """Modules by name, in a block."""
    return nn.Sequential(OrderedDict(block=nn.ModuleDict(modules)))


def llama(tied: bool = False) -> nn.Module:
    """A causal language model with an input embedding and, unless tied, a head of its own."""
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            num_hidden_layers=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            **sizes,
        )
    )


def bert() -> nn.Module:
    """A classifier with a head and biases everywhere."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(
        BertConfig(vocab_size=20, num_hidden_layers=2, num_labels=3, **sizes)
    )


def gpt2() -> nn.Module:
    """GPT-2, whose layers are transposed."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=8))


def mixtral() -> nn.Module:
    """A mixture of experts as transformers has them."""
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=20,
            num_hidden_layers=2,
            num_key_value_heads=2,
            num_local_experts=3,
            **sizes,
        )
    )


LINEAR = fixed(lambda: of(q=nn.Linear(8, 12), v=nn.Linear(12, 9, bias=False)))


EMBED = fixed(lambda: of(tokens=nn.Embedding(20, 8), q=nn.Linear(8, 12)))


CONV = {
    "conv1d": fixed(lambda: of(c=nn.Conv1d(4, 12, 3))),
    "conv2d": fixed(lambda: of(c=nn.Conv2d(4, 12, (3, 2), stride=2, padding=1, dilation=2))),
    "conv2d-1x1": fixed(lambda: of(c=nn.Conv2d(8, 12, 1))),
    "conv3d": fixed(lambda: of(c=nn.Conv3d(2, 12, (3, 1, 2)))),
}


MHA = fixed(lambda: of(mha=nn.MultiheadAttention(8, 2)))


EXPERTS = fixed(lambda: of(experts=Experts(), q=nn.Linear(8, 12)))
