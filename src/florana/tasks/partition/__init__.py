"""How examples are spread over clients, what each client holds out, and how uneven the split is."""

from florana.tasks.partition.held_out import ClientSplit, Indices, hold_out, split_clients
from florana.tasks.partition.schemes import (
    MAX_DRAWS,
    MIN_EXAMPLES,
    SCHEMES,
    Scheme,
    partition,
)
from florana.tasks.partition.sizes import Quantity, SizeLaw
from florana.tasks.partition.summary import (
    ClientSummary,
    PartitionSummary,
    summarise,
    summary_rows,
    total_variation,
)
from florana.tasks.partition.words import in_words

__all__ = [
    "MAX_DRAWS",
    "MIN_EXAMPLES",
    "SCHEMES",
    "ClientSplit",
    "ClientSummary",
    "Indices",
    "PartitionSummary",
    "Quantity",
    "Scheme",
    "SizeLaw",
    "hold_out",
    "in_words",
    "partition",
    "split_clients",
    "summarise",
    "summary_rows",
    "total_variation",
]
