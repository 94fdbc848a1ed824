"""What PEFT 0.21 can write and florana reads, one row for every kind of thing: the test ids of ``test_peft_rows.py``."""

from __future__ import annotations

import torch
from peft import EvaConfig, PeftModel, initialize_lora_eva_weights
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_clients import Row
from peft_models import (
    CONV,
    EMBED,
    EXPERTS,
    LINEAR,
    MHA,
    Experts,
    bert,
    fixed,
    gpt2,
    llama,
    mixtral,
    of,
)


def eva(model: PeftModel, client: int) -> None:
    """EVA's start: ranks spread over modules by the variance of their inputs, other ones for every client."""
    vocabulary = (2, 3, 2)[client]
    generator = torch.Generator().manual_seed(client)
    data = [
        {"input_ids": torch.randint(0, vocabulary, (4, 6), generator=generator)} for _ in range(4)
    ]
    initialize_lora_eva_weights(model, data, show_progress_bar=False)


MIXED = ({"r": 1, "lora_alpha": 3}, {"r": 2, "lora_alpha": 5}, {"r": 3, "lora_alpha": 7})
MIXED_RANKS = ({"r": 1}, {"r": 2}, {"r": 3})

NO_HIRA = "no attribute 'add_weighted_adapter'"
NO_PARAMETERS = "does not support targeting nn.Parameter"
NO_BIASES = "supports only 1 adapter with bias"
NO_HEADS = "target the same module with modules_to_save"

ROWS: dict[str, Row] = {
    "linear": Row(LINEAR, {"target_modules": ["q", "v"]}),
    "linear-dora": Row(LINEAR, {"target_modules": ["q", "v"], "use_dora": True}, cat="inexact"),
    "linear-hira": Row(LINEAR, {"target_modules": ["q", "v"]}, hira=True, cat=NO_HIRA),
    "mixed-ranks-and-alphas": Row(LINEAR, {"target_modules": ["q", "v"]}, MIXED),
    "rslora": Row(LINEAR, {"target_modules": ["q", "v"], "use_rslora": True}, MIXED, cat="inexact"),
    "rslora-some": Row(
        LINEAR,
        {"target_modules": ["q", "v"]},
        ({"use_rslora": True}, {}, {"use_rslora": True}),
        cat="inexact",
    ),
    "rank-and-alpha-pattern": Row(
        LINEAR,
        {"target_modules": ["q", "v"], "rank_pattern": {"q": 1}, "alpha_pattern": {"block.v": 5}},
    ),
    "conv1d-transposed": Row(
        fixed(lambda: of(c=Conv1D(12, 8))),
        {"target_modules": ["c"], "fan_in_fan_out": True},
    ),
    "conv1d-transposed-dora": Row(
        fixed(lambda: of(c=Conv1D(12, 8))),
        {"target_modules": ["c"], "fan_in_fan_out": True, "use_dora": True},
        cat="inexact",
    ),
    "conv1d-transposed-hira": Row(
        fixed(lambda: of(c=Conv1D(12, 8))),
        {"target_modules": ["c"], "fan_in_fan_out": True},
        hira=True,
        cat=NO_HIRA,
    ),
    "gpt2": Row(
        fixed(gpt2), {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    ),
    "gpt2-dora": Row(
        fixed(gpt2),
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True},
        cat="inexact",
    ),
    "embedding": Row(EMBED, {"target_modules": ["tokens", "q"]}),
    "embedding-mixed-ranks": Row(EMBED, {"target_modules": ["tokens", "q"]}, MIXED),
    "embedding-dora": Row(
        EMBED, {"target_modules": ["tokens", "q"], "use_dora": True}, cat="inexact"
    ),
    "embedding-hira": Row(
        EMBED, {"target_modules": ["tokens", "q"]}, MIXED_RANKS, hira=True, cat=NO_HIRA
    ),
    "embedding-with-its-table": Row(
        fixed(llama), {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}
    ),
    "embedding-with-its-table-dora": Row(
        fixed(llama),
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        cat="inexact",
    ),
    "embedding-tied": Row(fixed(gpt2), {"target_modules": ["wte"]}),
    "embedding-tied-with-its-table": Row(
        fixed(lambda: llama(tied=True)), {"target_modules": ["embed_tokens", "q_proj"]}
    ),
    "tables-in-modules-to-save": Row(
        fixed(llama),
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        cat=NO_HEADS,
        save={"save_embedding_layers": True},
    ),
    "resized-vocabulary-tied": Row(
        fixed(lambda: llama(tied=True)),
        {"target_modules": ["q_proj"]},
        cat="inexact",
        full=("embed_tokens.weight",),
        save={"save_embedding_layers": True},
    ),
    "resized-vocabulary": Row(
        fixed(llama),
        {"target_modules": ["q_proj"]},
        full=("embed_tokens.weight", "lm_head.weight"),
        save={"save_embedding_layers": True},
        cat="inexact",
    ),
    **{name: Row(base, {"target_modules": ["c"]}, MIXED) for name, base in CONV.items()},
    **{
        f"{name}-dora": Row(base, {"target_modules": ["c"], "use_dora": True}, cat="inexact")
        for name, base in CONV.items()
    },
    **{
        f"{name}-hira": Row(base, {"target_modules": ["c"]}, hira=True, cat=NO_HIRA)
        for name, base in CONV.items()
    },
    "attention": Row(MHA, {"target_modules": ["mha"]}),
    "attention-mixed-ranks": Row(MHA, {"target_modules": ["mha"]}, MIXED),
    "attention-biases": Row(MHA, {"target_modules": ["mha"], "bias": "lora_only"}, cat=NO_BIASES),
    "experts": Row(
        EXPERTS, {"target_modules": ["q"], "target_parameters": ["experts.up"]}, cat=NO_PARAMETERS
    ),
    "experts-only": Row(
        EXPERTS,
        {"target_modules": [], "target_parameters": ["block.experts.down"]},
        cat=NO_PARAMETERS,
    ),
    "experts-2d": Row(
        EXPERTS, {"target_modules": [], "target_parameters": ["experts.gate"]}, cat=NO_PARAMETERS
    ),
    "experts-nested": Row(
        EXPERTS,
        {
            "target_modules": [],
            "target_parameters": ["experts.down", "experts.up", "experts.gate"],
        },
        MIXED,
        cat=NO_PARAMETERS,
    ),
    "experts-rank-pattern": Row(
        EXPERTS,
        {
            "target_modules": ["q"],
            "target_parameters": ["experts.up"],
            "rank_pattern": {"experts.up": 1},
            "alpha_pattern": {"experts.up": 3},
        },
        cat=NO_PARAMETERS,
    ),
    "experts-transposed": Row(
        fixed(lambda: of(experts=Experts(transposed=True), q=nn.Linear(8, 12))),
        {"target_modules": [], "target_parameters": ["experts.up", "experts.down"]},
        cat=NO_PARAMETERS,
    ),
    "mixtral": Row(
        fixed(mixtral),
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
        cat=NO_PARAMETERS,
    ),
    "modules-to-save": Row(
        fixed(bert),
        {"target_modules": ["query"], "modules_to_save": ["pooler"], "task_type": "SEQ_CLS"},
        cat=NO_HEADS,
    ),
    "bias-all": Row(fixed(bert), {"target_modules": ["query"], "bias": "all"}, cat=NO_BIASES),
    "bias-all-with-a-head": Row(
        fixed(bert),
        {"target_modules": ["query"], "bias": "all", "task_type": "SEQ_CLS"},
        cat=NO_BIASES,
    ),
    "bias-lora-only": Row(
        fixed(bert), {"target_modules": ["query"], "bias": "lora_only"}, cat=NO_BIASES
    ),
    "lora-bias": Row(
        fixed(lambda: of(q=nn.Linear(8, 12), c=nn.Conv2d(4, 9, 3))),
        {"target_modules": ["q", "c"], "lora_bias": True},
        MIXED,
        cat="inexact",
    ),
    "trainable-tokens": Row(
        fixed(llama),
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 17, 5]},
        cat="inexact",
    ),
    "trainable-tokens-by-module": Row(
        fixed(llama),
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 17]}},
        cat="inexact",
    ),
    "trainable-tokens-tied": Row(
        fixed(lambda: llama(tied=True)),
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 17]},
        cat="inexact",
    ),
    "eva": Row(
        fixed(llama),
        {
            "target_modules": ["q_proj", "up_proj"],
            "init_lora_weights": "eva",
            "eva_config": EvaConfig(rho=2.0),
        },
        prepare=eva,
    ),
    "mica": Row(LINEAR, {"target_modules": ["q", "v"], "init_lora_weights": "mica"}),
    "orthogonal": Row(LINEAR, {"target_modules": ["q", "v"], "init_lora_weights": "orthogonal"}),
    "layer-replication": Row(
        fixed(llama),
        {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]},
        cat="inexact",
    ),
}
