"""How PEFT stores pairs: splitting and joining against PEFT's own formulas, and stacks of experts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import peft_clients
from florana.adapter import Adapter, LoraPair
from florana.errors import AdapterError
from florana.peft_io import load_adapter, save_adapter
from florana.peft_io.layouts import (
    EMBEDDING,
    LINEAR,
    OUT_PROJ,
    TRANSPOSED,
    Layout,
    convolution,
    experts,
)
from florana.peft_io.scales import alike
from peft_rows import ROWS
from strategies import few

# PEFT warns of missing configs and of what it sets by itself
pytestmark = pytest.mark.filterwarnings("ignore")


@st.composite
def stored(draw: st.DrawFn) -> tuple[Layout, int, int, int]:
    """A layout, a rank, d_out and the input channels."""
    kernel = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
    layout = draw(
        st.one_of(
            st.sampled_from([LINEAR, TRANSPOSED, EMBEDDING, OUT_PROJ]),
            st.builds(convolution, kernel),
            st.builds(experts, st.integers(1, 4)),
        )
    )
    return layout, draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 6))


@few
@given(stored(), st.integers(0, 2**32 - 1))
def test_layout_splits_into_peft_deltas_and_joins_again(
    case: tuple[Layout, int, int, int], seed: int
) -> None:
    """Each pair's B A is PEFT's own formula for that matrix, and joining the pairs gives the stored bits."""
    layout, rank, d_out, channels = case
    count, ones = max(1, layout.experts), (1,) * len(layout.kernel)
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(rank * count, channels, *layout.kernel, generator=generator).double()
    B = torch.randn(d_out, rank * count, *ones, generator=generator).double()
    d_in = channels * math.prod(layout.kernel)
    assert layout.pair_shape(tuple(A.shape), tuple(B.shape), rank) == (d_out, d_in)
    pairs = layout.split({"A": A, "B": B})
    stacked = (
        torch.einsum(  # as ParamWrapper.get_delta_weight has it; one expert is the plain product
            "o r e, e r i -> e o i", B.reshape(d_out, rank, count), A.reshape(count, rank, d_in)
        )
    )
    assert len(pairs) == len(layout.pair_names("m")) == count
    for pair, delta in zip(pairs, stacked, strict=True):
        torch.testing.assert_close(pair["B"] @ pair["A"], delta)
    joined = layout.join(pairs)
    assert torch.equal(joined["A"], A)
    assert torch.equal(joined["B"], B)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (LINEAR, (4,)),
        (LINEAR, (4, 3, 3)),
        (EMBEDDING, (4, 3, 3)),
        (convolution((3, 3)), (4, 2, 9)),
        (convolution((3, 3)), (4, 2, 3, 2)),
        (experts(2), (2, 4, 3)),
    ],
)
def test_weight_of_another_shape_is_refused(layout: Layout, shape: tuple[int, ...]) -> None:
    """A parameter of the wrong base model is refused with its shape; experts have neither DoRA nor HiRA."""
    with pytest.raises(AdapterError, match="base model") as caught:
        layout.weight(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_experts_of_unlike_ranks_are_padded(tmp_path: Path) -> None:
    """PEFT has one rank for all experts; products stay as they were, in PEFT's own merge."""
    row = ROWS["experts-only"]
    adapter = load_adapter(peft_clients.saved(row, tmp_path)[0])
    short = adapter.pairs["block.experts[1]"]
    odd = LoraPair(short.A[:1], short.B[:, :1], alpha=7, rslora=True)
    mixed = Adapter(
        {**adapter.pairs, "block.experts[1]": odd},
        peft_config=adapter.peft_config,
        layouts=adapter.layouts,
    )
    came = peft_clients.merged(row.base(), save_adapter(mixed, tmp_path / "mixed"))
    base = row.base().get_submodule("block.experts").get_parameter("down").detach().double()
    for e in range(3):
        expected = base[e] + mixed.pairs[f"block.experts[{e}]"].delta_w()
        torch.testing.assert_close(came["block.experts.down"][e], expected, rtol=1e-5, atol=1e-6)
    assert [pair.rank for pair in alike([odd, short])] == [2, 2]


def test_a_missing_expert_is_refused(tmp_path: Path) -> None:
    """A stack is written whole or not at all."""
    adapter = load_adapter(peft_clients.saved(ROWS["experts-only"], tmp_path)[0])
    rest = {name: pair for name, pair in adapter.pairs.items() if not name.endswith("[1]")}
    broken = Adapter(rest, peft_config=adapter.peft_config, layouts=adapter.layouts)
    with pytest.raises(AdapterError, match=r"block\.experts.*experts\[1\].*3 experts"):
        save_adapter(broken, tmp_path / "broken")
