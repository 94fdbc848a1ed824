"""What the server made of one round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from florana.adapter import Adapter
from florana.aggregators._contract import Module
from florana.aggregators._errors import Errors, together
from florana.aggregators._server import Memory
from florana.aggregators._state import with_residual
from florana.aggregators._variants import Form
from florana.lowrank import Product, Svd


class View(NamedTuple):
    """A module of all clients as the methods see it, and the way back from it."""

    module: Module
    form: Form


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What the server made of one round.

    Args:
        trained: the adapter that clients go on training.
        increment: module -> what this round adds to the frozen base; empty for most methods.
        residual: module -> F, all that was ever added to the frozen base.
        weights: client_id -> w_u.
        memory: module -> what the server's add-ons remember for the next round.
    """

    trained: Adapter
    increment: Mapping[str, Product]
    residual: Mapping[str, Product]
    weights: Mapping[str, float]
    memory: Mapping[str, Memory] = field(repr=False)
    _look: Callable[[str], View] = field(repr=False)
    _solved: dict[str, Mapping[str, Svd | Product]] = field(repr=False)
    _measurable: bool = field(repr=False)

    @cached_property
    def adapter(self) -> Adapter:
        """The whole result as one adapter: ``trained``, with the residual appended to its pairs."""
        return with_residual(self.trained, self.residual)

    @cached_property
    def errors(self) -> Mapping[str, Errors]:
        """Module -> :class:`Errors` of what was really made, rounding included; worked out when first read.

        The clients' factors are stacked again for it, one module at a time, so that a result does not hold them all.
        Empty where the server does not see the clients' whole updates, since a part of them stays at home.
        """
        found: dict[str, Errors] = {}
        for name, made in self.adapter.pairs.items() if self._measurable else ():
            module, form = self._again(name)
            found[name] = form.errors(module, made, self.trained.pairs[name].rank)
            self._solved[name] = module.solved
        return found

    @cached_property
    def error(self) -> Errors | None:
        """The same over all modules at once: √Σ‖T − X‖² / √Σ‖T‖²; None where there is none."""
        return together(self.errors.values()) if self._measurable else None

    @cached_property
    def spectra(self) -> Mapping[str, list[float]]:
        """Module -> singular values of the ideal update, descending; empty where :attr:`errors` is.

        For DoRA and HiRA they are of what the low-rank pair has to carry: D̄F + T, and H.
        """
        names = self.trained.pairs if self._measurable else ()
        return {name: self._again(name).module.ideal_svd.S.tolist() for name in names}

    def _again(self, name: str) -> View:
        """The module as the method saw it, with what was solved then."""
        view = self._look(name)
        view.module.recall(self._solved[name])
        return view
