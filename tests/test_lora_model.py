"""One base model that serves many adapters: what goes in comes out, and the frozen weights stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from florana.config import ModelConfig
from florana.errors import AdapterError, ModelError
from florana.training.base_model import build_model
from strategies import assert_near
from tiny_models import (
    CLASSES,
    HERE,
    Kind,
    assert_same,
    clone,
    differs,
    logits,
    make,
    shaken,
    shaken_residual,
    steps,
    toy_examples,
    train,
    weights,
)


def test_load_and_take_keep_every_bit(kind: Kind) -> None:
    """What goes in comes out, for factors and head, whatever was loaded before."""
    model = make(kind)
    for seed in (1, 2):
        adapter = shaken(model, seed)
        model.load(adapter)
        assert_same(model.take(), adapter)
    assert_same(make(kind).take(), model.initial)


def test_every_factor_and_the_head_is_trained_and_nothing_else(kind: Kind) -> None:
    """Two factors per target in each of the two layers, and the head."""
    model = make(kind)
    names = set(model.initial.tensors())
    factors = {name for name in names if name.endswith((".lora_A", ".lora_B"))}
    assert len(factors) == 2 * 2 * len(kind.targets)
    assert {name.rsplit(".", 1)[0].rsplit(".", 1)[-1] for name in names - factors} == {kind.head}
    assert len(model.parameters) == len(names)
    trainable = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    assert trainable == sum(t.numel() for t in model.initial.tensors().values())


def test_taken_adapters_have_memory_of_their_own(kind: Kind) -> None:
    """Training on does not change them, and writing into them does not change the model."""
    model, examples = make(kind), toy_examples(kind)
    first = model.take()
    kept = clone(first)
    train(model, examples, steps(), HERE)
    assert_same(first, kept)
    second = model.take()
    assert differs(second, first)
    kept = clone(second)
    for tensor in second.tensors().values():
        tensor.zero_()
    assert_same(model.take(), kept)


def test_load_changes_neither_the_adapter_nor_its_residual(kind: Kind) -> None:
    """Training after a load works on copies."""
    model, examples = make(kind), toy_examples(kind)
    adapter, residual = shaken(model), shaken_residual(model)
    kept, kept_residual = clone(adapter), {n: p.B.clone() for n, p in residual.items()}
    model.load(adapter, residual)
    train(model, examples, steps(), HERE)
    model.load(model.initial)
    assert_same(adapter, kept)
    assert all(torch.equal(residual[name].B, B) for name, B in kept_residual.items())
    assert_same(model.initial, make(kind).initial)


def test_a_residual_is_added_to_the_frozen_weights_and_taken_back(kind: Kind) -> None:
    """W + F while it is loaded, from the pristine W each time; without one, W to the bit."""
    model = make(kind)
    W = weights(model)
    for seed in (2, 3):
        residual = shaken_residual(model, seed)
        model.load(model.initial, residual)
        for name, weight in weights(model).items():
            F = residual[name].B.double() @ residual[name].A.double()
            assert_near(weight, W[name].double() + F, 1e-6)
    one, *others = residual
    model.load(model.initial, {one: residual[one]})
    assert all(torch.equal(weights(model)[name], W[name]) for name in others)
    assert not torch.equal(weights(model)[one], W[one])
    model.load(model.initial)
    assert all(torch.equal(weight, W[name]) for name, weight in weights(model).items())


def test_a_residual_acts_like_a_wider_adapter(kind: Kind) -> None:
    """A pair loaded as a residual, beside factors that are zero, gives the logits of the pair."""
    model, examples = make(kind), toy_examples(kind)
    adapter = shaken(model)
    model.load(adapter)
    expected = logits(model.module, examples)
    blank = {
        name: t * 0 if name.endswith(".lora_B") else t for name, t in adapter.tensors().items()
    }
    residual = {name: pair.product for name, pair in adapter.pairs.items()}
    model.load(adapter.with_tensors(blank), residual)
    assert_near(logits(model.module, examples), expected, 1e-5)


def test_the_first_adapter_is_a_function_of_the_seed(kind: Kind) -> None:
    """The same seed gives the same start, another one another; B is zero, so nothing is changed yet."""
    first = make(kind, seed=5).initial
    torch.manual_seed(123)
    assert_same(make(kind, seed=5).initial, first)
    assert differs(make(kind, seed=6).initial, first)
    assert all(not pair.B.any() for pair in first.pairs.values())
    examples = toy_examples(kind)
    base = build_model(kind.source, ModelConfig(), CLASSES.head, 0)
    assert torch.equal(logits(make(kind, seed=5).module, examples), logits(base, examples))


def test_the_head_is_a_function_of_its_seed(kind: Kind) -> None:
    """Heads are drawn from the seed that build_model gets, and from no other."""

    def head(seed: int) -> Tensor:
        base = build_model(kind.source, ModelConfig(), CLASSES.head, seed)
        return base.get_parameter(f"{kind.head}.weight").detach()

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_building_and_training_leave_the_global_generator_alone(kind: Kind) -> None:
    """The state of torch and of numpy is the same before and after."""
    torch.manual_seed(7)
    state, numbers = torch.get_rng_state(), str(np.random.get_state())
    train(make(kind, dropout=0.2), toy_examples(kind), steps(), HERE)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numbers


def test_an_adapter_knows_its_base(kind: Kind) -> None:
    """Name and hash of the base model go with every adapter that is taken."""
    adapter = make(kind).take()
    assert (adapter.base_model, adapter.base_hash) == (kind.source.name, kind.source.sha256)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scaling_of_the_adapter_is_the_one_that_is_applied(
    kinds: dict[str, Kind], rslora: bool
) -> None:
    """W x + s B A x with the adapter's own s, whether alpha / r or alpha / √r."""
    model = make(kinds["own head"], rslora=rslora, rank=4, alpha=6.0)
    assert next(iter(model.initial.pairs.values())).scaling == (3.0 if rslora else 1.5)
    adapter = shaken(model)
    model.load(adapter)
    for name, pair in adapter.pairs.items():
        layer: Any = model.module.get_submodule(f"base_model.model.{name}")
        x = torch.randn(5, pair.shape[1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            added = (layer(x) - layer.get_base_layer()(x)).double()
        assert_near(added, x.double() @ pair.delta_w().T, 1e-5)


def test_a_target_that_is_not_there_is_told(kind: Kind) -> None:
    """The message names the linear modules that there are."""
    with pytest.raises(ModelError) as caught:
        make(kind, target_modules=(kind.targets[0], "attention.nothing"))
    assert "has no linear module 'attention.nothing'" in str(caught.value)
    assert all(target in str(caught.value) for target in kind.targets)


def test_a_rank_that_is_too_large_is_told(kind: Kind) -> None:
    """Above min(d_out, d_in) a LoRA pair has more numbers than the weight."""
    make(kind, rank=16)
    with pytest.raises(
        ModelError, match=r"lora.rank 17 is above min\(d_out, d_in\) = 16 of module"
    ):
        make(kind, rank=17)


def test_an_adapter_of_another_form_is_not_loaded(kinds: dict[str, Kind]) -> None:
    """A larger rank, another scaling or set of modules would be cut, or scaled in another way."""
    kind = kinds["own head"]
    model = make(kind)
    for lora, message in (
        (
            {"rank": 5, "alpha": 10.0},
            r"query is \(16, 16\) of rank 5, expected .* of rank 4 or less",
        ),
        ({"rank": 2}, "query has scaling 4, expected 2"),
        ({"alpha": 16.0}, "query has scaling 4, expected 2"),
        ({"rslora": True}, "query has scaling 4, expected 2"),
        ({"target_modules": ("query",)}, "value is adapted on one side only"),
        ({"target_modules": ("query", "value", "key")}, "key is adapted on one side only"),
    ):
        with pytest.raises(AdapterError, match=message):
            model.load(make(kind, **lora).initial)
    assert_same(model.take(), model.initial)
