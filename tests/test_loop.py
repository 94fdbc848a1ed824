"""The local training loop: a function of its place, that changes what it should and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from florana.config import ModelConfig, TrainingConfig
from florana.errors import FederationError
from florana.training.loop import learning_rate_factor
from strategies import assert_near
from tiny_models import (
    HERE,
    Kind,
    assert_same,
    differs,
    evaluate,
    frozen,
    make,
    shaken,
    shaken_residual,
    steps,
    toy_examples,
    train,
    trained,
)


def test_training_is_a_function_of_its_place(kind: Kind) -> None:
    """The same (seed, round, client) gives the same bits, dropout included; any other gives others."""
    first = trained(kind, steps(), dropout=0.3)
    torch.manual_seed(99)
    np.random.seed(99)
    assert_same(trained(kind, steps(), dropout=0.3), first)
    for change in ({"seed": 1}, {"server_round": 2}, {"client": 1}):
        assert differs(trained(kind, steps(), replace(HERE, **change), dropout=0.3), first)


def test_dropout_is_used_in_training_and_not_in_evaluation(kinds: dict[str, Kind]) -> None:
    """The same batches with dropout give another adapter; two evaluations give one score."""
    kind = kinds["decoder"]  # it has no dropout of its own
    assert differs(trained(kind, steps(), dropout=0.3), trained(kind, steps()))
    model, examples = make(kind, dropout=0.9), toy_examples(kind)
    model.load(shaken(model))
    assert evaluate(model, examples) == evaluate(model, examples)


def test_training_does_not_depend_on_what_the_model_held_before(kind: Kind) -> None:
    """One model serves many clients: a client's result is that of a model of its own."""
    model, examples = make(kind), toy_examples(kind)
    residual = shaken_residual(model)
    model.load(shaken(model), residual)
    train(model, examples, steps(), replace(HERE, client=3))
    model.load(model.initial)
    train(model, examples, steps(), HERE)
    assert_same(model.take(), trained(kind, steps()))


def test_training_changes_factors_and_head_and_no_frozen_weight(kind: Kind) -> None:
    """Every trainable tensor moves; everything else keeps its bits."""
    model = make(kind)
    before = frozen(model)
    start = shaken(model)
    model.load(start)
    train(model, toy_examples(kind), steps(weight_decay=0.1), HERE)
    after = frozen(model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    for name, tensor in model.take().tensors().items():
        assert not torch.equal(tensor, start.tensors()[name]), name


def test_training_learns(kind: Kind) -> None:
    """On a task that words decide, the loss falls far below chance and held-out texts are told apart."""
    model, held_out = make(kind), toy_examples(kind, 60, seed=1)
    before = evaluate(model, held_out)
    first = train(
        model, toy_examples(kind, 240), steps(40, batch_size=16, learning_rate=0.02), HERE
    )
    second = train(model, toy_examples(kind, 240), steps(20, batch_size=16), HERE)
    after = evaluate(model, held_out)
    assert second < first < 1.2
    assert after.loss < 0.5 * before.loss
    assert after.value > 0.7


def test_two_half_batches_are_one(kinds: dict[str, Kind]) -> None:
    """Accumulating 2 × 8 gives the step of a batch of 16, up to rounding."""
    kind = kinds["decoder"]  # without dropout
    whole, halves, examples = make(kind), make(kind), toy_examples(kind)
    loss = train(whole, examples, steps(4, batch_size=16), HERE)
    assert train(halves, examples, steps(4, batch_size=8, accumulation=2), HERE) == pytest.approx(
        loss
    )
    for name, tensor in whole.take().tensors().items():
        assert_near(halves.take().tensors()[name], tensor, 1e-4)
    assert differs(whole.take(), trained(kind, steps(4, batch_size=8)))


def test_an_epoch_is_one_pass_however_batches_are_made_up(kinds: dict[str, Kind]) -> None:
    """48 examples: six steps of 8, and three of 2 × 8, make one epoch."""
    kind = kinds["decoder"]
    epoch = TrainingConfig(epochs=1, batch_size=8, learning_rate=0.01)
    assert_same(trained(kind, epoch), trained(kind, steps(6)))
    halves = epoch.model_copy(update={"accumulation": 2})
    assert_same(trained(kind, halves), trained(kind, steps(3, accumulation=2)))


def test_the_schedule_spans_the_round_or_the_run(kinds: dict[str, Kind]) -> None:
    """In a run of one round both are one; in a longer one, the run's schedule ends lower."""
    kind = kinds["decoder"]
    only = replace(HERE, num_rounds=1)
    by_round, by_run = steps(schedule="round"), steps(schedule="run")
    assert_same(trained(kind, by_round, only), trained(kind, by_run, only))
    last = replace(HERE, server_round=50, num_rounds=50)

    def moved(config: TrainingConfig) -> float:
        start, end = make(kind).initial.tensors(), trained(kind, config, last).tensors()
        return max(float((end[name] - tensor).abs().max()) for name, tensor in start.items())

    assert moved(by_run) < 0.1 * moved(by_round)


@given(warmup=st.floats(0, 0.99), progress=st.floats(0, 1))
def test_the_learning_rate_rises_then_falls(warmup: float, progress: float) -> None:
    """A share in [0, 1]: rising before the end of the warm-up, falling after it, 1 there, 0 at the end."""
    here = learning_rate_factor(progress, warmup)
    assert 0 <= here <= 1
    later = learning_rate_factor(min(1.0, progress + 0.01), warmup)
    if progress + 0.01 < warmup:
        assert later >= here
    if progress >= warmup:
        assert later <= here
    assert learning_rate_factor(warmup, warmup) == 1
    assert learning_rate_factor(1.0, warmup) == 0


def test_a_loss_that_is_no_number_is_told(kind: Kind) -> None:
    """The error names client, round and step, and what to change; a NaN is never trained on."""
    model = make(kind)
    poisoned = {n: t * float("nan") for n, t in model.initial.extras.items()}
    model.load(replace(model.initial, extras=poisoned))
    place = replace(HERE, server_round=2, client=3)
    with pytest.raises(FederationError, match=r"client 3, round 2, step 1: the loss is nan; lower"):
        train(model, toy_examples(kind), steps(), place)


def test_bf16_trains(kind: Kind) -> None:
    """Under autocast the factors stay float32, and training comes near to that in float32."""
    model, examples = make(kind), toy_examples(kind)
    full = train(make(kind), examples, steps(10), HERE)
    mixed = train(model, examples, steps(10, bf16=True), HERE)
    assert mixed == pytest.approx(full, rel=0.05)
    assert mixed != full
    assert all(p.dtype == torch.float32 for p in model.parameters)
    assert differs(model.take(), model.initial)


def test_gradient_checkpointing_changes_no_number(kind: Kind) -> None:
    """It trades compute for memory: the adapter is the same, and evaluation still works."""
    settings = ModelConfig(gradient_checkpointing=True)
    model, examples = make(kind, model=settings), toy_examples(kind)
    train(model, examples, steps(), HERE)
    for name, tensor in trained(kind, steps()).tensors().items():
        assert_near(model.take().tensors()[name], tensor, 1e-5)
    assert evaluate(model, examples).examples == 48


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_half_precision_trains(kind: Kind, dtype: str) -> None:
    """Factors train in float32 on a half-precision base, and adapters are float32."""
    settings = ModelConfig.model_validate({"dtype": dtype})
    model = make(kind, model=settings)
    examples = toy_examples(kind)
    before = evaluate(model, examples).loss
    train(model, examples, steps(20), HERE)
    assert evaluate(model, examples).loss < before
    taken = model.take()
    assert all(tensor.dtype == torch.float32 for tensor in taken.tensors().values())
    model.load(taken)
    assert_same(model.take(), taken)
