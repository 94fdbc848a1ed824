"""The formulas of docs/scale.md, against the messages that every method really sends."""

from __future__ import annotations

import importlib.util
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict

from byte_tables import OPTIONS
from florana.adapter import Adapter, LoraPair
from florana.federation.records import count_bytes
from strategies import randn
from toys import METHODS, Wire, federate, start_of

ROOT = Path(__file__).resolve().parent.parent
SHAPES, RANK, CLIENTS, ROUNDS = [(24, 10), (12, 40)], 2, 4, 4
"""R = 8, so that R + r is at one module's smaller width and below the other's."""

pytestmark = pytest.mark.usefixtures("quiet_flower")


def cost_model() -> Any:
    """benchmarks/cost_model.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "cost_model", ROOT / "benchmarks" / "cost_model.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def start(heads: int) -> Adapter:
    """An adapter of these shapes."""
    g = torch.Generator().manual_seed(0)
    pairs = {
        f"layer{i}": LoraPair(
            randn(g, RANK, d_in).float(), randn(g, d_out, RANK).float(), 2.0 * RANK
        )
        for i, (d_out, d_in) in enumerate(SHAPES)
    }
    return Adapter(pairs, {"head": torch.zeros(heads)}, base_model="base", base_hash="1234")


def numbers_in(content: RecordDict) -> int:
    """Numbers in the arrays of a message."""
    return sum(
        prod(array.shape) for record in content.array_records.values() for array in record.values()
    )


@pytest.mark.parametrize("method", [m for m in METHODS if m != "centralised"])
def test_every_message_is_as_long_as_the_formula_says(method: str) -> None:
    """Numbers up and down in rounds 3 and 4, where a residual is as wide as it can get; bytes are 4 times as many."""
    model, wire, heads = cost_model(), Wire(), 5
    federate(
        rounds=ROUNDS, clients=CLIENTS, initial=start_of(method, start(heads)), method=method,
        grid_type=wire, options=OPTIONS.get(method),
    )  # fmt: skip
    said = model.TRAFFIC[method]
    down = [contents for contents in wire.down if contents][2:]
    up = [contents for contents in wire.up if contents][2:]
    for way, messages in (("up", up), ("down", down)):
        formula = getattr(said, way)
        expected = model.numbers(formula, SHAPES, RANK, CLIENTS, heads if said.heads else 0)
        found = [numbers_in(content) for contents in messages for content in contents]
        assert len(found) == 2 * CLIENTS
        assert sum(found) / len(found) == expected
        for content in (content for contents in messages for content in contents):
            assert 0 < count_bytes(content) - 4 * numbers_in(content) < 1500


def test_every_method_has_its_formula() -> None:
    """A new method needs its line."""
    assert set(cost_model().TRAFFIC) == set(METHODS)


@pytest.mark.parametrize("table", ["traffic_table", "extrapolation"])
def test_the_document_has_the_computed_tables(table: str) -> None:
    """What docs/scale.md computes is what the code computes."""
    text = (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert getattr(cost_model(), table)() in text
