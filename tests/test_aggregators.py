"""The contract that every aggregation method passes, against a dense float64 oracle.

Methods come from the registry: a new one is tested without a line here. Tests that name a method
state what only that method promises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from florana.adapter import Adapter, ClientUpdate, LoraPair
from florana.aggregators import (
    Aggregate,
    Module,
    ModuleResult,
    _contract,
    aggregate,
    cards,
    register,
)
from florana.errors import AdapterError, AggregationError, ConfigError
from florana.lowrank import ALIGNMENT_FLOOR, GAUGES, Gauge, Product
from strategies import (
    EXTRAS,
    MODULES,
    assert_near,
    client_updates,
    dense,
    dense_average,
    dense_best,
    dense_delta,
    dense_error,
    dense_target,
    few,
    randn,
    seeds,
)

NEAR = 1e-6
"""Tolerance for all methods: an iteration that stops when f gains less than 1e-12 ‖T‖² leaves the
product determined to the root of that."""

RESOLUTION = 1e-7
"""Least error that f = ‖T‖² − 2⟨T, X⟩ + ‖X‖², a difference of numbers of size ‖T‖², can show."""

METHODS = list(cards())
MIXED = [name for name in METHODS if cards()[name].mixed_ranks]
EQUAL = [name for name in METHODS if not cards()[name].mixed_ranks]
CHOOSING = [name for name in METHODS if cards()[name].chooses_rank]
VARIANTS = [
    pytest.param(name, {option: value}, id=f"{name}-{value}")
    for name, card in cards().items()
    for option, hint in get_type_hints(card.build).items()
    for value in get_args(hint)
    if isinstance(value, str)
] + [pytest.param(name, {}, id=name) for name in METHODS]
"""Every method as it stands, and with every value of every option that is a choice of words."""

every_method = pytest.mark.parametrize("method", METHODS)
every_variant = pytest.mark.parametrize(("method", "options"), VARIANTS)
some_data = given(data=st.data())


def fitting(data: st.DataObject, method: str, min_clients: int = 1) -> list[ClientUpdate]:
    """Client updates that the method takes."""
    mixed = cards()[method].mixed_ranks
    return data.draw(client_updates(mixed_ranks=mixed, min_clients=min_clients))


def example(*ranks: int, dtype: torch.dtype = torch.float64) -> list[ClientUpdate]:
    """Fixed clients near a common start, of those ranks and one alpha; by default three of rank 3."""
    generator = torch.Generator().manual_seed(0)
    start = {module: randn(generator, 5, d_in) for module, (_, d_in) in MODULES.items()}
    updates = []
    for u, rank in enumerate(ranks or (3, 3, 3)):
        pairs = {
            module: LoraPair(
                A=start[module][:rank] + 0.3 * randn(generator, rank, d_in),
                B=randn(generator, d_out, rank),
                alpha=5,
            )
            for module, (d_out, d_in) in MODULES.items()
        }
        extras = {name: randn(generator, *shape) for name, shape in EXTRAS.items()}
        updates.append(ClientUpdate(f"client-{u}", 10 * (u + 1), Adapter(pairs, extras)))
    return cast(updates, dtype)


def cast(updates: Sequence[ClientUpdate], dtype: torch.dtype) -> list[ClientUpdate]:
    """The updates with every tensor in that dtype."""
    return [
        replace(
            u,
            adapter=u.adapter.with_tensors(
                {n: t.to(dtype) for n, t in u.adapter.tensors().items()}
            ),
        )
        for u in updates
    ]


def with_pairs(
    update: ClientUpdate, change: Callable[..., LoraPair], *arguments: object
) -> ClientUpdate:
    """The update with every pair put through ``change(pair, *arguments)``."""
    pairs = {name: change(pair, *arguments) for name, pair in update.adapter.pairs.items()}
    return replace(update, adapter=replace(update.adapter, pairs=pairs))


def deltas(made: Aggregate) -> dict[str, Tensor]:
    """Module -> the whole ΔW that the method made, dense."""
    return {name: dense_delta(pair) for name, pair in made.adapter.pairs.items()}


def assert_same_product(made: Aggregate, expected: Aggregate, tolerance: float = NEAR) -> None:
    """Both aggregates are one matrix in every module."""
    for name, delta in deltas(expected).items():
        assert_near(deltas(made)[name], delta, tolerance)


# --- what every method promises -----------------------------------------------------------------


@every_method
@few
@some_data
def test_order_of_clients_does_not_matter(method: str, data: st.DataObject) -> None:
    """A permutation of the clients gives the same product, scaling, extras and errors."""
    updates = fitting(data, method, min_clients=2)
    made = aggregate(updates, method)
    shuffled = aggregate(data.draw(st.permutations(updates)), method)
    assert_same_product(shuffled, made)
    for name, tensor in made.adapter.extras.items():
        assert_near(shuffled.adapter.extras[name], tensor)
    for module in MODULES:
        assert shuffled.errors[module] == pytest.approx(made.errors[module], abs=RESOLUTION)
        scaling = made.trained.pairs[module].scaling
        assert shuffled.trained.pairs[module].scaling == pytest.approx(scaling)


@every_method
@few
@some_data
def test_scale_of_weights_does_not_matter(method: str, data: st.DataObject) -> None:
    """num_examples counts only against that of the others."""
    updates = fitting(data, method)
    factor = data.draw(st.floats(1e-3, 1e3))
    scaled = [replace(u, num_examples=factor * u.num_examples) for u in updates]
    assert_same_product(aggregate(scaled, method), aggregate(updates, method))


@every_method
@few
@some_data
def test_one_client_returns_its_own_update(method: str, data: st.DataObject) -> None:
    """A client alone, or with all others at weight 0, gets back its own ΔW and its own extras."""
    updates = fitting(data, method)
    chosen = data.draw(st.integers(0, len(updates) - 1))
    weighted = [replace(u, num_examples=float(i == chosen)) for i, u in enumerate(updates)]
    own = updates[chosen].adapter
    for made in (aggregate([weighted[chosen]], method), aggregate(weighted, method)):
        for module, pair in own.pairs.items():
            assert_near(deltas(made)[module], dense_delta(pair), RESOLUTION)
        for name, tensor in own.extras.items():
            assert_near(made.adapter.extras[name], tensor)


@every_method
@few
@some_data
def test_equal_clients_return_their_update(method: str, data: st.DataObject) -> None:
    """U copies of one adapter, whatever their weights, give that adapter's ΔW."""
    updates = fitting(data, method, min_clients=2)
    own = updates[0].adapter
    made = aggregate([replace(u, adapter=own) for u in updates], method)
    for module, pair in own.pairs.items():
        assert_near(deltas(made)[module], dense_delta(pair), RESOLUTION)


@every_method
@few
@some_data
def test_reported_errors_are_the_dense_ones(method: str, data: st.DataObject) -> None:
    """Errors from factors alone equal those of formed matrices: used, average, optimum, ‖T‖, overall."""
    updates = fitting(data, method)
    made = aggregate(updates, method)
    T = {module: dense_target(updates, module) for module in MODULES}
    for module, errors in made.errors.items():
        rank = max(u.adapter.pairs[module].rank for u in updates)
        assert errors == pytest.approx(
            (
                dense_error(deltas(made)[module], T[module]),
                dense_error(dense_average(updates, module), T[module]),
                dense_error(dense_best(T[module], rank), T[module]),
                float(torch.linalg.matrix_norm(T[module])),
            ),
            abs=1e-12,
            rel=1e-9,
        )
    everything = torch.cat([X.flatten() for X in T.values()])
    gap = torch.cat([(T[module] - deltas(made)[module]).flatten() for module in MODULES])
    assert made.error.used == pytest.approx(float(gap.norm() / everything.norm()), abs=1e-12)
    assert made.error.target_norm == pytest.approx(float(everything.norm()))


@every_method
@few
@some_data
def test_extras_are_averaged_without_scaling(method: str, data: st.DataObject) -> None:
    """Heads and biases become Σ w_u x_u, whatever alpha is."""
    updates = fitting(data, method)
    total = sum(u.num_examples for u in updates)
    made = aggregate(updates, method)
    assert made.weights == {u.client_id: u.num_examples / total for u in updates}
    for name in EXTRAS:
        expected = sum(u.num_examples / total * u.adapter.extras[name] for u in updates)
        assert_near(made.adapter.extras[name], torch.as_tensor(expected))


@every_method
@few
@some_data
def test_alpha_of_the_result_does_not_change_its_product(method: str, data: st.DataObject) -> None:
    """The alpha asked for is the alpha of the result, and its factors make up for it."""
    updates = fitting(data, method)
    made = aggregate(updates, method, alpha=7.0)
    assert {pair.alpha for pair in made.trained.pairs.values()} == {7.0}
    assert_same_product(made, aggregate(updates, method))


@every_method
@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_alpha_of_the_result_is_checked(method: str, alpha: float) -> None:
    """An alpha that is not a positive finite number is refused; 0 is not taken for "not given"."""
    with pytest.raises(AggregationError, match=f"alpha must be .* got {alpha}"):
        aggregate(example(), method, alpha=alpha)


@every_variant
def test_inputs_are_neither_written_to_nor_shared(method: str, options: dict[str, Any]) -> None:
    """Aggregation leaves its inputs as they are, and so does writing into its results."""
    updates = example()
    before = [{n: t.clone() for n, t in u.adapter.tensors().items()} for u in updates]
    made = aggregate(updates, method, **options)
    assert made.error.used >= 0
    results = [*made.trained.tensors().values(), *made.adapter.tensors().values()]
    for tensor in (*results, *chain.from_iterable(made.residual.values())):
        tensor.zero_()
    for update, tensors in zip(updates, before, strict=True):
        for name, tensor in update.adapter.tensors().items():
            assert torch.equal(tensor, tensors[name]), name


@every_method
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_results_have_the_dtype_of_the_inputs(method: str, dtype: torch.dtype) -> None:
    """The result is that of float64 inputs, cast once: off by the rounding of the two factors only."""
    updates = example(dtype=dtype)
    made = aggregate(updates, method)
    assert {tensor.dtype for tensor in made.adapter.tensors().values()} == {dtype}
    exact = aggregate(cast(updates, torch.float64), method)
    for module, pair in exact.adapter.pairs.items():
        delta = deltas(made)[module]
        rounding = 2 * torch.finfo(dtype).eps * pair.scaling * pair.B.norm() * pair.A.norm()
        assert torch.linalg.matrix_norm(delta - dense_delta(pair)) <= rounding
        used = dense_error(delta, dense_target(updates, module))
        assert made.errors[module].used == pytest.approx(used, abs=1e-12)


class NoMatrixOf(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails on any operation that returns a tensor of ``limit`` elements or more."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and look at what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.numel() >= self.limit:
                raise AssertionError(f"{func} made a tensor of shape {tuple(leaf.shape)}")
        return result


def test_the_watch_for_dense_matrices_sees_one() -> None:
    """Forming ΔW under the watch fails, so that passing under it means something."""
    pair = example()[0].adapter.pairs["encoder.query"]
    with pytest.raises(AssertionError, match=r"\(7, 12\)"), NoMatrixOf(7 * 12):
        pair.delta_w()


@every_variant
def test_no_dense_matrix_is_formed(method: str, options: dict[str, Any]) -> None:
    """A 20000 × 20000 weight is aggregated, errors included, from thin tensors only."""
    generator, d, rank = torch.Generator().manual_seed(0), 20_000, 2
    updates = [
        ClientUpdate(
            name,
            1,
            Adapter({"m": LoraPair(randn(generator, rank, d), randn(generator, d, rank), 4)}),
        )
        for name in "abc"
    ]
    with NoMatrixOf(d * d // 100):
        made = aggregate(updates, method, **options)
        assert math.isfinite(made.errors["m"].used)
        assert math.isfinite(made.error.optimum)


# --- the exact mean and the optimum -------------------------------------------------------------


@pytest.mark.parametrize("gauge", GAUGES)
@few
@given(updates=client_updates())
def test_ideal_is_exact(gauge: Gauge, updates: list[ClientUpdate]) -> None:
    """Ideal makes T itself, and what clients train on is the best pair in it."""
    made = aggregate(updates, "ideal", gauge=gauge)
    for module in MODULES:
        T, trained = dense_target(updates, module), made.trained.pairs[module]
        assert_near(deltas(made)[module], T)
        assert_near(dense_delta(trained), dense_best(T, trained.rank))
        assert made.errors[module].used < 1e-9


@pytest.mark.parametrize("gauge", GAUGES)
@few
@given(updates=client_updates(), rank=st.integers(1, 5))
def test_florana_opt_is_the_best_of_any_rank(
    gauge: Gauge, updates: list[ClientUpdate], rank: int
) -> None:
    """At the clients' largest rank, or a smaller or larger one, florana-opt is the truncated SVD of T."""
    for asked in (None, rank):
        made = aggregate(updates, "florana-opt", rank=asked, gauge=gauge)
        for module in MODULES:
            r = asked or max(u.adapter.pairs[module].rank for u in updates)
            assert made.adapter.pairs[module].rank == r
            assert_near(deltas(made)[module], dense_best(dense_target(updates, module), r))
            assert made.errors[module].used == pytest.approx(made.errors[module].optimum, abs=1e-9)


@pytest.mark.parametrize("method", [m for m in METHODS if "gauge" in cards()[m].options])
def test_gauge_decides_the_factors(method: str) -> None:
    """A is √S Vᵀ, Vᵀ, or the clients' mean Ā V Vᵀ with its floor, as the gauge says."""
    updates = example()
    weights = torch.tensor([10, 20, 30]).double() / 60
    made = {gauge: aggregate(updates, method, gauge=gauge).trained.pairs for gauge in GAUGES}
    for module in MODULES:
        _, S, Vh = (X[:3] for X in torch.linalg.svd(dense_target(updates, module)))
        mean = torch.einsum(
            "u,urd->rd", weights, torch.stack([u.adapter.pairs[module].A for u in updates])
        )
        balanced, orthonormal = made["balanced"][module].A, made["orthonormal"][module].A
        assert_near(balanced @ balanced.T, torch.diag(S))
        assert_near(orthonormal @ orthonormal.T, torch.eye(3))
        P, G, Qh = torch.linalg.svd(mean @ Vh.T)
        floor = ALIGNMENT_FLOOR * float(mean.norm()) / 3**0.5
        assert_near(made["mean-aligned"][module].A, (P * G.clamp(min=floor)) @ Qh @ Vh)


@pytest.mark.parametrize("method", ["florana-opt", "ideal"])
@few
@given(updates=client_updates(), seed=seeds)
def test_gauge_of_a_client_does_not_matter(
    method: str, updates: list[ClientUpdate], seed: int
) -> None:
    """(B_u G, G⁻¹ A_u) is the same update as (B_u, A_u) to a method that sees products only."""
    generator = torch.Generator().manual_seed(seed)

    def change(pair: LoraPair) -> LoraPair:
        G = torch.eye(pair.rank).double() + 0.2 * randn(generator, pair.rank, pair.rank)
        assume(torch.linalg.cond(G) < 100)
        return replace(pair, A=torch.linalg.solve(G, pair.A), B=pair.B @ G)

    changed = aggregate([with_pairs(u, change) for u in updates], method)
    assert_same_product(changed, aggregate(updates, method), 1e-8)


@few
@given(updates=client_updates(), seed=seeds)
def test_ideal_stays_exact_over_two_rounds(updates: list[ClientUpdate], seed: int) -> None:
    """With the residual handed back, round 2 is the exact mean of the clients' whole models."""
    first = aggregate(updates, "ideal")
    generator = torch.Generator().manual_seed(seed)

    def train(pair: LoraPair) -> LoraPair:
        A, B = randn(generator, *pair.A.shape), randn(generator, *pair.B.shape)
        return replace(pair, A=pair.A + 0.1 * A, B=pair.B + 0.1 * B)

    trained = [with_pairs(replace(u, adapter=first.trained), train) for u in updates]
    second = aggregate(trained, "ideal", residual=first.residual)
    for module in MODULES:
        mean = dense_target(trained, module)
        if module in first.residual:
            mean += dense(first.residual[module])
        assert_near(deltas(second)[module], mean)
        assert second.errors[module].used < 1e-9
        assert second.errors[module].target_norm == pytest.approx(float(mean.norm()))


# --- FLoRA-NA -----------------------------------------------------------------------------------


@few
@given(updates=client_updates())
def test_florana_lies_between_optimum_and_average(updates: list[ClientUpdate]) -> None:
    """Optimum ≤ florana ≤ plain averaging, in every module."""
    for errors in aggregate(updates, "florana").errors.values():
        assert errors.optimum - RESOLUTION <= errors.used <= errors.average + RESOLUTION


@few
@given(updates=client_updates(min_clients=2))
def test_florana_is_stationary(updates: list[ClientUpdate]) -> None:
    """Given its Â no mixture of the B_u is nearer to T, nor given its B̂ any mixture of the A_u."""
    made = aggregate(updates, "florana")
    for module in MODULES:
        T = dense_target(updates, module)
        pairs = [u.adapter.pairs[module] for u in updates]
        hat = made.adapter.pairs[module]
        for columns in (
            [p.scaling * p.B @ hat.A[: p.rank] for p in pairs],
            [hat.B[:, : p.rank] @ p.A for p in pairs],
        ):
            X = torch.stack([column.flatten() for column in columns], dim=1)
            mixture = torch.linalg.lstsq(X, T.flatten()[:, None], driver="gelsd").solution
            nearest = dense_error((X @ mixture).reshape(T.shape), T)
            assert made.errors[module].used ** 2 <= nearest**2 + 1e-9


@settings(few, max_examples=6, derandomize=True)
@given(updates=client_updates(min_clients=2))
def test_both_solvers_reach_one_objective(updates: list[ClientUpdate]) -> None:
    """Adam gets 95 % of what least squares gains over plain averaging, and never more than all of it.

    Adam's decayed steps are not always done in a narrow valley, hence 95 %. Both start at p = q = w.
    """
    exact, descent = (aggregate(updates, "florana", solver=name) for name in ("als", "gradient"))
    for module, errors in exact.errors.items():
        f_als, f_adam = errors.used**2, descent.errors[module].used ** 2
        gain = errors.average**2 - f_als
        assert -1e-9 <= f_adam - f_als <= 0.05 * gain + 1e-9


SINGULAR: dict[str, Callable[[LoraPair, int], LoraPair]] = {
    "zero B": lambda pair, _: replace(pair, B=torch.zeros_like(pair.B)),
    "zero A": lambda pair, _: replace(pair, A=torch.zeros_like(pair.A)),
    "all zero": lambda pair, _: replace(pair, A=0 * pair.A, B=0 * pair.B),
    "one client zero": lambda pair, u: replace(pair, B=min(u, 1) * pair.B),
    "rank one": lambda pair, _: replace(pair, A=pair.A[:1].expand(pair.A.shape)),
    "nearly cancelling": lambda pair, u: replace(
        pair, A=torch.ones_like(pair.A), B=torch.full_like(pair.B, [1, 1, -1, 0.01][u])
    ),
    "tiny": lambda pair, _: replace(pair, A=1e-12 * pair.A, B=1e-12 * pair.B),
    "huge": lambda pair, _: replace(pair, A=1e12 * pair.A, B=1e12 * pair.B),
}


@pytest.mark.parametrize("flaw", [*SINGULAR, "duplicates"])
@every_variant
def test_singular_problems_break_nothing(method: str, options: dict[str, Any], flaw: str) -> None:
    """Degenerate clients give a finite result, reported truly, and exact wherever averaging is."""
    updates = example(3, 3, 3, 3)
    if flaw == "duplicates":
        updates = [replace(u, adapter=updates[i // 2].adapter) for i, u in enumerate(updates)]
    else:
        updates = [with_pairs(u, SINGULAR[flaw], i) for i, u in enumerate(updates)]
    made = aggregate(updates, method, **options)
    for module, delta in deltas(made).items():
        errors, T = made.errors[module], dense_target(updates, module)
        assert all(map(math.isfinite, errors))
        gap = float(torch.linalg.matrix_norm(delta - T))
        assert gap == pytest.approx(errors.used * errors.target_norm, abs=1e-9 * errors.target_norm)
        if errors.average < 1e-12 or method in ("florana", "florana-opt"):
            assert errors.used <= errors.average + RESOLUTION


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MIXED)
def test_mixed_ranks_are_taken(method: str) -> None:
    """The result's rank is by default the clients' largest."""
    made = aggregate(example(1, 4, 3), method)
    assert {pair.rank for pair in made.trained.pairs.values()} == {4}


@pytest.mark.parametrize("method", EQUAL)
def test_mixed_ranks_are_refused(method: str) -> None:
    """A method that needs one rank names the module, the ranks, and every method that does not."""
    with pytest.raises(AggregationError) as caught:
        aggregate(example(1, 4, 3), method)
    message = str(caught.value)
    assert all(word in message for word in ("encoder.query", "[1, 3, 4]", method, ", ".join(MIXED)))


@every_method
def test_rank_of_the_result(method: str) -> None:
    """A method that chooses the rank gives the one asked for; another names those that can."""
    for rank in (1, 4):
        if method in CHOOSING:
            made = aggregate(example(2, 2), method, rank=rank)
            assert {pair.rank for pair in made.trained.pairs.values()} == {rank}
        else:
            with pytest.raises(AggregationError, match=f"encoder.query.*{', '.join(CHOOSING)}"):
                aggregate(example(2, 2), method, rank=rank)
    with pytest.raises(AggregationError, match="rank must be 1 or more, got 0"):
        aggregate(example(2, 2), method, rank=0)
    with pytest.raises(AggregationError, match=r"^module encoder.*rank"):
        aggregate(example(2, 2), method, rank=8)


# --- names and options --------------------------------------------------------------------------


def test_unknown_method_names_the_nearest() -> None:
    """A mistyped method is an error with a hint, never plain averaging."""
    with pytest.raises(ConfigError, match=r"'floranna', did you mean 'florana'\?.*fedit"):
        aggregate(example(), "floranna")


@every_method
def test_unknown_option_names_the_nearest(method: str) -> None:
    """A mistyped option is an error that names the method's own options."""
    options = cards()[method].options
    with pytest.raises(
        ConfigError, match=f"{method!r} has no option 'zzz'.*{', '.join(options) or 'none'}"
    ):
        aggregate(example(), method, zzz=1)
    for option in options:
        mistyped: dict[str, Any] = {f"{option}x": 1}
        with pytest.raises(ConfigError, match=f"'{option}x', did you mean '{option}'"):
            aggregate(example(), method, **mistyped)


@every_method
def test_bad_option_values_are_told_all_at_once(method: str) -> None:
    """Every option checks its value; one message names all that are wrong."""
    options = cards()[method].options
    wrong: dict[str, Any] = dict.fromkeys(options, object()) | {"zzz": 1}
    with pytest.raises(ConfigError) as caught:
        aggregate(example(), method, **wrong)
    for option in (*options, "zzz"):
        assert re.search(rf"{method!r}.*\b{option}\b", str(caught.value))


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("florana", "iterations", 0),
        ("florana", "tolerance", -1.0),
        ("florana", "tolerance", math.nan),
        ("florana", "learning_rate", 0.0),
        ("florana", "solver", "adam"),
        ("florana-opt", "gauge", "balancd"),
        ("ideal", "gauge", None),
    ],
)
def test_option_values_out_of_range(method: str, option: str, value: Any) -> None:
    """A value outside its range is refused with its name and the value."""
    with pytest.raises(ConfigError, match=re.escape(option) + ".*" + re.escape(repr(value))):
        aggregate(example(), method, **{option: value})


def add_method(name: str) -> None:
    """Register the method that takes the pair of the client with the largest weight."""

    @register(name=name, title="", paper="", summary="", mixed_ranks=True, chooses_rank=False)
    @dataclass(frozen=True, slots=True)
    class Largest:
        times: float = 1.0

        def __call__(self, module: Module, /) -> ModuleResult:
            _, pair = max(zip(module.weights, module.pairs, strict=True), key=lambda both: both[0])
            return ModuleResult(replace(pair, B=self.times * pair.B))


@every_method
def test_two_methods_of_one_name(method: str) -> None:
    """A name that is taken raises, and leaves the registry as it was."""
    before = cards()
    with pytest.raises(ValueError, match=f"two aggregation methods are named {method!r}"):
        add_method(method)
    assert cards() == before


def test_a_new_method_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered class is found by its name, with its fields as checked options."""
    monkeypatch.setattr(_contract, "_registry", dict(cards()))
    add_method("largest")
    updates = example()
    made = aggregate(updates, "largest", times=2)
    for module, pair in updates[-1].adapter.pairs.items():
        assert_near(deltas(made)[module], 2 * dense_delta(pair))
    with pytest.raises(ConfigError, match="'largest', option times"):
        aggregate(updates, "largest", times="often")


# --- updates that do not fit together -----------------------------------------------------------


def with_pair(adapter: Adapter, module: str, pair: LoraPair) -> Adapter:
    """The adapter with one pair replaced or added."""
    return replace(adapter, pairs={**adapter.pairs, module: pair})


def with_number(adapter: Adapter, name: str, value: float) -> Adapter:
    """The adapter with the last number of one tensor replaced."""
    tensor = adapter.tensors()[name].clone()
    tensor.view(-1)[-1] = value
    return adapter.with_tensors({**adapter.tensors(), name: tensor})


def ones(d_out: int, d_in: int, rank: int = 3, dtype: torch.dtype = torch.float64) -> LoraPair:
    """A pair of ones."""
    return LoraPair(torch.ones(rank, d_in, dtype=dtype), torch.ones(d_out, rank, dtype=dtype), 5)


Q, V = MODULES
BROKEN: dict[str, tuple[Callable[[Adapter], Adapter], str]] = {
    "base": (lambda a: replace(a, base_model="gpt2"), "base model is 'gpt2', expected ''"),
    "base hash": (lambda a: replace(a, base_hash="ff"), "base model hash is 'ff', expected ''"),
    "module missing": (lambda a: replace(a, pairs={Q: a.pairs[Q]}), f"lacks module {V}"),
    "module extra": (lambda a: with_pair(a, "new", ones(3, 4)), "has module new that the others"),
    "module shape": (lambda a: with_pair(a, V, ones(5, 9)), rf"{V}.*\(5, 9\).*\(9, 5\)"),
    "module dtype": (
        lambda a: with_pair(a, V, ones(9, 5, dtype=torch.float32)),
        f"{V}.*float32.*float64",
    ),
    "module rank": (lambda a: with_pair(a, V, ones(9, 5, rank=6)), f"{V}: rank 6 is above.* 5 "),
    "A NaN": (lambda a: with_number(a, f"{V}.lora_A", math.nan), f"{V}.lora_A holds NaN"),
    "B infinite": (
        lambda a: with_number(a, f"{V}.lora_B", -math.inf),
        f"{V}.lora_B holds .*infinity",
    ),
    "extras missing": (lambda a: replace(a, extras={}), "lacks parameter classifier.bias"),
    "extras shape": (
        lambda a: replace(a, extras={**a.extras, "classifier.bias": torch.zeros(4).double()}),
        r"classifier.bias.*\(4,\).*\(3,\)",
    ),
    "extras dtype": (
        lambda a: replace(a, extras={**a.extras, "classifier.bias": torch.zeros(3)}),
        "classifier.bias.*float32.*float64",
    ),
    "extras NaN": (
        lambda a: with_number(a, "classifier.bias", math.nan),
        "classifier.bias holds NaN",
    ),
}


@pytest.mark.parametrize("method", MIXED)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_faulty_client_is_named(method: str, fault: str) -> None:
    """One client that does not fit is refused by name, with what came and what was expected."""
    change, told = BROKEN[fault]
    good, bad, other = example()
    broken = replace(bad, adapter=change(bad.adapter))
    with pytest.raises(AggregationError, match=f"^client 'client-1': .*{told}"):
        aggregate([good, broken, other], method)


@every_method
def test_a_faulty_set_of_clients_is_refused(method: str) -> None:
    """No clients, one client twice, and no examples at all cannot be aggregated."""
    updates = example()
    cases: list[tuple[Sequence[ClientUpdate], str]] = [
        ([], "no client updates"),
        ([*updates, updates[0]], "'client-0' appears twice"),
        ([replace(u, num_examples=0) for u in updates], "num_examples sum to 0"),
    ]
    for broken, told in cases:
        with pytest.raises(AggregationError, match=told):
            aggregate(broken, method)


@pytest.mark.parametrize("num_examples", [-1.0, math.nan, math.inf])
def test_num_examples_is_a_weight(num_examples: float) -> None:
    """A weight that is negative or not finite is refused where the update is made."""
    with pytest.raises(AdapterError, match="client a: num_examples"):
        ClientUpdate("a", num_examples, Adapter({}))


def lone_update(client_id: str, pair: LoraPair, num_examples: float = 1) -> ClientUpdate:
    """A client with one module and nothing else."""
    return ClientUpdate(client_id, num_examples, Adapter({"layer": pair}))


@pytest.mark.parametrize("method", METHODS)
def test_a_result_that_overflows_is_refused(method: str) -> None:
    """A result beyond the clients' dtype is an error that names the module, not infinity."""
    pair = LoraPair(torch.ones(2, 4).half(), torch.full((3, 2), 100.0).half(), alpha=4096)
    with pytest.raises(AggregationError, match=r"module layer: .*float16"):
        aggregate([lone_update("a", pair)], method, alpha=1.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_is_kept_or_refused(method: str) -> None:
    """A method that keeps no residual says so when it is given one, and names those that do."""
    pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=2)
    residual = {"layer": Product(torch.ones(3, 1), torch.ones(1, 4))}
    if cards()[method].keeps_residual:
        made = aggregate([lone_update("a", pair)], method, residual=residual)
        torch.testing.assert_close(
            made.adapter.pairs["layer"].delta_w(), pair.delta_w() + 1, rtol=1e-5, atol=1e-5
        )
    else:
        with pytest.raises(AggregationError, match="keep it: ideal"):
            aggregate([lone_update("a", pair)], method, residual=residual)


@pytest.mark.parametrize(("module", "rows"), [("other", 3), ("layer", 5)])
def test_a_residual_that_does_not_fit_is_refused(module: str, rows: int) -> None:
    """A residual of an unknown module or of another shape is refused by name."""
    pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=2)
    residual = {module: Product(torch.ones(rows, 1), torch.ones(1, 4))}
    with pytest.raises(AggregationError, match=module):
        aggregate([lone_update("a", pair)], "ideal", residual=residual)


@pytest.mark.parametrize("method", METHODS)
def test_heads_alone_can_be_aggregated(method: str) -> None:
    """Clients without a LoRA module have their heads averaged, with no error to report."""
    updates = [ClientUpdate(str(n), n, Adapter({}, {"h": torch.full((2,), n)})) for n in (1.0, 3.0)]
    made = aggregate(updates, method)
    assert made.adapter.extras["h"].tolist() == [2.5, 2.5]
    assert made.error.used == 0


def test_num_examples_beyond_counting_are_refused() -> None:
    """Numbers of examples whose sum is infinite would make all weights 0."""
    pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=2)
    with pytest.raises(AggregationError, match="num_examples"):
        aggregate([lone_update(name, pair, 1e308) for name in "abc"])
