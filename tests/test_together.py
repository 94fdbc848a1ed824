"""Clients trained at once: what each would have become alone, in PEFT's own layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from florana.adapter import Part
from florana.aggregators import narrowed
from florana.config import TrainingConfig
from florana.training import together
from florana.training.loop import train
from strategies import assert_near
from tiny_models import CLASSES, HERE, Kind, make, shaken, shaken_residual, steps, toy_examples
from together_jobs import (
    EXACT,
    assert_alike,
    at_once,
    clients_of,
    exact,
    hush,
    in_peft,
    one_by_one,
    starts_of,
    writer,
)

SAME = 1e-9
"""Relative; all in float64, after a few steps of AdamW."""

WAYS: dict[str, TrainingConfig] = {
    "steps": steps(4),
    "epochs, so unlike numbers of steps": TrainingConfig(
        epochs=2, batch_size=8, learning_rate=0.01
    ),
    "accumulation": steps(3, accumulation=3),
    "warm-up, decay, a tight clip": steps(4, warmup=0.3, weight_decay=0.1, clip=0.05),
    "the run's schedule, FedProx": steps(4, schedule="run", proximal=0.5),
    "batches larger than a client's data": steps(2, batch_size=12),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_group_does_what_peft_does_one_by_one(kind: Kind, way: str) -> None:
    """Three clients with 48, 20 and 9 examples: tensors and losses of PEFT's layers and torch's optimiser."""
    model, data = exact(kind, silent=True), clients_of(kind)
    starts = starts_of(model)
    wanted = in_peft(model, starts, data, WAYS[way])
    assert_alike(at_once(model, starts, data, WAYS[way]), wanted, SAME)


@pytest.mark.parametrize("way", ["steps", "epochs, so unlike numbers of steps", "accumulation"])
def test_dropout_masks_are_each_clients_own(kind: Kind, way: str) -> None:
    """With LoRA's dropout and the model's own, in and out of attention: the same masks in a group and alone."""
    model, data = exact(kind, dropout=0.3), clients_of(kind)
    starts = starts_of(model)
    alone = one_by_one(model, starts, data, WAYS[way])
    assert_alike(at_once(model, starts, data, WAYS[way]), alone, SAME)
    hush(model)
    silent = one_by_one(exact(kind, silent=True), starts, data, WAYS[way])
    assert abs(silent[0].loss - alone[0].loss) > 1e-3 * alone[0].loss


def test_a_clients_dropout_depends_on_its_place(kinds: dict[str, Kind]) -> None:
    """Another client with the same data and start has other masks."""
    model, data = exact(kinds["decoder"], dropout=0.3), clients_of(kinds["decoder"], (48, 48))
    start = shaken(model)
    same_batches = steps(1, batch_size=48)  # all examples, so that only their order differs
    first, second = at_once(model, [start] * 2, [data[0]] * 2, same_batches)
    assert abs(first.loss - second.loss) > 1e-4


def test_causal_models_weigh_tokens_as_one_by_one(kinds: dict[str, Kind]) -> None:
    """The mean is over a batch's response tokens, however its rows are cut into chunks."""
    model, data = writer(kinds["decoder"])
    starts = starts_of(model)
    config = steps(3, accumulation=2)
    wanted = in_peft(model, starts, data, config)
    assert_alike(at_once(model, starts, data, config), wanted, SAME)


@pytest.mark.parametrize("most_tokens", [1, 40, 10**6])
def test_chunks_change_nothing(
    kind: Kind, most_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows one at a time, some at a time or all at once, dropout included: the same adapters."""
    model, data = exact(kind, dropout=0.2), clients_of(kind)
    starts = starts_of(model)
    wanted = at_once(model, starts, data, steps())
    monkeypatch.setitem(together.batches.TOKENS, "cpu", most_tokens)
    assert_alike(at_once(model, starts, data, steps()), wanted, SAME)


def test_unlike_ranks_are_filled_up(kind: Kind) -> None:
    """Clients of rank 1, 2 and 4 in one group; what is filled up stays zero."""
    model, data = exact(kind, silent=True), clients_of(kind)
    starts = [
        narrowed(start, "florana-opt", [rank] * len(start.pairs))
        for start, rank in zip(starts_of(model), (1, 2, 4), strict=True)
    ]
    made = at_once(model, starts, data, steps(weight_decay=0.1))
    assert_alike(made, in_peft(model, starts, data, steps(weight_decay=0.1)), SAME)
    name = next(iter(starts[0].pairs))
    assert not made[0].tensors[f"{name}.lora_A"][1:].any()
    assert not made[0].tensors[f"{name}.lora_B"][:, 1:].any()


@pytest.mark.parametrize("parts", [{"A", "heads"}, {"B", "heads"}, {"A"}, {"heads"}])
def test_parts_are_trained_alone(kind: Kind, parts: set[Part]) -> None:
    """FFA-LoRA, RoLoRA: only what the plan trains comes back, and is what PEFT makes of it."""
    model, data = exact(kind, silent=True), clients_of(kind)
    starts = starts_of(model)
    made = at_once(model, starts, data, steps(), parts)
    assert made[0].tensors.keys() == starts[0].tensors(parts).keys()
    assert_alike(made, in_peft(model, starts, data, steps(), parts), SAME)


def test_a_core_between_two_bases_is_trained(kind: Kind) -> None:
    """Fed-SB: ΔW = s Q R A with R trained, Q and A fixed."""
    model, data = exact(kind, silent=True), clients_of(kind)
    g = torch.Generator().manual_seed(0)
    cored = []
    for start in starts_of(model):
        pairs = {
            name: replace(
                pair,
                B=torch.randn(4, pair.rank, generator=g),
                basis=torch.randn(pair.shape[0], 4, generator=g),
            )
            for name, pair in start.pairs.items()
        }
        cored.append(replace(start, pairs=pairs))
    parts: set[Part] = {"B", "heads"}
    made = at_once(model, cored, data, steps(), parts)
    assert_alike(made, in_peft(model, cored, data, steps(), parts), SAME)


def test_what_was_added_to_the_base_counts(kind: Kind) -> None:
    """With a residual F of earlier rounds the base is W + F for everybody."""
    model, data = exact(kind, silent=True), clients_of(kind)
    starts, residual = starts_of(model), shaken_residual(model)
    made = at_once(model, starts, data, steps(), residual=residual)
    assert_alike(made, in_peft(model, starts, data, steps(), residual=residual), SAME)


def test_one_clients_failure_is_its_own(kind: Kind) -> None:
    """A client whose factors are NaN is told with round and step; the others are as without it."""
    model, data = exact(kind), clients_of(kind)
    starts = starts_of(model)
    wanted = one_by_one(model, starts, data, steps())
    starts[1] = starts[1].with_tensors(
        {n: t * float("nan") for n, t in starts[1].tensors().items()}
    )
    first, second, third = at_once(model, starts, data, steps())
    assert str(second.error).startswith("client 1, round 1, step 1: the loss is nan; lower")
    assert_alike([first, third], [wanted[0], wanted[2]], SAME)


def test_in_float32_a_round_agrees_to_a_hundred_thousandth(kind: Kind) -> None:
    """The whole adapter after a round of eight steps, dropout included, relative to its norm."""
    model, data = make(kind, dropout=0.1), clients_of(kind)
    starts, config = starts_of(model), steps(8)
    made = at_once(model, starts, data, config, objective=CLASSES)
    for one, other in zip(
        made, one_by_one(model, starts, data, config, objective=CLASSES), strict=True
    ):
        flat, wanted = (
            torch.cat([t.flatten() for t in trained.tensors.values()]) for trained in (one, other)
        )
        assert_near(flat, wanted, 1e-5)


def test_bf16_is_nearer_to_bf16_alone_than_to_float32(kind: Kind) -> None:
    """Rounding to 8 bits may fall on either side, so that equality is up to that rounding."""
    model, data = make(kind), clients_of(kind)
    starts, config = starts_of(model), steps(4, bf16=True)
    group = at_once(model, starts, data, config, objective=CLASSES)
    alone = one_by_one(model, starts, data, config, objective=CLASSES)
    full = one_by_one(model, starts, data, steps(4), objective=CLASSES)

    def apart(first: Any, second: Any) -> float:
        return max(abs(a.loss - b.loss) / b.loss for a, b in zip(first, second, strict=True))

    assert apart(group, alone) < 2e-3
    assert all(t.dtype == torch.float32 for t in group[0].tensors.values())
    assert apart(alone, full) > 0


def test_the_loop_is_a_group_of_one(kind: Kind) -> None:
    """``train`` leaves in the model what a group of one gives, to the bit."""
    model, examples = make(kind, dropout=0.2), toy_examples(kind)
    start = shaken(model)
    model.load(start)
    loss = train(model, examples, CLASSES, steps(), HERE)
    trained = together.held(model)
    (made,) = at_once(model, [start], [examples], steps(), objective=CLASSES)
    assert made.loss == loss
    assert all(torch.equal(trained[name], tensor) for name, tensor in made.tensors.items())


def test_the_model_is_as_it_was(kind: Kind) -> None:
    """PEFT's modules are back in their places, attention is torch's own, factors are those that were loaded."""
    model = exact(kind, dropout=0.3)
    before = dict(model.module.named_modules())
    implementations = {
        n: m.config._attn_implementation for n, m in before.items() if hasattr(m, "config")
    }
    start = shaken(model)
    at_once(model, [start], [toy_examples(kind)], steps())
    after = dict(model.module.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is module for name, module in before.items())
    for name, implementation in implementations.items():
        assert after[name].config._attn_implementation == implementation
    for name, tensor in model.take().tensors().items():
        assert torch.equal(tensor, start.tensors()[name]), name


def test_choosing_stays_within_the_clients(kinds: dict[str, Kind]) -> None:
    """One to as many as there are, and what the model holds is kept; a model that does not fit has one."""
    kind = kinds["sentence encoder"]
    model = make(kind)
    model.load(shaken(model))
    before = together.held(model)
    assert 1 <= together.choose(model, clients_of(kind), CLASSES, steps()) <= 3
    assert all(torch.equal(t, before[name]) for name, t in together.held(model).items())
    dora = make(kind, variant="dora")
    assert together.choose(dora, clients_of(kind), CLASSES, steps()) == 1
    assert EXACT.loss(torch.zeros(2, 4), torch.tensor([0, 1])) == pytest.approx(1.3863, abs=1e-4)
