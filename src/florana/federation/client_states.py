"""What the clients of this process remember, on disk: memory holds one of them at a time, however many there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from florana.atomic import write_atomically
from florana.errors import FederationError
from florana.federation.views import arrays_in, configs_in


class ClientStates(MutableMapping[int, RecordDict]):
    """Partition -> what that client remembers, as Flower's ``context.state`` has it.

    Every array is a file that is named after its contents: clients that hold the same global model share one, nothing is
    written twice, and none is ever changed, so that a checkpoint needs to name them only.

    Args:
        folder: holds the files; it is made when the first one is.
        said: what :attr:`said` was when the run was interrupted.

    Raises:
        FederationError: where a file is missing or damaged, or cannot be written, with what to do.

    Example:
        >>> states = ClientStates(Path("nowhere"))
        >>> states[3] = RecordDict({"held-round": ConfigRecord({"round": 2})})
        >>> states[3]["held-round"]["round"], list(states)
        (2, [3])
    """

    def __init__(self, folder: Path, said: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self._said: dict[int, dict[str, Any]] = {int(p): s for p, s in (said or {}).items()}
        self._latest: dict[int, tuple[bytes, str]] = {}  # length -> an array of it, and its name

    @property
    def said(self) -> dict[str, Any]:
        """All states but their numbers, ready for JSON."""
        return {str(partition): said for partition, said in self._said.items()}

    def __getitem__(self, partition: int) -> RecordDict:
        said, state = self._said[partition], RecordDict()
        for record, arrays in said["arrays"].items():
            state[record] = ArrayRecord(
                {
                    name: Array(dtype, tuple(shape), stype, self._read(digest))
                    for name, (digest, dtype, shape, stype) in arrays.items()
                }
            )
        for record, entries in said["configs"].items():
            state[record] = ConfigRecord(entries)
        return state

    def __setitem__(self, partition: int, state: RecordDict) -> None:
        arrays = {
            record: {
                name: [self._write(array.data), array.dtype, list(array.shape), array.stype]
                for name, array in content.items()
            }
            for record, content in arrays_in(state).items()
        }
        configs = {record: dict(content) for record, content in configs_in(state).items()}
        self._said[partition] = {"arrays": arrays, "configs": configs}

    def __delitem__(self, partition: int) -> None:
        del self._said[partition]

    def __iter__(self) -> Iterator[int]:
        return iter(self._said)

    def __len__(self) -> int:
        return len(self._said)

    @property
    def names(self) -> set[str]:
        """Names of the files that hold what is remembered."""
        return {
            array[0]
            for said in self._said.values()
            for arrays in said["arrays"].values()
            for array in arrays.values()
        }

    @property
    def missing(self) -> list[str]:
        """Those that are not there."""
        return sorted(name for name in self.names if not (self._folder / name).is_file())

    def drop_unused(self) -> None:
        """Delete what no client remembers any more; once a checkpoint names the others, and not before."""
        used = self.names
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name not in used:
                path.unlink()
        self._latest = {n: kept for n, kept in self._latest.items() if kept[1] in used}

    def _write(self, data: bytes) -> str:
        """Keep an array, and say its name."""
        known = self._latest.get(len(data))
        if known is not None and known[0] == data:  # many times faster than its hash
            return known[1]
        digest = hashlib.sha256(data).hexdigest()
        if not (self._folder / digest).exists():
            try:
                self._folder.mkdir(exist_ok=True)
                write_atomically(self._folder / digest, data)
            except OSError as error:
                raise FederationError(
                    f"cannot write to {self._folder}: {error.strerror or error}; free some space or mend the permissions, "
                    f"then go on with: florana run --resume {self._folder.parent}"
                ) from error
        self._latest[len(data)] = data, digest
        return digest

    def _read(self, digest: str) -> bytes:
        """An array; the one that was read or written last is shared, as clients of one round share a model."""
        for data, name in self._latest.values():
            if name == digest:
                return data
        path = self._folder / digest
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != digest:
            raise FederationError(
                f"{path}, which a client remembers, is {'damaged' if data else 'missing'}; start the run anew"
            )
        self._latest[len(data)] = data, digest
        return data
