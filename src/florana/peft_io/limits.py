"""How large a file from outside may be, and what is in it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from florana.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """What a reader accepts before it takes memory for it.

    All of these are checked on sizes that the file system or a file's header tells, so that a refusal costs no more
    than the header. Opening a folder takes at most 40 times ``config_bytes`` (small JSON values are large in Python), then
    6 times ``header_bytes`` and 700 bytes for each of ``tensors``; reading takes the tensors that are asked for.

    Args:
        config_bytes: bytes of ``adapter_config.json``, and of the index of a sharded adapter.
        header_bytes: bytes of the header of a safetensors file.
        file_bytes: bytes of the safetensors file, or of all its shards together.
        shards: files that a sharded adapter is made of.
        tensors: tensors in a safetensors file, or in all shards together.
        name_length: characters of a tensor's name, with the wrappers that are taken off.
        depth: objects and lists within one another in JSON.
        dimension: the largest number in a tensor's shape.
        rank: the largest rank of a pair.

    Raises:
        ConfigError: if a limit is no whole number of 1 or more.

    Example:
        >>> Limits(file_bytes=2**34).tensors
        100000
    """

    config_bytes: int = 2**20
    header_bytes: int = 2**24
    file_bytes: int = 2**33
    shards: int = 1_000
    tensors: int = 100_000
    name_length: int = 1024
    depth: int = 32
    dimension: int = 2**24
    rank: int = 2**16

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"limit {name} is {value!r}; expected a whole number of 1 or more"
                )
