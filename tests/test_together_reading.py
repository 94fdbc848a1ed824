"""Tokens that a model's answer is read from: found by gradients, and what is left out for them changes nothing."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from florana.training import together
from florana.training.examples import Examples
from florana.training.lora_model import LoraModel
from florana.training.together.allocator import keep_freed_memory
from florana.training.together.reading import NOTHING, Reads, first, last, reads_of
from florana.training.together.swap import Fit
from strategies import assert_near, few, seeds
from tiny_models import CPU, HERE, SPECIAL, WORDS, Kind, make, shaken, steps, toy_examples
from together_jobs import EXACT, exact, writer

READ = {
    "own head": (
        first,
        {"attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"},
    ),
    "decoder": (
        last,
        {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    ),
}


def found_in(model: LoraModel, kind: Kind) -> Reads:
    """What is found of a model that holds an adapter."""
    model.load(shaken(model))
    return reads_of(model, toy_examples(kind))


@pytest.mark.parametrize("name", READ)
def test_a_classifiers_last_layer_is_read_at_one_token(kinds: dict[str, Kind], name: str) -> None:
    """All of it but keys and values; a decoder's head, too, which answers for every token."""
    reads = found_in(make(kinds[name]), kinds[name])
    rule, layers = READ[name]
    assert reads.rule is rule
    inside = {module for module in reads.modules if ".1." in module}
    assert {module.partition(".1.")[2] for module in inside} == layers
    assert not any("key" in m or "value" in m or "k_proj" in m or "v_proj" in m for m in inside)
    assert not any(".0." in module for module in reads.modules)


def test_where_every_token_is_read_nothing_is_left_out(kinds: dict[str, Kind]) -> None:
    """The mean of all tokens, and an answer for every token."""
    assert found_in(make(kinds["sentence encoder"]), kinds["sentence encoder"]) == NOTHING
    model, data = writer(kinds["decoder"])
    assert reads_of(model, data[0]) == NOTHING


def test_an_answer_from_two_tokens_is_noticed(kinds: dict[str, Kind]) -> None:
    """No rule is right, so nothing is left out."""
    kind = kinds["own head"]
    model = make(kind)
    inner: Any = model.module.get_submodule("base_model.model")
    plain = inner.forward

    def both(**inputs: Tensor) -> Any:
        made: Any = plain(**inputs, output_hidden_states=True)
        made.logits = made.logits + made.hidden_states[-1][:, 1, :1]
        return made

    inner.forward = both
    assert found_in(model, kind) == NOTHING


def test_a_head_of_zeros_tells_nothing(kinds: dict[str, Kind]) -> None:
    """Without any gradient no layer is taken for one that is not read."""
    kind = kinds["own head"]
    model = make(kind)
    for name, parameter in model.module.named_parameters():
        if "classifier" in name:
            nn.init.zeros_(parameter)
    assert reads_of(model, toy_examples(kind)) == NOTHING


@pytest.mark.parametrize("silent", [True, False])
def test_training_is_the_same_with_and_without(kind: Kind, silent: bool) -> None:
    """Tensors of two clients after three steps, in float64; with dropout the masks are those of the whole."""
    model = exact(kind, silent=silent, dropout=0.0 if silent else 0.2)
    model.load(shaken(model))
    data = [toy_examples(kind, size, seed=size) for size in (20, 9)]
    found = together.fit(model, data[0])
    assert found.reason is None

    def trained(found: Fit) -> list[Any]:
        jobs = [together.Job(together.held(model), examples, HERE) for examples in data]
        return together.train_together(model, jobs, EXACT, steps(), found=found)

    whole = trained(Fit(None, found.keyed_attention))
    for made, wanted in zip(trained(found), whole, strict=True):
        assert made.loss == pytest.approx(wanted.loss, rel=1e-12)
        for name, tensor in made.tensors.items():
            assert_near(tensor, wanted.tensors[name], 1e-10)


@few
@given(seed=seeds)
def test_padding_inside_a_text_does_not_lead_astray(kinds: dict[str, Kind], seed: int) -> None:
    """Ids of padding may stand anywhere in a row: the answers are those of PEFT's layers all the same."""
    for name in READ:
        kind = kinds[name]
        model = make(kind)
        found_in(model, kind)
        g = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, len(SPECIAL) + len(WORDS), (5, 7), generator=g)
        ids[torch.rand(5, 7, generator=g) < 0.3] = model.module.config.pad_token_id
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        model.module.eval()
        with torch.inference_mode():
            wanted = model.module(**inputs).logits
            with together.merged(model, toy_examples(kind)):
                made = model.module(**inputs).logits
        assert_near(made, wanted, 1e-5)


def test_looking_leaves_no_trace(kind: Kind) -> None:
    """Gradients, the mode and what is trained are as they were."""
    model = make(kind)
    model.module.train()
    before = [p.requires_grad for p in model.module.parameters()]
    reads_of(model, toy_examples(kind))
    assert model.module.training
    assert [p.requires_grad for p in model.module.parameters()] == before
    assert all(p.grad is None for p in model.module.parameters())


def test_long_texts_are_looked_at_in_part(kinds: dict[str, Kind]) -> None:
    """Their ends are kept, and what is found is the same."""
    kind = kinds["own head"]
    short = found_in(make(kind), kind)
    ids = tuple(torch.randint(5, 20, (length,)) for length in (33, 40, 36, 3))
    seen: list[torch.Size] = []
    model = make(kind)
    inner = model.module.get_submodule("base_model.model")
    inner.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["input_ids"].shape), with_kwargs=True
    )
    assert reads_of(model, Examples(ids, torch.arange(4), 0)) == short
    assert seen == [(4, 32)]


def test_texts_of_a_token_tell_nothing(kinds: dict[str, Kind]) -> None:
    """One token a row is first and last at once."""
    kind = kinds["own head"]
    one = Examples(tuple(torch.tensor([5 + i]) for i in range(3)), torch.arange(3), 0)
    assert reads_of(make(kind), one) == NOTHING
    inputs, _ = one.batch(np.arange(3), CPU)
    assert torch.equal(last(inputs, 0), first(inputs, 0))


def test_memory_is_kept_where_the_allocator_is_glibcs() -> None:
    """Elsewhere the answer is no, and nothing is called."""
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
