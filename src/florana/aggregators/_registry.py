"""The registry: methods by name, and how each presents itself."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

from florana.adapter import LoraPair
from florana.aggregators._contract import Method, nearest_pair
from florana.config import Variant
from florana.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Card:
    """How a method presents itself in ``florana methods``, in the docs and in error messages.

    ``uplink`` and ``downlink`` count the numbers sent per module, client and round, with r the
    rank and R = Σ r_u. ``mixed_ranks``: clients may have unlike ranks. ``chooses_rank``: the result
    may have another rank than the clients' largest. ``keeps_residual``: it adds to the frozen base.
    ``fits_target``: it fits its result to ``Module.goal``, so that all of the server's add-ons
    combine with it. ``variants``: of LoRA that it can aggregate. ``narrow``: how a client of a smaller rank gets its share of the global pair.
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
    fits_target: bool
    variants: tuple[Variant, ...]
    narrow: Callable[[LoraPair, int], LoraPair]
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
    fits_target: bool = False,
    variants: tuple[Variant, ...] = ("lora",),
    narrow: Callable[[LoraPair, int], LoraPair] = nearest_pair,
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
            fits_target=fits_target,
            variants=variants,
            narrow=narrow,
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


def able(condition: Callable[[Card], bool]) -> str:
    """Names of the methods that meet a condition, for messages."""
    return ", ".join(c.name for c in cards().values() if condition(c))


def build(name: str, options: Mapping[str, object]) -> Method:
    """A method with its options checked.

    Raises:
        ConfigError: if the method or an option is not known, or a value does not fit.
    """
    from pydantic import ValidationError

    chosen = card(name)
    mistakes = [
        f"method {name!r} has no option {key!r}{nearest(key, chosen.options)}"
        f" (options: {', '.join(chosen.options) or 'none'})"
        for key in options
        if key not in chosen.options
    ]
    try:
        known = {key: value for key, value in options.items() if key in chosen.options}
        made = _validator(chosen.build).validate_python(known)
    except ValidationError as error:
        mistakes += [
            f"method {name!r}, option {'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
            for e in error.errors()
        ]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return made


@functools.cache
def _validator(method: Callable[..., Method]) -> TypeAdapter[Method]:
    """Made once: with one aggregation per module of a folder it would cost more than many of them."""
    from pydantic import TypeAdapter

    return TypeAdapter(cast(Any, method))
