"""The weights of an adapter folder, whether they lie in one safetensors file or in several with an index."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor

from florana.errors import AdapterError
from florana.peft_io.limits import Limits
from florana.peft_io.names import about
from florana.peft_io.plain_files import read_json
from florana.peft_io.settings import short
from florana.peft_io.tensors import TensorFile, open_tensors
from florana.peft_io.values import TensorInfo

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
# the second is what transformers' save_pretrained calls the index of an adapter's shards
INDEXES = ("adapter_model.safetensors.index.json", "model.safetensors.index.json")
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.safetensors")


class TensorSource(Protocol):
    """Tensors by name, from one file or several."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Name -> dtype and shape."""

    def read(self, name: str) -> Tensor:
        """One tensor, in fresh memory."""

    def close(self) -> None:
        """Close all files."""


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """The open files of a sharded adapter: each tensor in exactly one of them, as the index says."""

    files: Mapping[str, TensorFile]
    infos: Mapping[str, TensorInfo]

    def read(self, name: str) -> Tensor:
        """A tensor in fresh memory; see :meth:`TensorFile.read`."""
        if name not in self.files:
            raise AdapterError(f"has no tensor {short(name)}; expected one that the index has")
        with about(self.files[name].path.name):
            return self.files[name].read(name)

    def close(self) -> None:
        """Close all files."""
        for file in {id(file): file for file in self.files.values()}.values():
            file.close()


def weights_name(folder: Path) -> str:
    """Name of the weights in a folder: the one file, or the index of several.

    Raises:
        AdapterError: if there are both, two indexes, or a pickle only.
    """
    found = [name for name in (WEIGHTS, *INDEXES) if os.path.lexists(folder / name)]
    # a folder may hold a whole model beside its adapter, whose index is none of ours
    if found[:1] == [WEIGHTS] and INDEXES[0] not in found:
        return WEIGHTS
    if len(found) > 1:
        raise AdapterError(
            f"{folder}: holds {' and '.join(found)}; expected one of them; take the outdated one away"
        )
    if not found and os.path.lexists(folder / PICKLE):
        raise AdapterError(
            f"{folder / WEIGHTS}: is missing; expected it rather than {PICKLE}, since a pickle can run any code; save again with safe_serialization=True"
        )
    return found[0] if found else WEIGHTS


def open_weights(folder: Path, name: str, limits: Limits) -> TensorSource:
    """Open the weights of a folder, as :func:`weights_name` found them, and check every header.

    Raises:
        AdapterError: if a file cannot be used, or index and shards do not agree.
    """
    if name == WEIGHTS:
        return open_tensors(folder / WEIGHTS, limits)
    home = _weight_map(read_json(folder / name, limits, limits.config_bytes), limits)
    files: dict[str, TensorFile] = {}
    with ExitStack() as opened:
        for shard in sorted({*home.values()}):
            with about(shard):
                file = opened.enter_context(open_tensors(folder / shard, limits))
                others = [key for key in file.infos if home.get(key) != shard]
                if others:
                    raise AdapterError(
                        f"holds tensor {short(others[0])}, and the index has it in {short(home.get(others[0], 'no file'))}; expected them to agree; save it again"
                    )
                limits = _less(limits, file)
            files |= dict.fromkeys(file.infos, file)
        if missing := home.keys() - files.keys():
            key = min(missing)
            raise AdapterError(f"has tensor {short(key)} in {home[key]}, which does not hold it")
        opened.pop_all()
    infos = {key: file.infos[key] for key, file in files.items()}
    return Shards(MappingProxyType(files), MappingProxyType(infos))


def _weight_map(index: Mapping[str, Any], limits: Limits) -> dict[str, str]:
    """Tensor -> file, of which none leaves the folder."""
    home = index.get("weight_map")
    if not isinstance(home, dict) or not home:
        raise AdapterError(f"has weight_map {short(home)}; expected tensors, each with its file")
    for key, shard in home.items():
        if not (isinstance(shard, str) and _SHARD.fullmatch(shard)):
            raise AdapterError(
                f"has tensor {short(key)} in {short(shard)}; expected a plain name that ends in .safetensors, of a file in this folder"
            )
    if len({*home.values()}) > limits.shards or len(home) > limits.tensors:
        raise AdapterError(
            f"has {len(home):,} tensors in {len({*home.values()}):,} files; expected at most {limits.tensors:,} in {limits.shards:,}"
        )
    return home


def _less(limits: Limits, file: TensorFile) -> Limits:
    """What is left for the next shards; one byte and one tensor at least, which its own header refuses."""
    return replace(
        limits,
        file_bytes=max(1, limits.file_bytes - file.size),
        tensors=max(1, limits.tensors - len(file.infos)),
    )
