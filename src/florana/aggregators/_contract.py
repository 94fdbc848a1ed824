"""What all aggregation methods share: the view of one module, the method's card, the registry.

A method is a frozen dataclass whose fields are its options and whose call turns one
:class:`Module` into one :class:`ModuleResult`. It sees neither the model, nor files, nor the
network; the loop over modules, the checks and the error report are written once, in
:mod:`florana.aggregators._aggregate`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from florana import lowrank
from florana.adapter import LoraPair
from florana.errors import ConfigError
from florana.lowrank import Product


@dataclass(frozen=True, eq=False)
class Module:
    r"""One adapted module as the server sees it in one round.

    Args:
        name: the module's name.
        pairs: the clients' pairs (A_u, B_u, s_u); ranks and scalings may differ.
        weights: w_u ≥ 0, in the order of ``pairs``, summing to 1.
        rank: rank r* asked of the result.
        alpha: alpha of the result; its scaling ŝ follows from it, from ``rank`` and ``rslora``.
        rslora: whether the result uses rank-stabilised scaling.
        residual: what earlier rounds left frozen beside the trained pair, or None.
    """

    name: str
    pairs: Sequence[LoraPair]
    weights: Sequence[float]
    rank: int
    alpha: float
    rslora: bool
    residual: Product | None = None

    @cached_property
    def target(self) -> Product:
        r"""The ideal update in factored form, :math:`T = F + \sum_u w_u s_u B_u A_u`.

        F is the frozen residual of earlier rounds, absent for most methods.
        """
        products = [pair.product for pair in self.pairs]
        if self.residual is None:
            return lowrank.weighted_sum(products, self.weights)
        return lowrank.weighted_sum([self.residual, *products], [1.0, *self.weights])

    @cached_property
    def svd(self) -> lowrank.Svd:
        """Singular value decomposition of the target."""
        return lowrank.svd(self.target)

    @cached_property
    def average(self) -> LoraPair:
        r"""Plain averaging of the factors: :math:`\bar A = \sum w_u A_u, \bar B = \sum w_u (s_u/ŝ) B_u`.

        The ratio s_u/ŝ is 1 when all clients share one scaling. Smaller ranks are padded with zeros
        up to the largest. Float64.
        """
        A, B = self.factors()
        w = torch.tensor(self.weights, dtype=torch.float64, device=A.device)
        width = A.shape[1]
        return LoraPair(
            torch.einsum("u,urd->rd", w, A),
            torch.einsum("u,udr->dr", w, B),
            self.alpha if width == self.rank else _alpha_for(self.scaling, width, self.rslora),
            self.rslora,
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """The clients' A (U, r, d_in) and (s_u/ŝ) B (U, d_out, r), padded to one rank, in float64."""
        width = max(pair.rank for pair in self.pairs)
        padded = [lowrank.pad(pair.product, width) for pair in self.pairs]
        return torch.stack([p.A for p in padded]), torch.stack([p.B / self.scaling for p in padded])

    @property
    def scaling(self) -> float:
        """Scaling ŝ of the result."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def pair(self, product: Product) -> LoraPair:
        """The result's pair for a product of width ``rank``: ŝ is divided out of B."""
        return LoraPair(product.A, product.B / self.scaling, self.alpha, self.rslora)


def _alpha_for(scaling: float, rank: int, rslora: bool) -> float:
    """The alpha that gives ``scaling`` at ``rank``."""
    return scaling * (rank**0.5 if rslora else rank)


class ModuleResult(NamedTuple):
    """What a method makes of one module.

    ``pair`` is what clients go on training; ``residual``, if any, is added to the frozen base.
    """

    pair: LoraPair
    residual: Product | None = None


class Method(Protocol):
    """An aggregation method with its options set: one module in, one result out."""

    def __call__(self, module: Module, /) -> ModuleResult:
        """Aggregate the clients' pairs of one module."""
        ...


@dataclass(frozen=True, slots=True)
class Card:
    """How a method presents itself in ``florana methods``, in the docs and in error messages.

    ``uplink`` and ``downlink`` count the numbers sent per module, client and round, with r the
    rank and R = Σ r_u. ``mixed_ranks``: clients may have unlike ranks. ``chooses_rank``: the result
    may have another rank than the clients' largest. ``keeps_residual``: it leaves a frozen residual
    beside the trained pair, and takes it up again in the next round.
    """

    name: str
    title: str
    paper: str
    summary: str
    uplink: str
    downlink: str
    mixed_ranks: bool
    chooses_rank: bool
    keeps_residual: bool
    build: Callable[..., Method]

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the method's options."""
        return tuple(f.name for f in fields(self.build))  # type: ignore[arg-type]


_registry: dict[str, Card] = {}

M = TypeVar("M", bound=Method)


def register(
    *,
    name: str,
    title: str,
    paper: str,
    summary: str,
    uplink: str = "r(d_in + d_out)",
    downlink: str = "r(d_in + d_out)",
    mixed_ranks: bool,
    chooses_rank: bool,
    keeps_residual: bool = False,
) -> Callable[[type[M]], type[M]]:
    """Class decorator that puts a method under its name; a second method of that name raises."""

    def add(cls: type[M]) -> type[M]:
        if name in _registry:
            raise ValueError(f"two aggregation methods are named {name!r}")
        _registry[name] = Card(
            name=name,
            title=title,
            paper=paper,
            summary=summary,
            uplink=uplink,
            downlink=downlink,
            mixed_ranks=mixed_ranks,
            chooses_rank=chooses_rank,
            keeps_residual=keeps_residual,
            build=cls,
        )
        return cls

    return add


def cards() -> Mapping[str, Card]:
    """All methods, by name."""
    return dict(sorted(_registry.items()))


def card(name: str) -> Card:
    """The method of that name.

    Raises:
        ConfigError: if there is none; the message names the nearest one.
    """
    if name in _registry:
        return _registry[name]
    raise ConfigError(
        f"unknown method {name!r}{nearest(name, _registry)}; known: {', '.join(cards())}"
    )


def nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """The hint ``", did you mean 'x'?"`` for a mistyped name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def build(name: str, options: Mapping[str, object]) -> Method:
    """A method with its options checked.

    Raises:
        ConfigError: if the method or an option is not known, or a value does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    chosen = card(name)
    mistakes = [
        f"method {name!r} has no option {key!r}{nearest(key, chosen.options)}"
        f" (options: {', '.join(chosen.options) or 'none'})"
        for key in options
        if key not in chosen.options
    ]
    try:
        known = {key: value for key, value in options.items() if key in chosen.options}
        adapter: TypeAdapter[Method] = TypeAdapter(cast(Any, chosen.build))
        made = adapter.validate_python(known)
    except ValidationError as error:
        mistakes += [
            f"method {name!r}, option {'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return made
