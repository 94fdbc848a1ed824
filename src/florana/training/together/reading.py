r"""Which tokens a model's answer is read from: what other tokens give in its last layer is not computed.

A classifier reads one token of each row, an encoder's its first, a decoder's its last. Of the last layer, keys and values of
all tokens are needed, but queries and all that comes after the attention only of that one: ten twelfths of its products
are for nothing. Rather than knowing architectures, :func:`reads_of` looks at gradients: a layer whose output has none at any
token but the one that is read may put zeros there. Values and gradients of all that is read stay exactly what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from florana.adapter import EVERYTHING
from florana.training.examples import Examples, Indices
from florana.training.lora_model import LoraModel
from florana.training.quantization import is_placed
from florana.training.together.shared import PREFIX, Pass

Inputs = Mapping[str, Any]
Rule = Callable[[Inputs, int | None], Tensor]


def first(inputs: Inputs, _pad_id: int | None) -> Tensor:
    """The first token of every row (n,)."""
    ids: Tensor = inputs["input_ids"]
    return ids.new_zeros(len(ids))


def last(inputs: Inputs, pad_id: int | None) -> Tensor:
    """The last token of every row that is no padding, as transformers' decoders find it (n,)."""
    ids: Tensor = inputs["input_ids"]
    if pad_id is None:
        return ids.new_full((len(ids),), ids.shape[1] - 1)
    places = torch.arange(ids.shape[1], device=ids.device, dtype=torch.int32)
    return (places * (ids != pad_id)).argmax(-1)


RULES: tuple[Rule, ...] = (first, last)


@dataclass(frozen=True, slots=True)
class Reads:
    """What of a model is read at one token of each row alone.

    Args:
        rule: which token that is; None: nothing is known.
        modules: names of the linear layers whose output is read there only.
        pad_id: the model's id of padding.
    """

    rule: Rule | None = None
    modules: frozenset[str] = frozenset()
    pad_id: int | None = None


ROWS: Final = 4
MOST_TOKENS: Final = 32
"""How many rows are looked at, and how many tokens of each."""

NOTHING: Final = Reads()
"""Nothing is known, so all is computed."""


@contextmanager
def following(reads: Reads, module: nn.Module, shared: Pass) -> Iterator[None]:
    """Tell ``shared`` before each call of ``module`` which tokens will be read."""
    rule = reads.rule
    if rule is None:
        yield
        return

    def look(_module: nn.Module, _args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        ids = inputs.get("input_ids")
        shared.read = None
        if isinstance(ids, Tensor) and ids.ndim == 2:
            shared.tokens = ids.numel()
            rows = torch.arange(len(ids), device=ids.device) * ids.shape[1]
            shared.read = rows + rule(inputs, reads.pad_id)

    hook = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        shared.read = None


_FOUND: WeakKeyDictionary[LoraModel, Reads] = WeakKeyDictionary()


def reads_of(model: LoraModel, examples: Examples) -> Reads:
    """Let the model answer a few rows and look which of its layers the answer's gradient reaches at one token only.

    A layer counts where its output has a gradient at the token that the rule says, in every row, and none elsewhere.
    It is tried once per model; the model is unchanged afterwards.

    Args:
        model: the base model with LoRA, whatever it holds.
        examples: any of the run; four of unlike length are looked at.
    """
    if examples.prompts is not None:  # a language model, which answers at every token
        return NOTHING
    if model not in _FOUND:
        _FOUND[model] = NOTHING if is_placed(model.module) else _look(model, examples)
    return _FOUND[model]


def _look(model: LoraModel, examples: Examples) -> Reads:
    inner = model.module.get_submodule(PREFIX[:-1])
    pad_id = getattr(getattr(inner, "config", None), "pad_token_id", None)
    inputs, _ = _short(examples.take(_unlike(examples))).batch(np.arange(ROWS), model.device)
    outputs: dict[str, Tensor] = {}
    training, shape = model.module.training, inputs["input_ids"].shape
    hooks = [
        inner.get_submodule(name).register_forward_hook(_kept(outputs, name, shape))
        for name in _layers(model, inner)
    ]
    model.train_only(EVERYTHING)
    model.module.eval()
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            logits: Tensor = inner(**inputs).logits
            if logits.ndim != 2 or shape[1] < 2:  # an answer per token, or rows that tell nothing
                return NOTHING
            logits.float().square().sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
        model.module.train(training)
        model.module.zero_grad(set_to_none=True)
    reached = {n: (o.grad != 0).any(-1) for n, o in outputs.items() if o.grad is not None}
    for rule in RULES:
        read = nn.functional.one_hot(rule(inputs, pad_id).long(), shape[1]).bool()
        modules = frozenset(name for name, tokens in reached.items() if tokens.equal(read))
        if modules:
            return Reads(rule, modules, pad_id)
    return NOTHING


def _layers(model: LoraModel, inner: nn.Module) -> list[str]:
    """Names of the linear layers, of adapted ones with their factors."""
    adapted = list(model.initial.pairs)
    plain = [name for name, module in inner.named_modules() if type(module) is nn.Linear]
    within = tuple(f"{name}." for name in adapted)
    return adapted + [name for name in plain if not name.startswith(within)]


def _unlike(examples: Examples) -> Indices:
    """The shortest and the longest example, and two between them."""
    order = np.argsort([len(ids) for ids in examples.token_ids], kind="stable")
    chosen: Indices = order[np.linspace(0, len(order) - 1, ROWS).round().astype(int)]
    return chosen


def _short(examples: Examples) -> Examples:
    """Without the middle of long rows, so that looking takes little memory; the ends may be special tokens."""

    def cut(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        half = MOST_TOKENS // 2
        return tuple(r if len(r) <= MOST_TOKENS else torch.cat([r[:half], r[-half:]]) for r in rows)

    segments = None if examples.segments is None else cut(examples.segments)
    return replace(examples, token_ids=cut(examples.token_ids), segments=segments)


def _kept(outputs: dict[str, Tensor], name: str, shape: torch.Size) -> Callable[..., None]:
    """A hook that keeps an output (n, t, d) and its gradient."""

    def keep(_module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        if isinstance(output, Tensor) and output.shape[:-1] == shape and output.requires_grad:
            output.retain_grad()
            outputs[name] = output

    return keep
