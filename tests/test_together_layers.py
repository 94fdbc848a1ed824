"""What training at once is made of: keyed dropout, frozen products, the trial of a model, merged weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from florana.training import together
from florana.training.examples import Examples
from florana.training.together import frozen_linear
from florana.training.together.batches import chunks, read
from florana.training.together.dropout import keep
from florana.training.together.frozen_linear import FrozenLinear, multiply
from florana.training.together.shared import PREFIX, Pass, Unfit
from strategies import assert_near, few, seeds
from tiny_models import CPU, HERE, Kind, evaluate, make, shaken, steps, toy_examples
from together_jobs import clients_of, exact

keys_of_rows = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=6, unique=True)


def mask(keys: list[int], *shape: int, site: int = 3, p: float = 0.3) -> Tensor:
    """A mask of some rows."""
    rows = torch.tensor(keys, dtype=torch.int32)
    return keep(rows, site, torch.Size((len(keys), *shape)), p, torch.float32)


@few
@given(keys=keys_of_rows, tokens=st.integers(1, 9), width=st.integers(1, 9))
def test_a_rows_mask_does_not_depend_on_what_stands_beside_it(
    keys: list[int], tokens: int, width: int
) -> None:
    """Neither on the other rows and their order, nor on how far the batch is padded, nor along any axis."""
    whole = mask(keys, tokens, width)
    assert torch.equal(mask(keys[::-1], tokens, width), whole.flip(0))
    assert torch.equal(mask(keys[:1], tokens, width), whole[:1])
    assert torch.equal(mask(keys, tokens + 5, width + 4)[:, :tokens, :width], whole)
    heads = mask(keys, 2, tokens, tokens)
    assert torch.equal(mask(keys, 2, tokens + 3, tokens + 3)[:, :, :tokens, :tokens], heads)


@few
@given(seed=st.integers(0, 2**31 - 1), p=st.sampled_from([0.05, 0.1, 0.5, 0.9]))
def test_masks_drop_with_the_probability_that_is_asked_for(seed: int, p: float) -> None:
    """Of 2^16 numbers a share p, within five standard deviations; kept ones are scaled so that the mean is 1."""
    made = mask([seed], 256, 256, p=p)
    count = made.numel()
    dropped = float((made == 0).sum()) / count
    assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / count) + 2**-16
    assert float(made.max()) == pytest.approx(1 / (1 - p), rel=1e-3)


@few
@given(seed=st.integers(0, 2**31 - 2))
def test_masks_of_other_rows_places_and_tokens_are_unlike(seed: int) -> None:
    """Two masks that differ in one of these agree on a half of the numbers, as coin tosses do."""
    here = mask([seed], 128, 128, p=0.5)
    count = here.numel()
    others = [
        mask([seed + 1], 128, 128, p=0.5),
        mask([seed], 128, 128, site=4, p=0.5),
        here.roll(1, 1),
        here.roll(1, 2),
        here.roll(2, 2),
        here.transpose(1, 2),
    ]
    for other in others:
        assert abs(float((here == other).sum()) / count - 0.5) < 6 * 0.5 / math.sqrt(count)


@few
@given(seed=seeds, rows=st.integers(1, 5), bias=st.booleans(), deep=st.booleans())
def test_frozen_products_are_those_of_a_linear_layer(
    seed: int, rows: int, bias: bool, deep: bool
) -> None:
    """Values and the gradient to x, with and without bias, for matrices and batches of them."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 5, generator=g)
    shift = torch.randn(7, generator=g) if bias else None
    x = torch.randn(*((rows, 3) if deep else (rows,)), 5, generator=g)
    grad = torch.randn(*x.shape[:-1], 7, generator=g)
    for values in (x, x.transpose(0, 1) if deep else x):
        mine, theirs = (values.clone().requires_grad_() for _ in range(2))
        target = grad.transpose(0, 1) if values.shape[:-1] != grad.shape[:-1] else grad
        made, wanted = multiply(mine, weight, shift), nn.functional.linear(theirs, weight, shift)
        assert_near(made.detach(), wanted.detach(), 1e-5)
        made.backward(target)
        wanted.backward(target)
        assert mine.grad is not None
        assert theirs.grad is not None
        assert_near(mine.grad, theirs.grad, 1e-5)


def test_without_onednn_torchs_own_products_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the operator is missing or wrong it is not used, and what is computed is the same."""
    linear, x = nn.Linear(5, 7), torch.randn(3, 5)
    linear.requires_grad_(False)
    wanted = FrozenLinear(linear)(x)

    def wrong(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return x @ weight.t() + 1

    def missing(*_given: Any) -> Tensor:
        raise AttributeError

    for broken in (wrong, missing):
        monkeypatch.setattr(frozen_linear, "_onednn", broken)
        frozen_linear.onednn_serves.cache_clear()
        assert not frozen_linear.onednn_serves()
        assert_near(FrozenLinear(linear)(x), wanted, 1e-6)
    monkeypatch.undo()
    frozen_linear.onednn_serves.cache_clear()


@pytest.mark.parametrize("most_tokens", [1, 60, 10**6])
def test_chunks_hold_every_row_once(kinds: dict[str, Kind], most_tokens: int) -> None:
    """Each client's batch of the step, row by row with its own key, label and tokens, in no more tokens than allowed."""
    readings = [read(examples, steps(2), HERE) for examples in clients_of(kinds["decoder"])]
    cut = chunks(readings, 1, CPU, most_tokens)
    found: list[tuple[int, int]] = []
    for chunk in cut:
        rows, width = chunk.inputs["input_ids"].shape
        assert rows == 1 or rows * width <= most_tokens
        assert [s.labels for s in chunk.shares] == [s.end - s.begin for s in chunk.shares]
        assert [s.begin for s in chunk.shares] == [0, *(s.end for s in chunk.shares)][:-1]
        for share in chunk.shares:
            reading = readings[share.client]
            expected: Examples = reading.examples.take(reading.batches[1])
            for row in range(share.begin, share.end):
                assert chunk.owner[row] == share.client
                place = reading.keys[1].tolist().index(int(chunk.keys[row]))
                length = int(chunk.inputs["attention_mask"][row].sum())
                ids = chunk.inputs["input_ids"][row, :length]
                assert torch.equal(ids, expected.token_ids[place])
                assert chunk.labels[row] == expected.labels[place]
                found.append((share.client, place))
    assert sorted(found) == [(client, place) for client in range(3) for place in range(8)]


class Loud(nn.Module):
    """A layer with random numbers of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """X with noise in training."""
        return nn.functional.dropout(x, 0.1, training=self.training)


def reason_of(model: Any, kind: Kind) -> str:
    """Why it is trained one by one."""
    found = together.fit(model, toy_examples(kind))
    assert found.reason is not None
    return found.reason


def test_models_that_cannot_share_a_pass_say_why(kinds: dict[str, Kind]) -> None:
    """DoRA and HiRA, noise that has no key, rows that do not stay rows: each with its reason; PEFT trains them."""
    kind = kinds["decoder"]
    for variant, alpha in (("dora", 8.0), ("hira", 4.0)):
        assert variant in reason_of(make(kind, variant=variant, alpha=alpha), kind)
    model = make(kind)
    layer: Any = model.module.get_submodule("base_model.model.model.layers.0")
    before = layer.input_layernorm
    layer.input_layernorm = nn.Sequential(before, Loud())
    assert "random numbers" in reason_of(model, kind)
    model = make(kind)
    layer = model.module.get_submodule("base_model.model.model.layers.0.self_attn")
    layer.q_proj.base_layer = nn.Sequential(layer.q_proj.base_layer)
    assert "no plain linear layer" in reason_of(model, kind)


def test_rows_that_are_regrouped_are_noticed() -> None:
    """A layer that sees tokens in place of rows refuses them."""
    shared = Pass()
    shared.clients, shared.keys = 2, torch.zeros(4, dtype=torch.int32)
    assert shared.rows(torch.zeros(4, 3, 5), "m").shape == (4, 3, 5)
    assert shared.rows(torch.zeros(4, 5), "m").shape == (4, 1, 5)
    for shape in ((12, 5), (5,), (8, 3, 5)):
        with pytest.raises(Unfit, match="module m gets"):
            shared.rows(torch.zeros(shape), "m")
    shared.clients = 1
    assert shared.rows(torch.zeros(4, 3, 5), "m").shape == (1, 12, 5)


def test_a_trial_leaves_no_trace(kind: Kind) -> None:
    """Factors, generators and the model's mode are as they were."""
    model = exact(kind, dropout=0.2)
    model.load(shaken(model))
    model.module.eval()
    before, state = together.held(model), torch.get_rng_state()
    assert together.fit(model, toy_examples(kind)).reason is None
    assert not model.module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in together.held(model).items())


def test_merged_weights_say_what_peft_says(kind: Kind) -> None:
    """Logits of W + s B A in one matrix, within float32's rounding; the frozen weights keep their bits."""
    model, examples = make(kind), toy_examples(kind)
    model.load(shaken(model))
    model.module.eval()
    inputs, _ = examples.batch(np.arange(12), CPU)
    modules = dict(model.module.named_modules())
    weights = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    with torch.inference_mode():
        wanted = model.module(**inputs).logits
        with together.merged(model, examples):
            places = [model.module.get_submodule(PREFIX + name) for name in model.initial.pairs]
            made = model.module(**inputs).logits
    assert all(type(place) is FrozenLinear for place in places)
    assert_near(made, wanted, 1e-5)
    assert all(m is modules[n] for n, m in model.module.named_modules())
    assert all(torch.equal(p, weights[n]) for n, p in model.module.named_parameters())


@pytest.mark.parametrize("variant", ["lora", "dora", "hira"])
def test_scores_are_those_of_pefts_layers(kinds: dict[str, Kind], variant: str) -> None:
    """Every variant: what is not merged is left to PEFT."""
    kind = kinds["sentence encoder"]
    alpha = 4.0 if variant == "hira" else 8.0
    model, examples = make(kind, variant=variant, alpha=alpha), toy_examples(kind)
    wanted = evaluate(model, examples)
    with together.merged(model, examples):
        made = evaluate(model, examples)
    assert made.value == wanted.value
    assert made.loss == pytest.approx(wanted.loss, rel=1e-5)
