"""Whether a model's clients can be trained at once: tried once per model, on a batch of two rows."""

from __future__ import annotations

from collections.abc import Collection
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from florana.adapter import EVERYTHING, Part
from florana.training.examples import Examples
from florana.training.lora_model import LoraModel
from florana.training.quantization import is_placed
from florana.training.together.batches import joined
from florana.training.together.reading import reads_of
from florana.training.together.shared import Pass, Unfit
from florana.training.together.swap import Fit, stacked
from florana.training.together.training import held, trained_names

_FOUND: WeakKeyDictionary[LoraModel, dict[frozenset[Part], Fit]] = WeakKeyDictionary()


def fit(model: LoraModel, examples: Examples, parts: Collection[Part] = EVERYTHING) -> Fit:
    """Try two rows, each with the factors of a client, through the stacked layers, and look at what happens.

    The rows must stay rows all the way, no module may draw random numbers that are not keyed, none may drop
    numbers twice in one pass, and every trained parameter must get a gradient. Otherwise training goes on one client at a
    time, with PEFT's own layers.

    Args:
        model: the base model with LoRA; unchanged afterwards.
        examples: any of the run.
        parts: what is trained.
    """
    found = _FOUND.setdefault(model, {})
    key = frozenset(parts)
    if key not in found:
        found[key] = _try(model, examples, key)
    return found[key]


def _try(model: LoraModel, examples: Examples, parts: frozenset[Part]) -> Fit:
    if model.initial.variant != "lora":
        return Fit(f"lora.variant {model.initial.variant!r} changes the base's weight per client")
    if is_placed(model.module):
        return Fit("the base's weights are quantised or spread over devices")
    if not model.initial.tensors(parts):
        return Fit("nothing is trained")
    training = model.module.training
    try:
        for keyed_attention in (False, True):
            found = Fit(None, keyed_attention, reads_of(model, examples))
            if not _draws(model, examples, parts, found):
                return found
    except Unfit as error:
        return Fit(str(error))
    finally:
        model.module.train(training)
    return Fit("a module draws random numbers that cannot be told apart by client")


def _draws(model: LoraModel, examples: Examples, parts: frozenset[Part], found: Fit) -> bool:
    """Whether a pass of two rows draws from torch's own generators."""
    shared, tensors = Pass(), held(model)
    chosen = np.array([0, len(examples) - 1])
    inputs, _ = joined([examples.take(chosen[:1]), examples.take(chosen[1:])]).batch(
        np.arange(2), model.device
    )
    shared.clients, shared.owner = 2, torch.arange(2, device=model.device)
    shared.keys = shared.owner.int()
    leaves = trained_names(model, tensors, parts)
    values = {n: torch.stack([t, t]).to(model.device) for n, t in tensors.items()}
    shared.values = {n: t.requires_grad_(n in leaves) for n, t in values.items()}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        before = _states(model.device)
        with stacked(model, shared, found) as inner:
            inner.train()
            logits = inner(**inputs).logits
            again = [site for site, times in shared.calls.items() if times > 1]
            logits.float().square().sum().backward()
        drawn = any(
            not torch.equal(a, b) for a, b in zip(before, _states(model.device), strict=True)
        )
    idle = [name for name in leaves if shared.values[name].grad is None]
    if again:
        raise Unfit("a module drops numbers more than once in a pass")
    if idle:
        raise Unfit(f"no gradient reaches {idle[0]}")
    return drawn


def _states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
