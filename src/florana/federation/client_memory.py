"""What in-process clients remember, as tensors and JSON for a checkpoint.

Clients that hold the same global model hold the same bytes, so every array is kept once, under its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from florana.federation.views import arrays_in, configs_in


def freeze(states: Mapping[int, RecordDict]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The clients' states as (hash -> bytes, description ready for JSON)."""
    blobs: dict[str, Tensor] = {}
    said: dict[str, Any] = {}
    hashes: dict[int, str] = {}  # id of a bytes object -> hash; most are shared between clients
    for partition, state in states.items():
        if not state:
            continue
        arrays: dict[str, Any] = {}
        for record, content in arrays_in(state).items():
            arrays[record] = {}
            for name, array in content.items():
                digest = hashes.setdefault(id(array.data), "") or _digest(array.data)
                hashes[id(array.data)] = digest
                if digest not in blobs:
                    blobs[digest] = torch.frombuffer(bytearray(array.data), dtype=torch.uint8)
                arrays[record][name] = [digest, array.dtype, list(array.shape), array.stype]
        configs = {record: dict(content) for record, content in configs_in(state).items()}
        said[str(partition)] = {"arrays": arrays, "configs": configs}
    return blobs, said


def thaw(blobs: Mapping[str, Tensor], said: Mapping[str, Any]) -> dict[int, RecordDict]:
    """The clients' states as :func:`freeze` found them.

    Raises:
        KeyError: if an array that the description names is not there.
    """
    data = {digest: tensor.numpy().tobytes() for digest, tensor in blobs.items()}
    states = {}
    for partition, records in said.items():
        state = RecordDict()
        for record, arrays in records["arrays"].items():
            state[record] = ArrayRecord(
                {
                    name: Array(dtype, tuple(shape), stype, data[digest])
                    for name, (digest, dtype, shape, stype) in arrays.items()
                }
            )
        for record, entries in records["configs"].items():
            state[record] = ConfigRecord(entries)
        states[int(partition)] = state
    return states


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
