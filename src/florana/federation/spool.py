"""The clients' adapters of one round on disk, so that a server's memory does not grow with the number of clients."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, TypeVar

import torch
from torch import Tensor

from florana.adapter import OF_A_PAIR, Adapter, LoraPair
from florana.errors import FederationError

T = TypeVar("T")


class Spool:
    """A file without a name, which is gone with the last adapter that lies in it, ``kill -9`` included.

    Args:
        folder: a folder on the disk that shall hold it.

    Raises:
        FederationError: if no file can be made there.

    Example:
        >>> pair = LoraPair(torch.ones(2, 3), torch.ones(4, 2), alpha=2)
        >>> kept = Spool(Path(tempfile.gettempdir())).keep(Adapter({"layer": pair}))
        >>> torch.equal(kept.pairs["layer"].A, pair.A)
        True
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error

    def keep(self, adapter: Adapter) -> Adapter:
        """An equal adapter whose numbers lie in the file, and are read anew every time that a pair is asked for.

        Args:
            adapter: on the CPU; every tensor is written as it is, to the bit.

        Raises:
            FederationError: if it cannot be written, as on a full disk.
        """
        pairs = {name: self._keep_pair(pair) for name, pair in adapter.pairs.items()}
        extras = {name: self._keep_tensor(tensor) for name, tensor in adapter.extras.items()}
        return replace(
            adapter,
            pairs=MappingProxyType(_Kept(pairs, self._read_pair)),
            extras=MappingProxyType(_Kept(extras, self._read_tensor)),
        )

    def _keep_pair(self, pair: LoraPair) -> _Pair:
        tensors: dict[str, Tensor | None] = {part: getattr(pair, part) for part in OF_A_PAIR}
        there = {part: tensor for part, tensor in tensors.items() if tensor is not None}
        frame = {part: tensor.new_zeros(()).expand(tensor.shape) for part, tensor in there.items()}
        places = {part: self._keep_tensor(tensor) for part, tensor in there.items()}
        return _Pair(_with(pair, frame), places)

    def _keep_tensor(self, tensor: Tensor) -> _Place:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        try:
            offset = self._file.seek(0, 2)
            self._file.write(raw.data)
        except OSError as error:
            raise self._failed(error) from error
        return _Place(offset, raw.nbytes, tensor.dtype, tensor.shape)

    def _read_pair(self, kept: _Pair) -> LoraPair:
        return _with(kept.frame, {part: self._read_tensor(p) for part, p in kept.places.items()})

    def _read_tensor(self, place: _Place) -> Tensor:
        if place.size == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        read = bytearray(place.size)
        self._file.seek(place.offset)
        self._file.readinto(read)  # type: ignore[attr-defined]
        return torch.frombuffer(read, dtype=place.dtype).reshape(place.shape)

    def _failed(self, error: OSError) -> FederationError:
        return FederationError(
            f"cannot write to {self._folder}: {error.strerror or error}; free some space or mend the permissions, then "
            f"go on with: florana run --resume {self._folder}"
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in the file, and what it is."""

    offset: int
    size: int
    dtype: torch.dtype
    shape: torch.Size


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A pair without memory of its own, and where its tensors lie."""

    frame: LoraPair
    places: Mapping[str, _Place]


class _Kept(Mapping[str, T]):
    """Name -> what is read when it is asked for."""

    def __init__(self, places: Mapping[str, object], read: Callable[..., T]) -> None:
        self._places, self._read = places, read

    def __getitem__(self, name: str) -> T:
        return self._read(self._places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _with(pair: LoraPair, tensors: Mapping[str, Tensor]) -> LoraPair:
    return replace(
        pair,
        A=tensors["A"],
        B=tensors["B"],
        basis=tensors.get("basis"),
        magnitude=tensors.get("magnitude"),
    )
