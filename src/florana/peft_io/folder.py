"""PEFT adapter folders: read with suspicion, written whole or not at all.

Sizes and counts are known before anything is allocated; links, pipes and pickles are refused. What the
settings and tensors mean is the business of :mod:`florana.peft_io.state_dict`.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mode
from typing import Any, BinaryIO

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from florana.adapter import Adapter
from florana.errors import AdapterError, RunError
from florana.peft_io.settings import read_settings, short
from florana.peft_io.state_dict import (
    about,
    adapter_from_state_dict,
    adapter_to_config,
    adapter_to_state_dict,
    build_adapter,
)

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG_BYTES, MAX_HEADER_BYTES, MAX_WEIGHTS_BYTES = 2**20, 2**24, 2**33
MAX_TENSORS = 100_000


def load_adapter(path: str | os.PathLike[str]) -> Adapter:
    """Read an adapter folder that PEFT's ``save_pretrained`` or :func:`save_adapter` wrote.

    Args:
        path: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns:
        The adapter as :func:`adapter_from_state_dict` has it, its tensors bit for bit the file's.

    Raises:
        AdapterError: if a file, a setting or a tensor cannot be used or is not supported. The
            message names the file and the key, what came, what was expected and what to do.

    Example:
        >>> import tempfile, torch
        >>> from florana.adapter import LoraPair
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_adapter(Adapter({"layer": pair}), f"{folder}/adapter")
        ...     load_adapter(f"{folder}/adapter").pairs["layer"].delta_w()[0].tolist()
        [4.0, 4.0, 4.0, 4.0]
    """
    folder, is_folder = Path(path).resolve(), False
    with suppress(OSError):
        _restore(folder)
        is_folder = folder.is_dir()
    if not is_folder:
        raise AdapterError(f"{folder} is not a folder; expected one with {CONFIG} and {WEIGHTS}")
    with about(folder / CONFIG), _opened(folder / CONFIG, MAX_CONFIG_BYTES) as (stream, size):
        settings = read_settings(_parse(stream.read(size)))
    with about(folder / WEIGHTS):
        return build_adapter(_read_tensors(folder / WEIGHTS), settings, base_hash="")


def save_adapter(
    adapter: Adapter, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write an adapter as a folder that ``PeftModel.from_pretrained`` loads.

    The folder is written aside, flushed to disk and then renamed: a crash leaves the old adapter or
    the new one. Killed in the instant between the two renames of an overwrite, it leaves the old one
    under a hidden name, and the next load or save of this path puts it back.

    Args:
        adapter: what to write; see :func:`adapter_to_config` for its settings.
        path: the folder to make, with its parents.
        overwrite: replace the adapter folder that is there, with PEFT's README.md in it.

    Returns:
        The absolute path of the folder.

    Raises:
        AdapterError: if :func:`load_adapter` would refuse the result.
        RunError: if there is a folder that may not be replaced, or the disk is full or read-only.

    Example:
        >>> import tempfile, torch
        >>> from florana.adapter import LoraPair
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = save_adapter(Adapter({"layer": pair}), f"{folder}/adapter")
        ...     sorted(file.name for file in made.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    folder = Path(path).resolve()
    state, config = adapter_to_state_dict(adapter), adapter_to_config(adapter)
    adapter_from_state_dict(state, config)
    files = {
        CONFIG: json.dumps(config, indent=2, sort_keys=True).encode(),
        WEIGHTS: safetensors.torch.save(state, metadata={"format": "pt"}),
    }
    try:
        _restore(folder)
        _check_replaceable(folder, overwrite)
        _write_folder(folder, files)
    except OSError as error:
        raise RunError(
            f"cannot write adapter folder {folder}: {error.strerror or error}; what was there before is unchanged; make room or mend the permissions, then save again"
        ) from error
    return folder


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.exists() and file.with_name(PICKLE).exists():
        raise AdapterError(
            f"is missing; expected it rather than {PICKLE}, since a pickle can run any code; save again with safe_serialization=True"
        )
    with _opened(file, MAX_WEIGHTS_BYTES) as (stream, size):
        length = int.from_bytes(stream.read(8), "little")
        limit = min(MAX_HEADER_BYTES, max(0, size - 8))
        if length > limit:
            raise AdapterError(
                f"its header claims {length:,} bytes; expected at most {limit:,} in a file of {size:,}; it is cut short or no safetensors file: save it again"
            )
        count = len(_parse(stream.read(length)).keys() - {"__metadata__"})
        if count > MAX_TENSORS:
            raise AdapterError(f"holds {count:,} tensors; expected at most {MAX_TENSORS:,}")
        stream.seek(0)
        content = stream.read(size)
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that PyTorch does not have
        raise AdapterError(
            f"is not valid: {short(str(error))}; expected a safetensors file; save it again"
        ) from error


def _parse(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"is not valid: {error}; expected JSON; save it again") from error
    if not isinstance(value, dict):
        raise AdapterError(f"holds {short(value)}; expected a JSON object; save it again")
    return value


def _without_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(items)) < len(items):
        name = mode(name for name, _ in items)
        raise AdapterError(f"{short(name)} comes twice; expected it once; save it again")
    return dict(items)


@contextmanager
def _opened(file: Path, limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """A plain file and its size: no link to one, and no pipe, which would block."""
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
                raise AdapterError(
                    f"is no plain file or too large ({status.st_size:,} bytes); expected a plain file of at most {limit:,} bytes"
                )
            yield stream, status.st_size
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        came = "is a symbolic link" if is_link else f"cannot be read ({error.strerror})"
        raise AdapterError(f"{came}; expected a plain file; save the adapter again") from error


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        fault = "exists; pass overwrite=True to replace it"
    elif not (folder / CONFIG).is_file():
        fault = f"has no {CONFIG}, so it is not replaced; move it away"
    elif others := {file.name for file in folder.iterdir()} - {CONFIG, WEIGHTS, "README.md"}:
        fault = f"also holds {min(others)!r}, so it is not replaced; move that away"
    else:
        return
    raise RunError(f"{folder} {fault}, or choose another folder")


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _restore(folder: Path) -> None:
    """Put back the old folder that an interrupted overwrite left aside."""
    if not folder.exists() and _aside(folder).exists():
        _aside(folder).rename(folder)


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}"), _aside(folder)
    try:
        fresh.mkdir()
        for name, content in files.items():
            with (fresh / name).open("xb") as stream:
                stream.write(content)
            _flush(fresh / name)
        _flush(fresh)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        fresh.rename(folder)
        if aside.exists():
            aside.rename(fresh)
        _flush(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        _restore(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
