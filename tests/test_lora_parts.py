"""Parts of an adapter in one model: smaller ranks, cores between fixed bases, and what is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from florana.adapter import EVERYTHING, Adapter, LoraPair, Part
from florana.config import ModelConfig
from florana.peft_io import save_adapter
from florana.training.base_model import build_model
from florana.training.examples import Examples
from florana.training.lora_model import LoraModel
from strategies import assert_near
from tiny_models import (
    CLASSES,
    CPU,
    HERE,
    Kind,
    assert_same,
    differs,
    evaluate,
    frozen,
    logits,
    make,
    shaken,
    shaken_residual,
    steps,
    toy_examples,
    train,
    weights,
)

LORA_PARTS: list[Part] = ["A", "B", "heads"]


def cored(model: LoraModel, seed: int = 4, rank: int = 4) -> Adapter:
    """An adapter with an r × r core between orthonormal bases in every pair."""
    g = torch.Generator().manual_seed(seed)

    def with_core(pair: LoraPair) -> LoraPair:
        Q = torch.linalg.qr(torch.randn(pair.shape[0], rank, generator=g)).Q
        A = torch.linalg.qr(torch.randn(pair.shape[1], rank, generator=g)).Q.T
        R = torch.randn(rank, rank, generator=g)
        return replace(pair, A=A.contiguous(), B=R, basis=Q)

    adapter = shaken(model)
    pairs = {name: with_core(pair) for name, pair in adapter.pairs.items()}
    return replace(adapter, pairs=pairs)


def gradients(model: LoraModel, examples: Examples) -> dict[str, Tensor]:
    """Gradient of the loss over all examples, by the names of the adapter's tensors."""
    model.module.zero_grad()
    inputs, labels = examples.batch(next(iter(examples.by_length(len(examples)))), CPU)
    model.module.eval()
    nn.functional.cross_entropy(model.module(**inputs).logits, labels).backward()  # type: ignore[no-untyped-call]
    names = model.take().tensors(EVERYTHING - {"basis"})
    found = [p.grad for p in model.parameters]
    return {n: g.clone() for n, g in zip(names, found, strict=True) if g is not None}


# Ranks


def narrow(adapter: Adapter, rank: int) -> Adapter:
    """The first components of every pair, at the same scaling."""
    pairs = {
        name: LoraPair(p.A[:rank], p.B[:, :rank], p.alpha * rank / p.rank)
        for name, p in adapter.pairs.items()
    }
    return replace(adapter, pairs=pairs)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_smaller_rank_trains_as_in_a_model_of_that_rank(
    kinds: dict[str, Kind], rank: int
) -> None:
    """In a model of rank 4 and in one that was built with the smaller rank: the same logits, step by step."""
    kind = kinds["decoder"]  # without dropout
    wide, own = make(kind, alpha=8.0), make(kind, rank=rank, alpha=2.0 * rank)
    start, examples = narrow(shaken(wide), rank), toy_examples(kind)
    for model in (wide, own):
        model.load(start)
        assert_same(model.take(), start)
    assert_near(logits(wide.module, examples), logits(own.module, examples), 1e-5)
    assert train(wide, examples, steps(5), HERE) == pytest.approx(
        train(own, examples, steps(5), HERE), rel=1e-5
    )
    assert differs(wide.take(), start)
    for name, tensor in own.take().tensors().items():
        assert wide.take().tensors()[name].shape == tensor.shape
        assert_near(wide.take().tensors()[name], tensor, 1e-4)


def test_ranks_that_were_filled_with_zeros_stay_zero(kind: Kind) -> None:
    """Through training with weight decay and dropout, to the bit, in every adapted module."""
    model = make(kind, dropout=0.2)
    model.load(narrow(shaken(model), 2))
    train(model, toy_examples(kind), steps(5, weight_decay=0.1), HERE)
    for name in model.initial.pairs:
        A = model.module.get_parameter(f"base_model.model.{name}.lora_A.default.weight")
        B = model.module.get_parameter(f"base_model.model.{name}.lora_B.default.weight")
        assert not A[2:].any()
        assert not B[:, 2:].any()
        assert A[:2].all()
        assert B[:, :2].all()


def test_ranks_may_change_from_client_to_client(kind: Kind) -> None:
    """What a client of rank 1 left behind is not seen by the next one of rank 4."""
    model, examples = make(kind), toy_examples(kind)
    model.load(narrow(shaken(model), 1))
    train(model, examples, steps(), HERE)
    model.load(shaken(model))
    train(model, examples, steps(), HERE)
    other = make(kind)
    other.load(shaken(other))
    train(other, examples, steps(), HERE)
    assert_same(model.take(), other.take())


# Cores


def test_a_core_acts_like_the_pair_that_it_folds_to(kind: Kind) -> None:
    """The update s Q R A is that of the plain pair with B = Q R: the same logits, and the loaded bits come back."""
    model, examples = make(kind), toy_examples(kind)
    adapter = cored(model)
    model.load(adapter)
    assert_same(model.take(), adapter)
    by_core = logits(model.module, examples)
    model.load(adapter.folded())
    assert_near(by_core, logits(model.module, examples), 1e-5)


def test_the_gradient_of_a_core_is_that_of_the_dense_product(kind: Kind) -> None:
    """By the chain rule ∂L/∂R = Qᵀ ∂L/∂B at B = Q R; A and the heads have the same gradients."""
    model, examples = make(kind), toy_examples(kind)
    adapter = cored(model)
    model.load(adapter)
    model.train_only(EVERYTHING)
    by_core = gradients(model, examples)
    model.load(adapter.folded())
    model.train_only(EVERYTHING)
    plain = gradients(model, examples)
    assert by_core.keys() == plain.keys()
    for name, gradient in plain.items():
        module = name.removesuffix(".lora_B")
        if name.endswith(".lora_B"):
            basis = adapter.pairs[module].basis
            assert basis is not None
            gradient = basis.T @ gradient
        assert_near(by_core[name], gradient, 1e-5)


def test_a_step_on_the_core_is_adams_step_on_it(kinds: dict[str, Kind]) -> None:
    """R_1 = R_0 − lr g / (|g| + ε), g from the dense product; Q, A and the frozen weights keep their bits."""
    kind = kinds["decoder"]  # without dropout
    model, examples = make(kind), toy_examples(kind)
    adapter, before = cored(model), frozen(model)
    model.load(adapter)
    model.train_only(EVERYTHING)
    g = gradients(model, examples)
    config = steps(1, batch_size=len(examples), learning_rate=0.02, clip=1e9)
    train(model, examples, config, HERE, {"B", "heads"})
    made = model.take()
    for part in ("A", "basis"):
        for name, tensor in adapter.tensors({part}).items():  # type: ignore[arg-type]
            assert torch.equal(made.tensors()[name], tensor)
    for name, core in adapter.tensors({"B"}).items():
        expected = core - 0.5 * 0.02 * g[name] / (g[name].abs() + 1e-8)
        clear = g[name].abs() > 1e-5  # where the sign of g is beyond rounding
        assert clear.float().mean() > 0.9
        assert_near(made.tensors()[name][clear], expected[clear], 1e-4)
    after = frozen(model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_cores_come_and_go(kind: Kind) -> None:
    """A model that held a core trains a plain pair as a fresh model does, and a core after a pair likewise."""
    model, examples = make(kind), toy_examples(kind)
    adapters = [cored(model), shaken(model), cored(model, seed=5), cored(model, seed=6)]
    for adapter in [*adapters, model.initial]:
        model.load(adapter)
        train(model, examples, steps(), HERE)
        fresh = make(kind)
        fresh.load(adapter)
        train(fresh, examples, steps(), HERE)
        assert_same(model.take(), fresh.take())
        assert evaluate(model, examples) == evaluate(fresh, examples)


def test_a_core_beside_a_residual(kind: Kind) -> None:
    """W + F + s Q R A, as one wider plain update has it; without them, W to the bit."""
    model, examples = make(kind), toy_examples(kind)
    pristine, adapter, residual = weights(model), cored(model), shaken_residual(model)
    model.load(adapter, residual)
    together = logits(model.module, examples)
    for name, F in residual.items():
        assert_near(
            weights(model)[name], pristine[name].double() + F.B.double() @ F.A.double(), 1e-6
        )
    whole = dict(residual)
    for name, pair in adapter.pairs.items():
        F = residual[name]
        both = (
            torch.cat([F.B.double(), pair.product.B], 1),
            torch.cat([F.A.double(), pair.product.A]),
        )
        whole[name] = type(F)(*both)
    blank = {n: torch.zeros_like(t) for n, t in model.initial.tensors({"B"}).items()}
    model.load(model.initial.with_tensors(blank | adapter.tensors({"heads"})), whole)
    assert_near(together, logits(model.module, examples), 1e-4)
    model.load(model.initial)
    assert all(torch.equal(weight, pristine[name]) for name, weight in weights(model).items())


def test_the_base_weights_are_the_pristine_ones(kind: Kind) -> None:
    """Whatever residual is loaded, ``base_weights`` is W and not W + F."""
    model = make(kind)
    pristine = weights(model)
    model.load(cored(model), shaken_residual(model))
    assert model.base_weights.keys() == pristine.keys()
    assert all(torch.equal(weight, pristine[name]) for name, weight in model.base_weights.items())


def test_a_trained_core_leaves_as_a_plain_peft_folder(kind: Kind, tmp_path: Path) -> None:
    """PEFT knows no core: the folded adapter, on a base with another head, says the same."""
    model, examples = make(kind), toy_examples(kind)
    model.load(cored(model))
    train(model, examples, steps(), HERE, {"B", "heads"})
    folder = save_adapter(model.take().folded(), tmp_path / "adapter")
    base = build_model(kind.source, ModelConfig(), CLASSES.head, seed=77)
    loaded = peft.PeftModel.from_pretrained(base, str(folder))
    assert_near(logits(loaded, examples), logits(model.module, examples), 1e-5)


# What is trained


@pytest.mark.parametrize("core", [False, True], ids=["pair", "core"])
@pytest.mark.parametrize(
    "parts", [{"A"}, {"B"}, {"heads"}, {"A", "heads"}, {"A", "B"}], ids=lambda p: "+".join(sorted(p))
)  # fmt: skip
def test_only_the_parts_that_are_asked_for_are_trained(
    kinds: dict[str, Kind], parts: set[Part], core: bool
) -> None:
    """These move, every tensor of them; the others keep their bits, under weight decay too."""
    kind = kinds["sentence encoder"]
    model = make(kind)
    start = cored(model) if core else shaken(model)
    model.load(start)
    train(model, toy_examples(kind), steps(weight_decay=0.1), HERE, parts)
    made = model.take()
    for part in ("A", "B", "basis", "heads"):
        for name, tensor in start.tensors({part}).items():  # type: ignore[arg-type]
            assert torch.equal(made.tensors()[name], tensor) is (part not in parts), name


def test_parts_that_were_frozen_are_trained_again(kind: Kind) -> None:
    """A round of B alone leaves no trace in the next, which trains everything."""
    model, examples = make(kind), toy_examples(kind)
    train(model, examples, steps(), HERE, {"B"})
    model.load(shaken(model))
    train(model, examples, steps(), HERE)
    fresh = make(kind)
    fresh.load(shaken(fresh))
    train(fresh, examples, steps(), HERE)
    assert_same(model.take(), fresh.take())


def test_the_clip_is_on_the_gradient_of_what_is_trained(kinds: dict[str, Kind]) -> None:
    """A frozen part has no gradient, so it does not shrink the step of the others."""
    kind = kinds["decoder"]
    model, examples = make(kind), toy_examples(kind)
    model.load(shaken(model))
    model.train_only({"heads"})
    assert len(model.parameters) == len(model.initial.extras)
    train(model, examples, steps(), HERE, {"heads"})
    assert all(p.grad is None for p in model.module.parameters())
