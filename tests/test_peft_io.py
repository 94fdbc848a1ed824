"""PEFT folders: against PEFT itself, against hostile files, and against crashes while writing."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import textwrap
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.aggregators import aggregate
from florana.errors import AdapterError, RunError
from florana.peft_io import folder as peft_io
from florana.peft_io import load_adapter, save_adapter
from florana.peft_io.state_dict import (
    adapter_from_state_dict,
    adapter_to_config,
    adapter_to_state_dict,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match"),
]

PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BERT_LAYER = "bert.encoder.layer"

# ---- real models and adapters ----------------------------------------------------------------


def bert() -> PreTrainedModel:
    """A tiny classifier: linear layers with biases, names that are suffixes of others, a head."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(
        BertConfig(vocab_size=32, num_hidden_layers=2, num_labels=3, **sizes)
    ).eval()


def llama(**changes: object) -> PreTrainedModel:
    """A tiny language model: rectangular linear layers, 21 of them, most without biases."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=32, num_hidden_layers=3, num_key_value_heads=2, **sizes, **changes)
    ).eval()


def trained(base: PreTrainedModel, config: LoraConfig, seed: int = 1) -> PeftModel:
    """A PEFT model with random numbers in everything that training would have changed."""
    model = get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def outputs(model: torch.nn.Module) -> Tensor:
    """Logits of two fixed sequences."""
    with torch.no_grad():
        return model(input_ids=torch.arange(12).reshape(2, 6)).logits


def merged(base: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """Weights of the base model with the adapter of a folder merged by PEFT."""
    return dict(PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict())


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """PEFT's LoRA layers by the base model's module names."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    return {name.removeprefix(PREFIX): module for name, module in found.items()}


ADAPTERS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "bert": (bert, {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}),
    "bert, patterns": (
        bert,
        {
            "task_type": "SEQ_CLS",
            "target_modules": ["query", "dense"],
            "rank_pattern": {"query": 2, r"^bert\.encoder\.layer\.1\.output\.dense": 7},
            "alpha_pattern": {"layer.0.attention.self.query": 5, "pooler.dense": 3},
        },
    ),
    "bert, lora_only": (
        bert,
        {"task_type": "SEQ_CLS", "bias": "lora_only", "target_modules": ["query", "dense"]},
    ),
    "bert, all biases": (
        bert,
        {"task_type": "SEQ_CLS", "bias": "all", "target_modules": ["value"]},
    ),
    "llama": (llama, {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}),
    "llama, regex": (llama, {"target_modules": r".*layers\.[02]\.(self_attn\.q|mlp\.up)_proj"}),
    "llama, layers": (llama, {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
    "llama, layer 0": (llama, {"target_modules": ["v_proj"], "layers_to_transform": 0}),
    "llama, excluded": (
        llama,
        {"target_modules": ["v_proj"], "exclude_modules": ["0.self_attn.v_proj"]},
    ),
    "llama, heads": (
        llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm", "mlp"]},
    ),
    "llama, rslora": (
        llama,
        {
            "target_modules": ["q_proj", "down_proj"],
            "use_rslora": True,
            "rank_pattern": {"layers.1.mlp.down_proj": 3},
            "alpha_pattern": {"q_proj": 2.5},
            "init_lora_weights": "gaussian",
        },
    ),
}


@pytest.fixture(params=ADAPTERS.values(), ids=ADAPTERS.keys())
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, PeftModel, Path]:
    """A way to make the base model, a trained adapter on it, and its folder as PEFT saves it."""
    base, settings = request.param
    model = trained(base(), LoraConfig(r=4, lora_alpha=16, **settings))
    model.save_pretrained(tmp_path / "peft")
    return base, model, tmp_path / "peft"


def test_delta_w_is_that_of_peft(saved: tuple[Any, PeftModel, Path]) -> None:
    """Every module that PEFT adapted is read, with PEFT's own ΔW."""
    _, model, folder = saved
    pairs, layers = load_adapter(folder).pairs, lora_layers(model)
    assert pairs.keys() == layers.keys()
    for name, layer in layers.items():
        torch.testing.assert_close(
            pairs[name].delta_w().float(), layer.get_delta_weight("default"), rtol=1e-5, atol=1e-6
        )


def test_saved_folder_is_the_same_adapter_for_peft(
    saved: tuple[Any, PeftModel, Path], tmp_path: Path
) -> None:
    """PEFT loads our folder without a complaint or an unused key, with equal outputs and merged weights."""
    base, model, folder = saved
    adapter = load_adapter(folder)
    again = save_adapter(adapter, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?i).*(missing|unexpected|not found|already)")
        loaded = PeftModel.from_pretrained(base(), again)
    assert torch.equal(outputs(loaded), outputs(model))
    report = set_peft_model_state_dict(loaded, adapter_to_state_dict(adapter))
    assert report.unexpected_keys == []
    assert lora_layers(loaded).keys() == adapter.pairs.keys()
    expected = merged(base(), folder)
    for name, weight in merged(base(), again).items():
        assert torch.equal(weight, expected[name]), name


def test_second_reading_is_the_first(saved: tuple[Any, PeftModel, Path], tmp_path: Path) -> None:
    """Load, save, load changes nothing: tensors, scalings, settings."""
    first = load_adapter(saved[2])
    second = load_adapter(save_adapter(first, tmp_path / "ours"))
    assert_same(second, first)
    assert second.peft_config == first.peft_config
    assert second.base_model == first.base_model


def test_in_memory_is_as_from_a_folder(saved: tuple[Any, PeftModel, Path]) -> None:
    """What PEFT has in memory, sets and enums included, gives the adapter that its folder gives."""
    _, model, folder = saved
    config = model.peft_config["default"].to_dict()
    adapter = adapter_from_state_dict(get_peft_model_state_dict(model), config, "hash")
    assert_same(adapter, load_adapter(folder))
    assert adapter.base_hash == "hash"


def assert_same(came: Adapter, expected: Adapter) -> None:
    """Equal names, dtypes and bits; scalings up to the last place."""
    assert came.pairs.keys() == expected.pairs.keys()
    assert list(came.pairs) == sorted(came.pairs)
    for name, pair in came.pairs.items():
        assert pair.scaling == pytest.approx(expected.pairs[name].scaling, rel=1e-15)
    tensors = expected.tensors()
    assert came.tensors().keys() == tensors.keys()
    for name, tensor in came.tensors().items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name]), name


def test_adapter_does_not_share_memory_with_the_model() -> None:
    """Training goes on in the model, and the adapter taken from it stays as it was."""
    model = trained(llama(), LoraConfig(r=4, target_modules=["q_proj"]))
    state = get_peft_model_state_dict(model)
    adapter = adapter_from_state_dict(state, model.peft_config["default"].to_dict())
    before = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    for tensor in [*state.values(), *adapter_to_state_dict(adapter).values()]:
        tensor.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.tensors().items())
    assert not any(tensor.requires_grad for tensor in adapter.tensors().values())


def test_conv1d_product_is_carried_as_it_is(tmp_path: Path) -> None:
    """GPT-2's transposed layers: the product B A has (out, in) coordinates, and PEFT gets it back."""

    def base() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(OrderedDict(c_attn=Conv1D(6, 4)))

    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = trained(base(), config)
    model.save_pretrained(tmp_path / "peft")
    adapter = load_adapter(tmp_path / "peft")
    assert adapter.peft_config["fan_in_fan_out"] is True
    delta = lora_layers(model)["c_attn"].get_delta_weight("default")
    torch.testing.assert_close(adapter.pairs["c_attn"].delta_w().T.float(), delta)
    loaded = PeftModel.from_pretrained(base(), save_adapter(adapter, tmp_path / "ours"))
    assert torch.equal(lora_layers(loaded)["c_attn"].get_delta_weight("default"), delta)


def test_aggregate_is_the_mean_of_merged_weights(tmp_path: Path) -> None:
    """Two PEFT clients of unlike rank and alpha: the aggregate in PEFT is the dense weighted mean."""
    clients, dense = [], []
    for seed, (r, alpha) in enumerate([(2, 16), (4, 6)]):
        config = LoraConfig(
            r=r, lora_alpha=alpha, target_modules=["query", "dense"], task_type="SEQ_CLS"
        )
        folder = tmp_path / f"client{seed}"
        trained(bert(), config, seed).save_pretrained(folder)
        clients.append(ClientUpdate(f"client{seed}", 100 * (1 + 2 * seed), load_adapter(folder)))
        dense.append({name: w.double() for name, w in merged(bert(), folder).items()})
    result = aggregate(clients, method="ideal").adapter
    came = merged(bert(), save_adapter(result, tmp_path / "aggregate"))
    for name, weight in came.items():
        mean = 0.25 * dense[0][name] + 0.75 * dense[1][name]
        torch.testing.assert_close(weight.double(), mean, rtol=1e-5, atol=1e-6, msg=name)


# ---- adapters made by hand -------------------------------------------------------------------


def pair(
    rank: int = 2,
    alpha: float = 4,
    rslora: bool = False,
    d_out: int = 3,
    d_in: int = 5,
    seed: int = 0,
) -> LoraPair:
    """A random pair, by default of a 3 × 5 weight."""
    g = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, d_in, generator=g), torch.randn(d_out, rank, generator=g)
    return LoraPair(A, B, alpha, rslora)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_round_trip_is_bit_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    """Every floating dtype comes back bit for bit, subnormal and signed zero values included."""
    A = torch.tensor([[0.1, -0.0, torch.finfo(dtype).smallest_normal / 2]], dtype=dtype)
    head = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).eps], dtype=dtype)
    adapter = Adapter({"q": LoraPair(A, A.T.flip(0), 1)}, {"head.weight": head})
    came = load_adapter(save_adapter(adapter, tmp_path / "a")).tensors()
    for name, tensor in adapter.tensors().items():
        assert came[name].dtype == dtype
        assert torch.equal(bits(came[name]), bits(tensor))


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, in which -0.0 is not 0.0."""
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


def test_made_by_hand_loads_in_peft(tmp_path: Path) -> None:
    """Without any settings, modules, heads and biases are read off the tensors; more than 20 modules too."""
    base = llama(attention_bias=True)
    shapes = {
        name: module.weight.shape
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    pairs = {
        name: pair(rank=1 + i % 3, alpha=2 + i % 4, d_out=d_out, d_in=d_in, seed=i)
        for i, (name, (d_out, d_in)) in enumerate(shapes.items())
        if name != "model.layers.1.mlp.up_proj"
    }
    assert len(pairs) == 20
    extras = {
        "lm_head.weight": torch.ones(32, 16),
        "model.norm.weight": torch.full((16,), 2.0),
        "model.layers.0.self_attn.q_proj.bias": torch.full((16,), 7.0),
    }
    folder = save_adapter(Adapter(pairs, extras, base_model="tiny"), tmp_path / "a")
    config = json.loads((folder / CONFIG).read_text())
    assert config["modules_to_save"] == ["lm_head", "model.norm"]
    assert config["bias"] == "lora_only"
    assert config["base_model_name_or_path"] == "tiny"
    came = merged(llama(attention_bias=True), folder)
    for name in shapes:
        delta = pairs[name].delta_w().float() if name in pairs else 0
        torch.testing.assert_close(
            came[f"{name}.weight"], base.get_submodule(name).weight + delta, rtol=1e-4, atol=1e-5
        )
    for name, tensor in extras.items():
        assert torch.equal(came[name], tensor)


def test_patterns_match_one_module_each(tmp_path: Path) -> None:
    """Names that end like one another keep their own rank and alpha, in PEFT as in florana."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(5, 3)
            self.q_proj = torch.nn.Linear(5, 3)
            self.inner = torch.nn.ModuleDict({"proj": torch.nn.Linear(5, 3)})
            self.ab = torch.nn.ModuleDict({"in-proj": torch.nn.Linear(5, 3)})
            self.axb = torch.nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x) + self.q_proj(x) + self.inner["proj"](x) + self.axb(x)

    names = ["proj", "q_proj", "inner.proj", "block.proj", "block.inner.proj", "block.axb"]
    names += ["block.ab.in-proj", "inner.block.proj"]

    def base() -> torch.nn.Module:
        model = Block()
        model.block = Block()
        model.inner["block"] = Block()
        return model

    for turn in range(len(names)):
        order = names[turn:] + names[:turn]
        pairs = {n: pair(rank=1 + i, alpha=3 * i + 0.5, seed=i) for i, n in enumerate(order)}
        adapter = Adapter(pairs)
        folder = save_adapter(adapter, tmp_path / str(turn))
        assert_same(load_adapter(folder), adapter)
        config = LoraConfig.from_pretrained(folder)
        # PEFT finds "proj" in every name that ends with it, so choose its modules exactly
        config.target_modules = "|".join(n.replace(".", r"\.") for n in names)
        layers = lora_layers(get_peft_model(base(), config))
        assert layers.keys() == pairs.keys()
        for name, layer in layers.items():
            assert layer.r["default"] == pairs[name].rank
            assert layer.scaling["default"] == pytest.approx(pairs[name].scaling, rel=1e-15)


def test_config_has_the_most_common_rank_and_alpha() -> None:
    """The common case has no patterns, whole alphas are whole numbers, and the rest is anchored."""
    pairs = {"a": pair(2, 8.0), "b.a": pair(2, 8.0), "c": pair(3, 0.5), "d": pair(3, 8.0)}
    config = adapter_to_config(Adapter(pairs))
    assert (config["r"], config["lora_alpha"]) == (2, 8)
    assert type(config["lora_alpha"]) is int
    assert config["rank_pattern"] == {"^c": 3, "^d": 3}
    assert config["alpha_pattern"] == {"^c": 0.5}
    assert (config["peft_type"], config["inference_mode"]) == ("LORA", True)
    plain = adapter_to_config(Adapter({"a": pair(), "b.a": pair()}))
    assert plain["rank_pattern"] == plain["alpha_pattern"] == {}


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, False)])
def test_scalings_survive_mixed_rslora(flags: tuple[bool, bool], tmp_path: Path) -> None:
    """PEFT has one rsLoRA flag: where pairs disagree it is off, and every scaling stays."""
    pairs = {str(i): pair(rank=3 + i, alpha=7, rslora=flag) for i, flag in enumerate(flags)}
    adapter = Adapter(pairs)
    assert adapter_to_config(adapter)["use_rslora"] is all(flags)
    assert_same(load_adapter(save_adapter(adapter, tmp_path / "a")), adapter)


def test_settings_are_carried_along(tmp_path: Path) -> None:
    """Settings that stand for nothing in the pairs come back, rewritten ones do not hide in peft_config."""
    settings = {"task_type": "CAUSAL_LM", "lora_dropout": 0.25, "target_modules": ["q"]}
    settings |= {"revision": "main", "fan_in_fan_out": True, "r": 77, "use_rslora": True}
    came = load_adapter(save_adapter(Adapter({"q": pair()}, peft_config=settings), tmp_path / "a"))
    assert came.pairs["q"].scaling == 2
    assert came.peft_config == {
        **{"task_type": "CAUSAL_LM", "lora_dropout": 0.25, "target_modules": ["q"]},
        **{"revision": "main", "fan_in_fan_out": True, "bias": "none"},
    }


@pytest.mark.parametrize(
    "adapter",
    [
        Adapter({}),
        Adapter({"q": LoraPair(torch.full((1, 2), torch.nan), torch.ones(2, 1), 1)}),
        Adapter({"q": pair(alpha=1e7)}),
        Adapter({"q": pair()}, {"q.weight": torch.ones(2)}),
        Adapter({"q": pair()}, {"weight": torch.ones(2)}),
        Adapter({"q": pair()}, {"head.weight": torch.ones(2)}, peft_config={"use_dora": True}),
        Adapter({"q": pair()}, {"q.bias": torch.ones(2)}, peft_config={"bias": "none"}),
    ],
)
def test_nothing_is_saved_that_cannot_be_loaded(adapter: Adapter, tmp_path: Path) -> None:
    """What load_adapter would refuse, save_adapter refuses, and leaves no trace."""
    with pytest.raises(AdapterError):
        save_adapter(adapter, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# ---- what is refused -------------------------------------------------------------------------

GOOD_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
GOOD_STATE = {
    f"{PREFIX}x.q.lora_A.weight": torch.ones(2, 5),
    f"{PREFIX}x.q.lora_B.weight": torch.ones(3, 2),
}
A_KEY, B_KEY = GOOD_STATE


def write(
    folder: Path, state: Mapping[str, Tensor] = GOOD_STATE, config: object = GOOD_CONFIG
) -> Path:
    """An adapter folder, by default a good one."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    safetensors.torch.save_file(dict(state), folder / WEIGHTS)
    return folder


def refused(folder: Path, *words: str) -> str:
    """The message of the refusal; it names the folder and has the words."""
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    for word in words:
        assert word in message
    assert "expected" in message or "supported" in message
    assert len(message) < 1500
    return message


def test_good_folder_is_read(tmp_path: Path) -> None:
    """The folder that the refusals below are made from is fine itself."""
    assert load_adapter(write(tmp_path / "a")).pairs["x.q"].scaling == 2


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "another method": ({"peft_type": "ADALORA"}, ["peft_type", "'ADALORA'", "'LORA'"]),
    "HiRA": ({"peft_type": "HIRA"}, ["peft_type", "'HIRA'"]),
    "AdaLoRA": ({"peft_type": "ADALORA", "target_r": 8, "r": None}, ["peft_type"]),
    "no method": ({"peft_type": None}, ["peft_type"]),
    "no rank": ({"r": None}, ["r is None", "from 1 to"]),
    "rank 0": ({"r": 0}, ["r is 0"]),
    "rank -1": ({"r": -1}, ["r is -1"]),
    "rank 2.0": ({"r": 2.0}, ["r is 2.0"]),
    "rank true": ({"r": True}, ["r is True"]),
    "rank 10**400": ({"r": 10**400}, ["401 characters"]),
    "rank 10**19": ({"r": 10**19}, ["r is 10000000000000000000", "from 1 to 2,147,483,648"]),
    "rank text": ({"r": "2"}, ["r is '2'"]),
    "rank huge": ({"r": 100_000}, ["x.q", "rank 2", "expected 100000"]),
    "alpha 0": ({"lora_alpha": 0}, ["lora_alpha is 0"]),
    "alpha < 0": ({"lora_alpha": -4}, ["lora_alpha is -4"]),
    "alpha NaN": ({"lora_alpha": float("nan")}, ["lora_alpha is nan"]),
    "alpha Inf": ({"lora_alpha": float("inf")}, ["lora_alpha is inf"]),
    "alpha 1e30": ({"lora_alpha": 1e30}, ["lora_alpha is 1e+30", "1,000,000"]),
    "alpha 10**400": ({"lora_alpha": 10**400}, ["401 characters"]),
    "alpha true": ({"lora_alpha": True}, ["lora_alpha is True"]),
    "alpha text": ({"lora_alpha": "4"}, ["lora_alpha is '4'"]),
    "alpha list": ({"lora_alpha": [4]}, ["lora_alpha is [4]"]),
    "no alpha": ({"lora_alpha": None}, ["lora_alpha"]),
    "rslora text": ({"use_rslora": "yes"}, ["use_rslora is 'yes'", "true or false"]),
    "patterns list": ({"rank_pattern": ["q"]}, ["rank_pattern is ['q']"]),
    "pattern rank": ({"rank_pattern": {"q": 0}}, ["rank_pattern", "from 1 to"]),
    "pattern alpha": ({"alpha_pattern": {"q": float("inf")}}, ["alpha_pattern", "above 0"]),
    "pattern mismatch": ({"rank_pattern": {"q": 5}}, ["x.q", "rank 2", "expected 5"]),
    "pattern that hangs": ({"rank_pattern": {"(a+)+b": 2}}, ["rank_pattern", "(a+)+b", "not run"]),
    "pattern with .*": ({"alpha_pattern": {".*q": 2}}, ["alpha_pattern", ".*q", "spell"]),
    "pattern with $": ({"alpha_pattern": {"q$": 2}}, ["alpha_pattern", "q$"]),
    "pattern with \\d": ({"rank_pattern": {r"layers\.\d": 2}}, ["rank_pattern"]),
    "empty pattern": ({"rank_pattern": {"": 2}}, ["rank_pattern"]),
    "base number": ({"base_model_name_or_path": 3}, ["base_model_name_or_path is 3"]),
    "targets number": ({"target_modules": 7}, ["target_modules is 7"]),
    "targets mixed": ({"target_modules": ["q", 7]}, ["target_modules"]),
    "heads text": ({"modules_to_save": "head"}, ["modules_to_save is 'head'"]),
    "heads that hang": ({"modules_to_save": ["(a+)+b"]}, ["modules_to_save", "(a+)+b"]),
    "empty head": ({"modules_to_save": [""]}, ["modules_to_save"]),
    "many heads": ({"modules_to_save": [f"h{i}" for i in range(301)]}, ["300"]),
    "head with pairs": ({"modules_to_save": ["x"]}, ["x.q", "modules_to_save"]),
    "bias": ({"bias": "some"}, ["bias is 'some'", "lora_only"]),
    "fan_in_fan_out": ({"fan_in_fan_out": 1}, ["fan_in_fan_out is 1"]),
    "dropout": ({"lora_dropout": 2}, ["lora_dropout is 2"]),
    "task": ({"task_type": "COOKING"}, ["task_type is 'COOKING'", "SEQ_CLS"]),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, ["'pissa_niter_4'", "PiSSA"]),
    "OLoRA": ({"init_lora_weights": "olora"}, ["init_lora_weights is 'olora'"]),
    "LoftQ": ({"init_lora_weights": "loftq", "loftq_config": {"b": 4}}, ["'loftq'"]),
    "CorDA": (
        {"init_lora_weights": "corda"},
        ["'corda'", "path_initial_model_for_weight_conversion"],
    ),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, ["'lora_ga'", "change the base weights"]),
    "DoRA": ({"use_dora": True}, ["use_dora is True", "DoRA"]),
    "KaSA": ({"kasa_config": {"beta": 1}}, ["kasa_config", "KaSA"]),
    "MoE": ({"target_parameters": ["experts.up"]}, ["target_parameters", "experts.up"]),
    "MoE that hangs": ({"target_parameters": ["(a+)+b"]}, ["target_parameters", "(a+)+b"]),
    "tokens": ({"trainable_token_indices": [1]}, ["trainable_token_indices"]),
    "tokens < 0": ({"trainable_token_indices": {"q": [-1]}}, ["trainable_token_indices", "-1"]),
    "lora_bias": ({"lora_bias": True}, ["x.q", "lora_bias is True"]),
    "lora_bias 1": ({"lora_bias": 1}, ["lora_bias is 1", "true or false"]),
    "replication": ({"layer_replication": [[2, 0]]}, ["layer_replication is [[2, 0]]"]),
    "aLoRA": ({"alora_invocation_tokens": [1]}, ["alora_invocation_tokens"]),
    "tying": ({"ensure_weight_tying": True}, ["ensure_weight_tying"]),
    "unknown": ({"use_mystery": 3}, ["'use_mystery' is 3", "PEFT 0.21"]),
    "long value": ({"bias": "b" * 100_000}, ["bias is 'bbb"]),
}


@pytest.mark.parametrize(("change", "words"), CONFIG_FAULTS.values(), ids=CONFIG_FAULTS.keys())
def test_config_fault_is_refused(change: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    """Every setting that is wrong, absurd or not supported is refused by name."""
    refused(write(tmp_path / "a", config=GOOD_CONFIG | change), *words)


def test_unset_and_unknown_settings_do_no_harm(tmp_path: Path) -> None:
    """Null, false and empty values are no settings, known or not; PEFT's code-loading hint is dropped."""
    config = GOOD_CONFIG | {"use_dora": False, "loftq_config": {}, "future": None, "bias": None}
    config |= {"auto_mapping": {"parent_library": "evil"}, "peft_version": "0.9.0"}
    adapter = load_adapter(write(tmp_path / "a", config=config))
    assert adapter.peft_config["bias"] == "none"
    assert "auto_mapping" not in adapter.peft_config


def test_regex_targets_are_spelt_out_and_never_run(tmp_path: Path) -> None:
    """target_modules is not needed to read; a pattern that would hang PEFT is replaced by names."""
    for i, targets in enumerate(["(a+)+b", None, [], ["elsewhere"], "all-linear"]):
        folder = write(tmp_path / str(i), config=GOOD_CONFIG | {"target_modules": targets})
        assert load_adapter(folder).peft_config["target_modules"] == ["x.q"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"q": 3}, 3),
        ({"x.q": 3}, 3),
        ({r"x\.q": 3}, 3),
        ({r"^x\.q": 3}, 3),
        ({"^x.q": 3}, 3),
        ({"^q": 3}, 4),
        ({".q": 3}, 4),
        ({"x": 3}, 4),
        ({"y.q": 3, "q": 5, "x.q": 6}, 5),
        ({"x.q": 6, "q": 5}, 6),
    ],
)
def test_literal_patterns_are_read_as_by_peft(
    patterns: dict[str, float], expected: float, tmp_path: Path
) -> None:
    """Full names and dotted suffixes match, the first in the file wins, ^ is for full names."""
    config = GOOD_CONFIG | {"alpha_pattern": patterns}
    assert load_adapter(write(tmp_path / "a", config=config)).pairs["x.q"].alpha == expected
    model = torch.nn.ModuleDict({"x": torch.nn.ModuleDict({"q": torch.nn.Linear(5, 3)})})
    peft = get_peft_model(
        model, LoraConfig(r=2, lora_alpha=4, target_modules=["q"], alpha_pattern=patterns)
    )
    assert lora_layers(peft)["x.q"].lora_alpha["default"] == expected


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    """The good state dict with tensors set (A and B stand for their keys) or, with None, left out."""
    named = {{"A": A_KEY, "B": B_KEY}.get(k, PREFIX + k): t for k, t in tensors.items()}
    return {k: t for k, t in (GOOD_STATE | named).items() if t is not None}


one = torch.ones(2, 2)
STATE_FAULTS: dict[str, tuple[dict[str, Tensor], list[str]]] = {
    "no pairs": ({}, ["lora_A.weight"]),
    "A alone": (changed(B=None), ["x.q", "lora_A.weight only", "lora_B.weight"]),
    "B alone": (changed(A=None), ["x.q", "lora_B.weight only"]),
    "do not multiply": (changed(B=torch.ones(3, 3)), ["x.q", "(2, 5)", "(3, 3)"]),
    "1-D": (changed(A=torch.ones(10)), ["x.q", "(10,)"]),
    "grouped convolution": (
        changed(A=torch.ones(2, 5, 3, 3), B=torch.ones(3, 1, 1, 1)),
        ["x.q", "grouped convolution", "(2, 5, 3, 3)", "(3, 1, 1, 1)"],
    ),
    "kernel on B": (
        changed(A=torch.ones(2, 5, 3), B=torch.ones(3, 2, 3)),
        ["x.q", "(2, 5, 3)", "(3, 2, 3)"],
    ),
    "kernel on A alone": (changed(A=torch.ones(2, 5, 3)), ["x.q", "(2, 5, 3)", "(3, 2)"]),
    "empty": (changed(A=torch.ones(0, 5), B=torch.ones(3, 0)), [A_KEY, "empty", "(0, 5)", "shards"]),
    "rank": (changed(A=torch.ones(4, 5), B=torch.ones(3, 4)), ["x.q", "rank 4", "expected 2"]),
    "NaN": (changed(A=torch.full((2, 5), torch.nan)), [A_KEY, "NaN"]),
    "Inf": (changed(B=torch.full((3, 2), -torch.inf)), [B_KEY, "infinity"]),
    "NaN in bf16": (changed(A=torch.full((2, 5), torch.nan).bfloat16(), B=torch.ones(3, 2).bfloat16()), [A_KEY, "NaN"]),
    "mixed dtypes": (changed(A=torch.ones(2, 5).half()), ["x.q", "float16", "float32"]),
    "integers": (changed(A=torch.ones(2, 5, dtype=torch.int8)), [A_KEY, "torch.int8"]),
    "booleans": (changed(A=torch.ones(2, 5, dtype=torch.bool)), [A_KEY, "torch.bool"]),
    "complex": (changed(A=torch.ones(2, 5, dtype=torch.complex64)), [A_KEY, "complex64"]),
    "float8": (changed(A=torch.ones(2, 5).to(torch.float8_e4m3fn)), [A_KEY, "float8_e4m3fn"]),
    "float8_e5m2": (changed(A=torch.ones(2, 5).to(torch.float8_e5m2)), [A_KEY, "float8_e5m2"]),
    "head not listed": (changed(**{"classifier.weight": one}), ["classifier.weight", "unexpected"]),
    "bias not trained": (changed(**{"x.q.base_layer.bias": one}), ["bias", "unexpected"]),
    "other key": (changed(**{"x.q.lora_A.default.weight": one}), ["lora_A.default", "unexpected"]),
    "no module": (changed(**{"lora_A.weight": one}), ["lora_A.weight", "unexpected"]),
    "DoRA": (changed(**{"x.q.lora_magnitude_vector": one}), ["lora_magnitude_vector", "DoRA"]),
    "HiRA": (changed(**{"x.q.hira_A": one}), ["hira_A", "HiRA"]),
    "KaSA": (changed(**{"x.q.lora_diag": one}), ["lora_diag", "KaSA"]),
    "embedding": (changed(**{"e.lora_embedding_A": one}), ["lora_embedding_A only", "lora_embedding_B"]),
    "base weight": (changed(**{"e.base_layer.weight": one}), ["e.base_layer.weight", "unexpected"]),
    "attention": (changed(**{"m.base_layer.out_proj.lora_A.weight": one}), ["m.base_layer.out_proj", "target_parameters"]),
    "MoE": (changed(**{"m.base_layer.lora_A.weight": one}), ["m.base_layer", "target_parameters"]),
    "tokens": (changed(**{"e.token_adapter.trainable_tokens_delta": one}), ["trainable_tokens_delta", "unexpected"]),
    "lora_bias": (changed(**{"x.q.lora_B.bias": one}), ["lora_B.bias"]),
    "long name": (changed(**{"y" * 1000: one}), ["unexpected", "512"]),
    "foreign": (GOOD_STATE | {"x.q.lora_A.weight": one}, ["'x.q.lora_A.weight'", PREFIX]),
} | {
    f"twin {key}": (GOOD_STATE | {key: one}, [repr(A_KEY), repr(key), "wrappers", "unwrap"])
    for key in (
        f"module.{A_KEY}",
        f"_orig_mod.{A_KEY}",
        f"_fsdp_wrapped_module.{A_KEY}",
        f"{PREFIX}_orig_mod.x.q.lora_A.weight",
    )
}  # fmt: skip


@pytest.mark.parametrize(("state", "words"), STATE_FAULTS.values(), ids=STATE_FAULTS.keys())
def test_state_fault_is_refused(state: dict[str, Tensor], words: list[str], tmp_path: Path) -> None:
    """Every tensor that is wrong, left over, missing or not supported is refused by name."""
    assert WEIGHTS in refused(write(tmp_path / "a", state), *words)


def test_same_parameter_under_two_names_is_refused(tmp_path: Path) -> None:
    """PEFT's old and new key of one bias cannot both come."""
    state = changed(**{"x.q.bias": torch.ones(3), "x.q.base_layer.bias": torch.ones(3)})
    folder = write(tmp_path / "a", state, GOOD_CONFIG | {"bias": "lora_only"})
    refused(folder, "'x.q.bias'", "twice")


def header_file(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor_entry(dtype: str = "F32", size: int = 0) -> dict[str, object]:
    """One entry of such a header."""
    return {"dtype": dtype, "shape": [size // 4], "data_offsets": [0, size]}


def put(name: str, content: bytes) -> Callable[[Path], object]:
    """A change that overwrites one file."""
    return lambda folder: (folder / name).write_bytes(content)


def make_pickle(folder: Path) -> None:
    """Weights as a pickle only."""
    torch.save(GOOD_STATE, folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def make_link(name: str) -> Callable[[Path], object]:
    """A change that moves a file away and links to it."""

    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def make_pipe(folder: Path) -> None:
    """Weights as a pipe, which would block whoever opens it."""
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def make_folder(folder: Path) -> None:
    """A folder in place of the config."""
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


def make_huge(folder: Path) -> None:
    """Weights of one byte too many, without using the disk."""
    os.truncate(folder / WEIGHTS, 2**33 + 1)


GOOD_FILE = safetensors.torch.save(GOOD_STATE)
TWICE = b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": {"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
FILE_FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda f: (f / CONFIG).unlink(), [CONFIG, "No such file"]),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), [WEIGHTS, "No such file"]),
    "pickle": (make_pickle, ["adapter_model.bin", "pickle", "safe_serialization"]),
    "linked config": (make_link(CONFIG), [CONFIG, "symbolic link"]),
    "linked weights": (make_link(WEIGHTS), [WEIGHTS, "symbolic link"]),
    "pipe": (make_pipe, [WEIGHTS, "plain file"]),
    "folder": (make_folder, [CONFIG, "plain file"]),
    "huge weights": (make_huge, [WEIGHTS, "8,589,934,593"]),
    "config a list": (put(CONFIG, b"[1]"), [CONFIG, "[1]", "object"]),
    "config no JSON": (put(CONFIG, b"{'r': 2}"), [CONFIG, "JSON"]),
    "config no text": (put(CONFIG, b"\xff\xfe\x00"), [CONFIG, "JSON"]),
    "config empty": (put(CONFIG, b""), [CONFIG, "JSON"]),
    "config deep": (put(CONFIG, b"[" * 500_000), [CONFIG, "JSON"]),
    "config digits": (put(CONFIG, b'{"r": ' + b"1" * 10_000 + b"}"), [CONFIG, "JSON"]),
    "config large": (put(CONFIG, b" " * (2**20 + 1)), [CONFIG, "1,048,577", "1,048,576"]),
    "config twice": (put(CONFIG, b'{"r": 2, "r": 3}'), [CONFIG, "'r'", "twice"]),
    "weights empty": (put(WEIGHTS, b""), [WEIGHTS, "header"]),
    "weights short": (put(WEIGHTS, b"abc"), [WEIGHTS, "header"]),
    "weights cut": (put(WEIGHTS, GOOD_FILE[:-4]), [WEIGHTS, "safetensors"]),
    "weights padded": (put(WEIGHTS, GOOD_FILE + b"more"), [WEIGHTS, "safetensors"]),
    "header cut": (put(WEIGHTS, GOOD_FILE[:40]), [WEIGHTS, "header"]),
    "header long": (put(WEIGHTS, struct.pack("<Q", 2**60)), [WEIGHTS, "1,152,921,504,606,846,976"]),
    "header > 16 MiB": (put(WEIGHTS, header_file(b" " * (2**24 + 1))), [WEIGHTS, "16,777,216"]),
    "header a list": (put(WEIGHTS, header_file([])), [WEIGHTS, "[]"]),
    "header odd": (put(WEIGHTS, header_file({"a": 3})), [WEIGHTS, "safetensors"]),
    "tensor twice": (put(WEIGHTS, header_file(TWICE, b"\0" * 8)), [WEIGHTS, "'a'", "twice"]),
    "unknown dtype": (put(WEIGHTS, header_file({"a": tensor_entry("F99")})), ["F99"]),
    "dtype torch lacks": (
        put(WEIGHTS, header_file({"a": {**tensor_entry("F4", 4), "shape": [8]}}, b"\0" * 4)),
        [WEIGHTS, "F4"],
    ),
    "overlap": (
        put(WEIGHTS, header_file({"a": tensor_entry(size=8), "b": tensor_entry(size=8)}, b"0" * 8)),
        [WEIGHTS, "safetensors"],
    ),
    "many tensors": (
        put(WEIGHTS, header_file({f"k{i}": tensor_entry() for i in range(100_001)})),
        [WEIGHTS, "100,001", "100,000"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), FILE_FAULTS.values(), ids=FILE_FAULTS.keys())
def test_file_fault_is_refused(
    change: Callable[[Path], object], words: list[str], tmp_path: Path
) -> None:
    """Files that are missing, linked, cut, over-long or of another kind are refused by name."""
    folder = write(tmp_path / "a")
    change(folder)
    refused(folder, *words)


def test_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A file or nothing at the path is refused; nothing is looked up elsewhere."""
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "not a folder", CONFIG)
    refused(tmp_path / "absent", "not a folder")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operating system error while reading has florana's form."""

    def deny(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    folder = write(tmp_path / "a")
    monkeypatch.setattr(peft_io.os, "open", deny)
    refused(folder, CONFIG, "Permission denied")


def test_old_key_of_a_bias_is_read(tmp_path: Path) -> None:
    """<module>.bias, which PEFT 0.21 drops in silence, is read as the bias that it is."""
    folder = write(
        tmp_path / "a", changed(**{"x.q.bias": torch.ones(3)}), GOOD_CONFIG | {"bias": "lora_only"}
    )
    adapter = load_adapter(folder)
    assert list(adapter.extras) == ["x.q.bias"]
    assert f"{PREFIX}x.q.base_layer.bias" in adapter_to_state_dict(adapter)


# ---- writing ---------------------------------------------------------------------------------

OLD, NEW = Adapter({"x.q": pair(seed=1)}), Adapter({"x.q": pair(seed=2)})


def is_adapter(folder: Path, expected: Adapter) -> bool:
    """Whether a folder holds one adapter and not another."""
    return torch.equal(load_adapter(folder).pairs["x.q"].A, expected.pairs["x.q"].A)


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    """overwrite=True is needed to replace, and then nothing else is left behind."""
    folder = save_adapter(OLD, tmp_path / "deep" / "a")
    with pytest.raises(RunError, match="overwrite=True"):
        save_adapter(NEW, folder)
    assert is_adapter(folder, OLD)
    (folder / "README.md").touch()
    assert save_adapter(NEW, str(folder), overwrite=True) == folder
    assert is_adapter(folder, NEW)
    assert [p.name for p in folder.parent.iterdir()] == ["a"]
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize("name", ["notes.txt", f"{CONFIG}/x", f"{CONFIG} + optimizer.pt"])
def test_other_folders_are_never_replaced(name: str, tmp_path: Path) -> None:
    """A folder that is no adapter, or holds more than one, is refused even with overwrite=True."""
    for part in name.split(" + "):
        (tmp_path / "a" / part).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / part).touch()
    with pytest.raises(RunError, match="not replaced"):
        save_adapter(NEW, tmp_path / "a", overwrite=True)
    assert len(list(tmp_path.rglob("*"))) == 1 + len(name.split(" + ")) + name.count("/")


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    """A file at the path, or in place of a parent, is refused with florana's own error."""
    (tmp_path / "a").write_text("mine")
    with pytest.raises(RunError, match="not replaced"):
        save_adapter(NEW, tmp_path / "a", overwrite=True)
    with pytest.raises(RunError, match="cannot write"):
        save_adapter(NEW, tmp_path / "a" / "b")
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("fails", range(1, 3))
def test_failed_rename_puts_the_old_folder_back(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If either rename of an overwrite fails, the old adapter stands and nothing else is left."""
    folder, rename, count = save_adapter(OLD, tmp_path / "a"), Path.rename, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == fails:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RunError, match="Input/output error"):
        save_adapter(NEW, folder, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert is_adapter(folder, OLD)


def run_script(script: str, *arguments: object) -> str:
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A write that the operating system cuts short: a clear error, the old adapter, no leftovers."""
    script = """
        import resource, sys, torch
        from florana.adapter import Adapter, LoraPair
        from florana.errors import RunError
        from florana.peft_io import save_adapter

        large = Adapter({"x.q": LoraPair(torch.ones(64, 64), torch.ones(64, 64), 1)})
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for path, overwrite in ((sys.argv[1], True), (sys.argv[1] + "-new", False)):
            try:
                save_adapter(large, path, overwrite=overwrite)
            except RunError as error:
                print(error)
    """
    folder = save_adapter(OLD, tmp_path / "a")
    printed = run_script(script, folder).splitlines()
    assert len(printed) == 2
    assert all("cannot write" in line and "too large" in line for line in printed)
    assert is_adapter(folder, OLD)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_kill_at_any_moment_leaves_old_or_new(tmp_path: Path) -> None:
    """The process dies before its n-th call to the operating system, for every n, and once not at all."""
    script = """
        import os, sys, torch
        from pathlib import Path
        from florana.adapter import Adapter, LoraPair
        from florana.peft_io import save_adapter

        calls = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"}
        adapters = [Adapter({"x.q": LoraPair(torch.full((2, 5), i), torch.ones(3, 2), 4)}) for i in (1.0, 2.0)]
        for n in range(1, 100):
            folder = Path(sys.argv[1], str(n), "a")
            save_adapter(adapters[0], folder)
            child = os.fork()
            if child == 0:
                left = n

                def hook(event, arguments):
                    global left
                    left -= event in calls
                    if left == 0:
                        os._exit(9)

                sys.addaudithook(hook)
                save_adapter(adapters[1], folder, overwrite=True)
                os._exit(0)
            if os.waitpid(child, 0)[1] == 0:
                break
        print(n)
    """
    count = int(run_script(script, tmp_path))
    assert 10 < count < 99
    found = []
    for n in range(1, count + 1):
        folder = tmp_path / str(n) / "a"
        value = float(load_adapter(folder).pairs["x.q"].A[0, 0])
        assert value in (1.0, 2.0)
        found.append(value)
        save_adapter(NEW, folder, overwrite=True)
        assert is_adapter(folder, NEW)
        assert not (folder.parent / ".a.replaced").exists()
    assert found == sorted(found)
    assert found[-1] == 2.0


def test_peft_is_not_imported() -> None:
    """Reading and writing folders needs neither peft nor transformers."""
    script = "import sys, florana.peft_io; print({'peft', 'transformers'} & {*sys.modules})"
    assert run_script(script) == "set()\n"
