r"""The header of a safetensors file, scanned in one pass.

A file is the header's length (8 bytes, little-endian), the header, and the tensors' bytes without a gap. The header is
JSON, ``{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}``, with an optional ``"__metadata__"``
of strings. Its nesting is fixed, so it is scanned by a regular expression per entry and not by a JSON parser, in
which 16 MiB of ``[[],[],...`` become 400 MiB of Python objects. What is accepted is a part of what the safetensors
library accepts: no other fields, no name twice, no leading blanks, at most eight dimensions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from florana.errors import AdapterError
from florana.peft_io.limits import Limits
from florana.peft_io.settings import short
from florana.peft_io.values import TensorInfo

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "C64": torch.complex64,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""Data types by safetensors' names: those of PyTorch that models are saved in."""

MAX_DIMENSIONS, MAX_ELEMENTS, _METADATA_LENGTH = 8, 2**48, 2**20

_W = r"[ \t\n\r]*"
# the number of escapes is bounded because each takes memory while it is matched
_TEXT = r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*){0,4096}"'
_INTEGER = r"(?:0|[1-9][0-9]{0,18})"
_INTEGERS = rf"(?:{_INTEGER}(?:{_W},{_W}{_INTEGER}){{0,{MAX_DIMENSIONS - 1}}})?"
_FIELD = (
    rf'(?:"dtype"{_W}:{_W}"(?P<dtype>\w{{1,16}})"'
    rf'|"shape"{_W}:{_W}\[{_W}(?P<shape>{_INTEGERS}){_W}\]'
    rf'|"data_offsets"{_W}:{_W}\[{_W}(?P<begin>{_INTEGER}){_W},{_W}(?P<end>{_INTEGER}){_W}\])'
)
_GO_ON = rf"(?:,{_W}(?!\}})|(?=\}}))"  # a comma between two, none before the end
_NAME = re.compile(rf"(?P<name>{_TEXT}){_W}:{_W}\{{{_W}")
_ENTRY = re.compile(rf"(?:{_FIELD}{_W}{_GO_ON}){{3}}\}}{_W}{_GO_ON}", re.ASCII)
_METADATA = re.compile(rf"(?P<name>{_TEXT}){_W}:{_W}(?P<value>{_TEXT}){_W}{_GO_ON}")
_CLOSE = re.compile(rf"\}}{_W}{_GO_ON}")
_OPEN, _DONE = re.compile(rf"\{{{_W}"), re.compile(rf"\}}{_W}\Z")


class Span(NamedTuple):
    """One tensor of a file: what it is, and where its bytes are, counted from the header's end."""

    info: TensorInfo
    begin: int
    end: int


def read_header(header: bytes | bytearray, data_bytes: int, limits: Limits) -> dict[str, Span]:
    """The tensors of a file in the order of their bytes, every one checked.

    Args:
        header: the header's bytes, without its length.
        data_bytes: how many bytes follow the header in the file.
        limits: what is accepted.

    Raises:
        AdapterError: if it is no header, beyond a limit, or does not account for every byte exactly once.

    Example:
        >>> text = b'{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}'
        >>> read_header(text, 24, Limits())["a"].info.shape
        (2, 3)
    """
    try:
        text = header.decode()
    except UnicodeDecodeError as error:
        raise AdapterError(
            f"is not valid: {error}; expected a safetensors header in UTF-8; save it again"
        ) from error
    spans = dict(sorted(_entries(text, limits).items(), key=lambda entry: entry[1][1:]))
    expected = 0
    for name, (info, begin, end) in spans.items():
        size = math.prod(info.shape) * info.dtype.itemsize
        if begin != expected or end - begin != size:
            raise AdapterError(
                f"tensor {short(name)} is {info.dtype} {info.shape} at bytes {begin:,} to {end:,}; expected {expected:,} to "
                f"{expected + size:,}, since safetensors leaves no gap and no overlap; save it again"
            )
        expected = end
    if expected != data_bytes:
        raise AdapterError(
            f"is not valid: its tensors are {expected:,} bytes, and {data_bytes:,} follow the header; expected a whole safetensors file; save it again"
        )
    return spans


def _entries(text: str, limits: Limits) -> dict[str, Span]:
    found: dict[str, Span] = {}
    has_metadata = False
    position = _match(_OPEN, text, 0).end()
    while text[position : position + 1] != "}":
        start = _match(_NAME, text, position)
        name = _text(start, "name", 6 * limits.name_length + 2)  # as many escapes
        if name == "__metadata__" and not has_metadata:
            has_metadata, position = True, _after_metadata(text, start.end(), limits)
            continue
        if name in found or name == "__metadata__":
            raise AdapterError(f"tensor {short(name)} comes twice; expected it once; save it again")
        if len(found) == limits.tensors:
            raise AdapterError(
                f"holds {limits.tensors + 1:,} tensors or more; expected at most {limits.tensors:,}"
            )
        entry = _match(_ENTRY, text, start.end())
        found[name], position = _span(name, entry, limits), entry.end()
    _match(_DONE, text, position)
    return found


def _span(name: str, entry: re.Match[str], limits: Limits) -> Span:
    dtype, shape, begin, end = entry.group("dtype", "shape", "begin", "end")
    if None in (dtype, shape, begin):
        fault = "has a field twice; expected dtype, shape and data_offsets"
    elif len(name) > limits.name_length:
        fault = f"is unexpected: its name has {len(name):,} characters; expected at most {limits.name_length:,}"
    elif dtype not in DTYPES:
        fault = f"is {dtype}; expected one of {', '.join(DTYPES)}; cast it before saving"
    else:
        sizes = tuple(map(int, shape.split(","))) if shape else ()
        # an empty tensor may claim any size in its other dimensions, and PyTorch multiplies them
        is_small = math.prod(filter(None, sizes)) <= MAX_ELEMENTS
        if is_small and max(sizes, default=0) <= limits.dimension:
            return Span(TensorInfo(DTYPES[dtype], sizes), int(begin), int(end))
        fault = f"is {sizes}; expected no dimension above {limits.dimension:,}"
    raise AdapterError(f"tensor {short(name)} {fault}; save it again")


def _after_metadata(text: str, position: int, limits: Limits) -> int:
    """Where the metadata end: it is of no use here, but the library refuses what is no string to string."""
    for _ in range(limits.tensors):
        if text[position : position + 1] == "}":
            return _match(_CLOSE, text, position).end()
        entry = _match(_METADATA, text, position)
        for group in ("name", "value"):
            _text(entry, group, _METADATA_LENGTH)
        position = entry.end()
    raise AdapterError(f"holds {limits.tensors:,} metadata or more; expected fewer; save it again")


def _text(match: re.Match[str], group: str, most: int) -> str:
    """The text of a JSON string; half of a surrogate pair is none."""
    begin, end = match.span(group)
    if end - begin > most:  # before it is copied
        raise AdapterError(
            f"is unexpected: a name or text of its header has {end - begin:,} characters; expected at most {most:,}; save it again"
        )
    literal = match[group]
    if "\\" not in literal:
        return literal[1:-1]
    value = str(json.loads(literal))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise AdapterError(
            f"is not valid: {error}; expected a safetensors header; save it again"
        ) from error
    return value


def _match(pattern: re.Pattern[str], text: str, position: int) -> re.Match[str]:
    match = pattern.match(text, position)
    if match is None:
        raise AdapterError(
            f"is not valid: its header goes on with {short(text[position : position + 60])} at character {position:,}; expected a "
            "safetensors header, where each tensor has dtype, shape and data_offsets; save it again"
        )
    return match


def write_header(infos: Mapping[str, TensorInfo]) -> bytes:
    """The header of tensors that lie one after another in this order, without its length.

    Raises:
        AdapterError: if a tensor is of a dtype, or has a name, that a file cannot hold.

    Example:
        >>> write_header({"a": TensorInfo(torch.float32, (1,))})
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in infos.items():
        if dtype not in names or name == "__metadata__":
            raise AdapterError(
                f"tensor {short(name)} is {dtype}; expected another name than __metadata__, and one of {', '.join(names.values())}"
            )
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": (begin, end)}
    try:
        return json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise AdapterError(f"a tensor's name is no text: {error}; expected Unicode") from error
