"""PEFT adapter folders: opened with suspicion, read a module at a time, written whole or not at all.

Sizes and counts are known before anything is allocated; links, pipes and pickles are refused. What settings and
tensors mean together is the business of :mod:`florana.peft_io.form`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from torch import Tensor

from florana.adapter import Adapter, LoraPair
from florana.errors import AdapterError
from florana.peft_io.folder_writer import CONFIG, FolderWriter, existing_folder
from florana.peft_io.form import AdapterForm, read_form
from florana.peft_io.header import write_header
from florana.peft_io.limits import Limits
from florana.peft_io.names import about
from florana.peft_io.plain_files import read_json
from florana.peft_io.settings import read_settings, short
from florana.peft_io.shards import TensorSource, open_weights, weights_name
from florana.peft_io.state_dict import (
    adapter_from_state_dict,
    adapter_to_config,
    adapter_to_state_dict,
    read_adapter,
)
from florana.peft_io.values import info_of

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFolder:
    """An open adapter folder: all of its form is known and checked, none of its tensors is in memory.

    A context manager; see :func:`open_adapter`.

    Attributes:
        path: where it is.
        form: which modules and extras it holds, with shapes, ranks and dtypes.
    """

    path: Path
    form: AdapterForm
    _weights: TensorSource
    _name: str

    def pairs(self, module: str) -> dict[str, LoraPair]:
        """The pairs of one stored module: of one name, or one for each expert.

        Args:
            module: a name in ``form.modules``.

        Raises:
            AdapterError: if there is none of this name, a value is NaN or infinite, or the file has changed.
        """
        with about(self.path / self._name):
            return _one(self.form.modules, module, "module").read(self._weights.read)

    def extra(self, parameter: str) -> Tensor:
        """One tensor that is no part of a pair: of a head, a bias or token rows.

        Args:
            parameter: a name in ``form.extras``.

        Raises:
            AdapterError: as with :meth:`pairs`.
        """
        with about(self.path / self._name):
            stored = _one(self.form.extras, parameter, "extra parameter")
            return stored.read(self._weights.read(stored.key))

    def adapter(self) -> Adapter:
        """Everything, in memory.

        Raises:
            AdapterError: as with :meth:`pairs`.
        """
        with about(self.path / self._name):
            return read_adapter(self.form, self._weights.read)

    def close(self) -> None:
        """Close its files; nothing can be read any more."""
        self._weights.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_adapter(path: str | os.PathLike[str], limits: Limits = Limits()) -> AdapterFolder:  # noqa: B008, it is frozen
    """Open an adapter folder that PEFT, transformers or :func:`save_adapter` wrote, and check all but the values.

    Memory is taken for the settings and for the headers of the weights, within the limits. Nothing is written or
    renamed, no pattern in the settings is run, no file outside the folder is opened.

    Args:
        path: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``, or shards of it with an index.
        limits: what is accepted.

    Raises:
        AdapterError: if a file, a setting or a tensor cannot be used or is not supported. The message names the
            file and the key, what came, what was expected and what to do.

    Example:
        >>> import tempfile, torch
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = save_adapter(Adapter({"layer": pair}), f"{folder}/adapter")
        ...     with open_adapter(made) as adapter:
        ...         adapter.form.modules["layer"].shape, adapter.pairs("layer")["layer"].rank
        ((3, 4), 2)
    """
    folder = existing_folder(path)
    with about(folder / CONFIG):
        settings = read_settings(read_json(folder / CONFIG, limits, limits.config_bytes))
    name = weights_name(folder)
    with about(folder / name):
        weights = open_weights(folder, name, limits)
        try:
            form = read_form(weights.infos, settings)
            _check_ranks(form, limits)
        except BaseException:
            weights.close()
            raise
    return AdapterFolder(folder, form, weights, name)


def load_adapter(path: str | os.PathLike[str], limits: Limits = Limits()) -> Adapter:  # noqa: B008, it is frozen
    """Read a whole adapter folder into memory: :func:`open_adapter` and :meth:`AdapterFolder.adapter`.

    Args:
        path: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        limits: what is accepted.

    Returns:
        The adapter as :func:`adapter_from_state_dict` has it, its tensors bit for bit the file's.

    Raises:
        AdapterError: as with :func:`open_adapter`.

    Example:
        >>> import tempfile, torch
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_adapter(Adapter({"layer": pair}), f"{folder}/adapter")
        ...     load_adapter(f"{folder}/adapter").pairs["layer"].delta_w()[0].tolist()
        [4.0, 4.0, 4.0, 4.0]
    """
    with open_adapter(path, limits) as folder:
        return folder.adapter()


def save_adapter(
    adapter: Adapter, path: str | os.PathLike[str], *, overwrite: bool = False
) -> Path:
    """Write an adapter as a folder that ``PeftModel.from_pretrained`` loads, whole or not at all.

    For how that is made sure of, and for adapters larger than memory, see :class:`FolderWriter`.

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
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = save_adapter(Adapter({"layer": pair}), f"{folder}/adapter")
        ...     sorted(file.name for file in made.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    state, config = adapter_to_state_dict(adapter), adapter_to_config(adapter)
    adapter_from_state_dict(state, config)
    state = dict(sorted(state.items(), key=lambda item: -item[1].dtype.itemsize))
    room = len(write_header({key: info_of(tensor) for key, tensor in state.items()}))
    with FolderWriter(path, overwrite=overwrite, expected_header_bytes=room) as writer:
        for key, tensor in state.items():
            writer.add(key, tensor)
        return writer.finish(config)


def _check_ranks(form: AdapterForm, limits: Limits) -> None:
    for name, module in form.modules.items():
        if module.rank > limits.rank:
            raise AdapterError(
                f"module {short(name)} has rank {module.rank:,}; expected at most {limits.rank:,}, the limit"
            )


def _one(found: Mapping[str, _T], name: str, what: str) -> _T:
    if name not in found:
        raise AdapterError(f"has no {what} {short(name)}; expected one of {short([*found])}")
    return found[name]
