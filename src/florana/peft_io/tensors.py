"""Safetensors files, one tensor at a time: read by ``pread`` into fresh memory, written as they come.

Everything about a file is known from its header before a tensor's memory is taken, and a read takes that of the one
tensor. So a thousand open adapters cost a thousand headers. Why not a memory map: :func:`plain_files.read_at`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Self

import torch
from torch import Tensor

from florana.errors import AdapterError
from florana.peft_io.header import Span, read_header, write_header
from florana.peft_io.limits import Limits
from florana.peft_io.plain_files import open_plain, read_at
from florana.peft_io.settings import short
from florana.peft_io.values import TensorInfo

# descriptors that are left to others: sockets, libraries, the files that are written
_SPARE_DESCRIPTORS = 256
_COPY_BYTES = 2**22


@dataclass(slots=True, eq=False)
class TensorFile:
    """An open safetensors file, whose header has been checked.

    Its descriptor stays open, so that reading costs one system call for the bytes; where a process has so many open
    that its limit is near, the file is closed and opened again for each tensor. Either way each read makes sure that
    the file is the one that was checked, by device, inode, size and time of change.

    Attributes:
        path: where it is.
        infos: name -> dtype and shape, in the order of their bytes.
        size: bytes of the file.
    """

    path: Path
    infos: Mapping[str, TensorInfo]
    size: int
    _spans: Mapping[str, Span]
    _start: int
    _identity: tuple[int, ...]
    _stream: BinaryIO | None

    def read(self, name: str) -> Tensor:
        """A tensor in fresh memory, bit for bit the file's.

        Raises:
            AdapterError: if there is none of this name, or the file is not what it was when it was opened.
        """
        if name not in self._spans:
            raise AdapterError(
                f"has no tensor {short(name)}; expected one of {short(list(self._spans))}"
            )
        info, begin, end = self._spans[name]
        raw = torch.empty(end - begin, dtype=torch.uint8)
        with self._descriptor() as descriptor:
            read_at(descriptor, raw.numpy().data, self._start + begin)
        return raw.view(info.dtype).view(info.shape)

    def close(self) -> None:
        """Give the descriptor back; nothing can be read any more."""
        if self._stream is not None:
            self._stream.close()
        self._identity = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        if not self._identity:
            raise AdapterError("was closed; expected to be read before; open it again")
        if self._stream is not None:
            descriptor = self._stream.fileno()
            self._check(os.fstat(descriptor))
            yield descriptor
            return
        stream, status = open_plain(self.path, self.size)
        with stream:
            self._check(status)
            yield stream.fileno()

    def _check(self, status: os.stat_result) -> None:
        if _identity(status) != self._identity:
            raise AdapterError(
                "changed while it was in use; expected a file that nobody writes to; run this again"
            )


def open_tensors(path: str | os.PathLike[str], limits: Limits = Limits()) -> TensorFile:  # noqa: B008, it is frozen
    """Open a safetensors file and check its header; no tensor is read, and no memory taken for one.

    Args:
        path: a plain file, no link to one.
        limits: what is accepted.

    Raises:
        AdapterError: if it is of another kind, beyond a limit or not valid in any respect.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with TensorWriter(Path(folder) / "x.safetensors") as writer:
        ...         writer.add("a", torch.ones(2))
        ...         writer.finish()
        ...     with open_tensors(f"{folder}/x.safetensors") as file:
        ...         file.infos["a"].shape, file.read("a").tolist()
        ((2,), [1.0, 1.0])
    """
    file = Path(path)
    stream, status = open_plain(file, limits.file_bytes)
    try:
        length_bytes = bytearray(min(8, status.st_size))
        read_at(stream.fileno(), memoryview(length_bytes), 0)
        length = int.from_bytes(length_bytes, "little")
        left = status.st_size - 8
        if left < 0 or length > min(limits.header_bytes, left):
            raise AdapterError(
                f"its header claims {length:,} bytes; expected at most {max(0, min(limits.header_bytes, left)):,} in a file of "
                f"{status.st_size:,}; it is cut short or no safetensors file: save it again"
            )
        header = bytearray(length)
        read_at(stream.fileno(), memoryview(header), 8)
        spans = read_header(header, left - length, limits)
    except BaseException:
        stream.close()
        raise
    infos = MappingProxyType({name: span.info for name, span in spans.items()})
    keep = stream.fileno() < resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS
    if not keep:
        stream.close()
    return TensorFile(
        file, infos, status.st_size, spans, 8 + length, _identity(status), stream if keep else None
    )


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(slots=True, eq=False)
class TensorWriter:
    """Writes a safetensors file while its tensors are still being computed, holding one of them.

    The header is written last, into room left at the front and filled up with blanks, which the format allows. Only
    where the room does not suffice, or a tensor of larger elements follows one of smaller ones and would lie across
    memory words, is the file copied once, in order. It is for the caller to write to a folder that nobody else uses.

    Args:
        path: the file, which must not be there yet.
        expected_header_bytes: room for the header; about 120 bytes a tensor and twice its name.
    """

    path: Path
    expected_header_bytes: int = 2**16
    infos: dict[str, TensorInfo] = field(default_factory=dict, init=False)
    _stream: BinaryIO = field(init=False)

    def __post_init__(self) -> None:
        self.expected_header_bytes += -self.expected_header_bytes % 8
        self._stream = self.path.open("xb", buffering=0)
        self._stream.seek(8 + self.expected_header_bytes)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor to the disk.

        Raises:
            AdapterError: if one of this name was written.
            OSError: if the disk is full or read-only.
        """
        if name in self.infos:
            raise AdapterError(f"tensor {short(name)} comes twice; expected it once")
        _write_all(self._stream, _bytes_of(tensor))
        self.infos[name] = TensorInfo(tensor.dtype, tuple(tensor.shape))

    def finish(self) -> None:
        """Write the header, and let the file reach the disk."""
        header = write_header(self.infos)
        sizes = [info.dtype.itemsize for info in self.infos.values()]
        if len(header) > self.expected_header_bytes or sizes != sorted(sizes, reverse=True):
            self._copy_in_order()
            header = write_header(self.infos)
        self._stream.seek(0)
        room = self.expected_header_bytes
        _write_all(self._stream, memoryview(room.to_bytes(8, "little") + header.ljust(room)))
        os.fsync(self._stream.fileno())
        self._stream.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copy_in_order(self) -> None:
        """Make a file with enough room and the tensors by falling size of their elements; put it in place."""
        begins, end = {}, 8 + self.expected_header_bytes
        for name, (dtype, shape) in self.infos.items():
            size = dtype.itemsize * torch.Size(shape).numel()
            begins[name], end = (end, end + size), end + size
        self.infos = dict(sorted(self.infos.items(), key=lambda i: -i[1].dtype.itemsize))
        length = len(write_header(self.infos))
        self.expected_header_bytes = length + -length % 8
        other = self.path.with_name(self.path.name + ".ordered")
        stream = other.open("xb", buffering=0)
        stream.seek(8 + self.expected_header_bytes)
        with self.path.open("rb", buffering=0) as source, self._stream:
            buffer = memoryview(bytearray(_COPY_BYTES))
            for name in self.infos:
                begin, end = begins[name]
                for at in range(begin, end, _COPY_BYTES):
                    part = buffer[: min(_COPY_BYTES, end - at)]
                    read_at(source.fileno(), part, at)
                    _write_all(stream, part)
        self._stream = stream
        other.replace(self.path)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _write_all(stream: BinaryIO, content: memoryview) -> None:
    while content:
        content = content[stream.write(content) :]
