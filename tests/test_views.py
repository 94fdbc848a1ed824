"""Messages leave memory when nobody needs them, not when Python's collector looks."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from florana.federation.client_app import build_client_app
from florana.federation.views import arrays_in, configs_in, metrics_in
from toys import federate, make_adapter, toy_client

pytestmark = pytest.mark.usefixtures("quiet_flower")


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No collection, so that what is in a cycle stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def messages() -> int:
    """How many messages' contents are in memory."""
    return sum(isinstance(thing, RecordDict) for thing in gc.get_objects())


def test_views_hold_the_records_by_kind() -> None:
    """As Flower's do; the records are the same objects."""
    arrays = ArrayRecord({"x": Array(np.zeros(3, dtype=np.float32))})
    config, metrics = ConfigRecord({"a": 1}), MetricRecord({"b": 2.0})
    content = RecordDict({"arrays": arrays, "config": config, "metrics": metrics})
    assert arrays_in(content) == dict(content.array_records)
    assert arrays_in(content)["arrays"] is arrays
    assert configs_in(content) == {"config": config}
    assert metrics_in(content) == {"metrics": metrics}
    metrics_in(content)["metrics"]["c"] = 3.0
    assert metrics["c"] == 3.0


@pytest.mark.parametrize("method", ["florana-blend", "fedex-lora", "fedsa-lora"])
def test_rounds_leave_no_messages_behind(method: str, uncollected: None) -> None:
    """With twice the rounds there are no more of them: what remains is of the last round, or each client's state."""
    left = []
    for rounds in (2, 4, 8):
        before = messages()
        federate(build_client_app(make_adapter(), toy_client), rounds=rounds, method=method)
        left.append(messages() - before)
    assert left[0] == left[1] == left[2], left
