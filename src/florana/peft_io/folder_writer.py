"""Adapter folders written whole or not at all, a tensor at a time."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from torch import Tensor

from florana.errors import AdapterError, RunError
from florana.peft_io.form import read_form
from florana.peft_io.names import about
from florana.peft_io.settings import read_settings, short
from florana.peft_io.tensors import TensorWriter
from florana.peft_io.values import check_finite, check_info, info_of

CONFIG, WEIGHTS, README = "adapter_config.json", "adapter_model.safetensors", "README.md"
_OURS = {CONFIG, WEIGHTS, README}


class FolderWriter:
    """Writes an adapter folder whose tensors come one after another.

    The folder is written aside, under a name that nobody can guess, flushed to disk and then renamed: a crash leaves the
    old adapter or the new one. Killed in the instant between the two renames of an overwrite, it leaves the old one under
    a hidden name, where :func:`open_adapter` finds it, and the next writer puts it back. Nothing else is written to.

    Args:
        path: the folder to make, with its parents.
        overwrite: replace the adapter folder that is there, with the README.md in it.
        expected_header_bytes: room for the weights' header; see :class:`TensorWriter`.

    Raises:
        AdapterError: if :func:`open_adapter` would refuse the result.
        RunError: if there is a folder that may not be replaced, or the disk is full or read-only.

    Example:
        >>> import tempfile, torch
        >>> from florana.peft_io.folder import open_adapter
        >>> config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with FolderWriter(f"{folder}/adapter") as writer:
        ...         writer.add("base_model.model.q.lora_A.weight", torch.ones(2, 4))
        ...         writer.add("base_model.model.q.lora_B.weight", torch.ones(3, 2))
        ...         made = writer.finish(config, readme="# An adapter")
        ...     with open_adapter(made) as adapter:
        ...         adapter.pairs("q")["q"].scaling
        2.0
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        expected_header_bytes: int = 2**16,
    ) -> None:
        self._folder = Path(path)
        with self._system_errors():
            self._folder = self._folder.resolve()
        self._overwrite = overwrite
        self._fresh = self._folder.with_name(f".{self._folder.name}.{secrets.token_hex(8)}")
        self._expected_header_bytes = expected_header_bytes

    def __enter__(self) -> Self:
        with self._system_errors():
            _restore(self._folder)
            _check_replaceable(self._folder, self._overwrite)
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._fresh.mkdir()
            try:
                self._weights = TensorWriter(self._fresh / WEIGHTS, self._expected_header_bytes)
            except BaseException:
                shutil.rmtree(self._fresh, ignore_errors=True)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._weights.close()
        shutil.rmtree(self._fresh, ignore_errors=True)
        with suppress(OSError):  # the one on its way out says more
            _restore(self._folder)

    def add(self, key: str, tensor: Tensor) -> None:
        """Write one tensor under PEFT's key.

        Raises:
            AdapterError: if it holds NaN or infinity, is empty or not floating, or the key came before.
            RunError: if the disk is full.
        """
        with about(self._folder):
            check_info(key, info_of(tensor))
            check_finite(key, tensor)
        with self._system_errors():
            self._weights.add(key, tensor)

    def finish(self, config: Mapping[str, object], readme: str | None = None) -> Path:
        """Write settings and model card, and put the folder in place.

        Args:
            config: PEFT's settings for the tensors that were added.
            readme: the model card; what is no Unicode in it, such as an odd file name, is escaped.

        Returns:
            The absolute path of the folder.
        """
        with about(self._folder):
            read_form(self._weights.infos, read_settings(config))
        with self._system_errors():
            self._weights.finish()
            text = json.dumps(config, indent=2, sort_keys=True)
            _write(self._fresh / CONFIG, text.encode())
            if readme is not None:
                _write(self._fresh / README, readme.encode(errors="backslashreplace"))
            _flush(self._fresh)
            _put_in_place(self._fresh, self._folder)
        return self._folder

    @contextmanager
    def _system_errors(self) -> Iterator[None]:
        try:
            yield
        except (
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # a path with a zero byte, links in a circle
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise RunError(
                f"cannot write adapter folder {self._folder}: {reason}; what was there before is unchanged; make room or mend the permissions, then save again"
            ) from error


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """The folder to read for a path: itself, or what an interrupted overwrite left aside. Nothing is renamed.

    Raises:
        AdapterError: if there is none.
    """
    folder = Path(path)
    with suppress(OSError, RuntimeError, ValueError):  # links in a circle, a zero byte
        folder = folder.resolve()
        if folder.is_dir():
            return folder
        if _is_ours(_aside(folder)):
            return _aside(folder)
    raise AdapterError(
        f"{short(str(folder))[1:-1]} is not a folder; expected one with {CONFIG} and {WEIGHTS}"
    )


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not overwrite:
        fault = "exists; pass overwrite=True to replace it"
    elif not (folder / CONFIG).is_file():
        fault = f"has no {CONFIG}, so it is not replaced; move it away"
    elif others := {file.name for file in folder.iterdir()} - _OURS:
        fault = f"also holds {min(others)!r}, so it is not replaced; move that away"
    else:
        return
    raise RunError(f"{folder} {fault}, or choose another folder")


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _is_ours(aside: Path) -> bool:
    """Whether this is an adapter that an overwrite left, and no other folder that happens to have its name."""
    return (
        not aside.is_symlink()
        and (aside / CONFIG).is_file()
        and {file.name for file in aside.iterdir()} <= _OURS
    )


def _restore(folder: Path) -> None:
    """Put back the old folder that an interrupted overwrite left aside."""
    if not os.path.lexists(folder) and _is_ours(_aside(folder)):
        _aside(folder).rename(folder)


def _put_in_place(fresh: Path, folder: Path) -> None:
    aside = _aside(folder)
    if not folder.exists():
        fresh.rename(folder)
    elif os.path.lexists(aside) and not _is_ours(aside):
        raise RunError(f"{aside} is in the way of replacing {folder}; move it away")
    else:
        shutil.rmtree(aside, ignore_errors=True)  # where the last overwrite was killed at its end
        folder.rename(aside)
        fresh.rename(folder)
        aside.rename(fresh)
    _flush(folder.parent)


def _write(file: Path, content: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(content)
    _flush(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
