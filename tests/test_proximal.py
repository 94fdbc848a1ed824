"""FedProx on the client: the pull back to where the round began, against the term written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from florana.adapter import Adapter, Part
from florana.seeding import generator
from florana.training.examples import sample_batches
from florana.training.loop import learning_rate_factor, pull_back
from strategies import assert_near, few, seeds
from tiny_models import CPU, HERE, Kind, assert_same, make, shaken, steps, toy_examples, train

STRENGTH = 3.0


@few
@given(seed=seeds, strength=st.sampled_from([0.01, 1.0, 10.0]))
def test_the_gradient_is_that_of_the_term(seed: int, strength: float) -> None:
    """Adding μ (θ − θ_0) to a gradient is autograd on L(θ) + μ/2 ‖θ − θ_0‖²; θ and θ_0 are not touched."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (4, 2), (5,)]
    values = [torch.randn(shape, generator=g) for shape in shapes]
    starts = [torch.randn(shape, generator=g) for shape in shapes]

    def task(parameters: list[nn.Parameter]) -> Tensor:
        first, second, third = parameters
        return (first @ second).square().sum() + third.sin().sum()

    ours = [nn.Parameter(value.clone()) for value in values]
    task(ours).backward()  # type: ignore[no-untyped-call]
    pull_back(ours, starts, strength)
    written_out = [nn.Parameter(value.clone()) for value in values]
    distance = sum((p - s).square().sum() for p, s in zip(written_out, starts, strict=True))
    (task(written_out) + strength / 2 * distance).backward()
    for made, expected, value in zip(ours, written_out, values, strict=True):
        assert made.grad is not None
        assert expected.grad is not None
        assert_near(made.grad, expected.grad, 1e-5)
        assert torch.equal(made, value)


def test_parameters_without_a_gradient_get_none() -> None:
    """A head that no example reached is left alone."""
    idle = nn.Parameter(torch.ones(2))
    pull_back([idle], [torch.zeros(2)], 1.0)
    assert idle.grad is None


def by_hand(kind: Kind, number: int, strength: float, rate: float) -> Adapter:
    """AdamW on the loss with the term in it, batch by batch."""
    model, examples = make(kind), toy_examples(kind)
    model.load(shaken(model))
    parameters = model.parameters
    start = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    rng = generator(HERE.seed, "batches", HERE.server_round, HERE.client)
    model.module.train()
    for step, chosen in enumerate(sample_batches(len(examples), 8, number, rng)):
        optimizer.param_groups[0]["lr"] = rate * learning_rate_factor((step + 0.5) / number, 0.0)
        inputs, labels = examples.batch(chosen, CPU)
        loss = nn.functional.cross_entropy(model.module(**inputs).logits, labels)
        for parameter, origin in zip(parameters, start, strict=True):
            loss = loss + strength / 2 * (parameter - origin).square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.take()


def moved(kind: Kind, strength: float, parts: set[Part] | None = None) -> tuple[Adapter, float]:
    """The adapter after six steps, and how far it is from where it began."""
    model = make(kind)
    start = shaken(model)
    model.load(start)
    config = steps(6, clip=1e9, proximal=strength)
    train(model, toy_examples(kind), config, HERE, *([parts] if parts else []))
    made, origin = model.take(), start.tensors()
    gap = sum(float((t - origin[n]).square().sum()) for n, t in made.tensors().items())
    return made, gap


def test_training_with_it_is_training_on_the_sum(kinds: dict[str, Kind]) -> None:
    """Six steps of ``train`` are six steps of AdamW on cross-entropy + μ/2 ‖θ − θ_0‖²."""
    kind = kinds["decoder"]  # without dropout
    expected = by_hand(kind, 6, STRENGTH, 0.01)
    made, _ = moved(kind, STRENGTH)
    plain, _ = moved(kind, 0.0)
    apart = 0.0
    for name, tensor in expected.tensors().items():
        assert_near(made.tensors()[name], tensor, 1e-4)
        apart = max(apart, float((plain.tensors()[name] - tensor).abs().max()))
    assert apart > 1e-3  # so the term matters here


def test_a_stronger_pull_keeps_nearer_to_the_start(kind: Kind) -> None:
    """The distance after a round falls with μ; with μ = 0 the bits are those of training without it."""
    gaps = [moved(kind, strength)[1] for strength in (0.0, 1.0, 30.0)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert_same(moved(kind, 0.0)[0], by_settings(kind))


def by_settings(kind: Kind) -> Adapter:
    """The same training where ``proximal`` is not mentioned."""
    model = make(kind)
    model.load(shaken(model))
    train(model, toy_examples(kind), steps(6, clip=1e9), HERE)
    return model.take()


@pytest.mark.parametrize("parts", [{"B", "heads"}, {"A"}])
def test_it_pulls_only_what_is_trained(kinds: dict[str, Kind], parts: set[Part]) -> None:
    """Frozen parts keep their bits, and θ_0 is matched with the right parameters."""
    kind = kinds["own head"]
    made, gap = moved(kind, STRENGTH, parts)
    start = shaken(make(kind)).tensors()
    chosen = made.tensors(parts)  # type: ignore[arg-type]
    for name, tensor in made.tensors().items():
        assert torch.equal(tensor, start[name]) is (name not in chosen)
    assert 0 < gap < moved(kind, 0.0, parts)[1]
