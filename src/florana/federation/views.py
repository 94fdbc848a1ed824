"""The records of a message by kind, without the cycles of Flower's own views.

``content.array_records`` and its like make an object that refers to itself and to all the records, so that a message which
was looked at in this way stays in memory, arrays and all, until Python's collector happens to look. It counts objects, not
bytes: the replies of a hundred clients are few objects.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict


def arrays_in(content: RecordDict) -> dict[str, ArrayRecord]:
    """Name -> record of arrays."""
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def metrics_in(content: RecordDict) -> dict[str, MetricRecord]:
    """Name -> record of numbers."""
    return {name: record for name, record in content.items() if isinstance(record, MetricRecord)}


def configs_in(content: RecordDict) -> dict[str, ConfigRecord]:
    """Name -> record of settings."""
    return {name: record for name, record in content.items() if isinstance(record, ConfigRecord)}
