"""What a tensor of a PEFT file may be: dtype and size from its header, finite values once it is read."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from florana.errors import AdapterError
from florana.peft_io.settings import short

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class TensorInfo(NamedTuple):
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def info_of(tensor: Tensor) -> TensorInfo:
    """Dtype and shape of a tensor."""
    return TensorInfo(tensor.dtype, tuple(tensor.shape))


def check_info(key: str, info: TensorInfo) -> None:
    """Refuse dtypes that are not floating or that torch cannot compute with, and empty tensors.

    Raises:
        AdapterError: naming the key.
    """
    if info.dtype not in _DTYPES:
        expected = ", ".join(map(str, _DTYPES))
        fault = f"is {info.dtype}; expected one of {expected}; cast it before saving"
    elif 0 in info.shape:
        fault = f"is empty, {info.shape}; expected values; gather FSDP or DeepSpeed shards before saving"
    else:
        return
    raise AdapterError(f"tensor {short(key)} {fault}")


def check_finite(key: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        AdapterError: naming the key.
    """
    # Ten times faster than isfinite, and NaN goes through it. Empty tensors were refused by their header.
    low, high = torch.aminmax(tensor)
    if not (math.isfinite(low.item()) and math.isfinite(high.item())):
        raise AdapterError(
            f"tensor {short(key)} holds NaN or infinity; expected finite values; leave this adapter out or train it again"
        )
