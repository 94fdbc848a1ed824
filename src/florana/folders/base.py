"""The frozen weights of a base model on disk, one at a time, for DoRA and HiRA."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from florana.errors import AdapterError, ModelError
from florana.folders._text import listed, plain
from florana.peft_io.form import StoredModule
from florana.peft_io.limits import Limits
from florana.peft_io.plain_files import read_json
from florana.peft_io.tensors import TensorFile, open_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LIMITS = Limits(header_bytes=2**28, file_bytes=2**44, shards=10_000, tensors=2**20, dimension=2**32)
"""A base model is chosen by whoever runs the job, so it may be as large as models get."""


@dataclass(frozen=True, slots=True, eq=False)
class BaseWeights:
    """An open base model: the frozen weight of every adapted module, read when asked for.

    Args:
        folder: where it is.
        files: parameter -> the file that holds it.
        parameters: module -> its parameter's name in these files.
    """

    folder: Path
    files: Mapping[str, TensorFile]
    parameters: Mapping[str, str]

    def weight(self, module: StoredModule) -> Tensor:
        """W (d_out, d_in) of a module, in the coordinates of its pairs.

        Raises:
            ModelError: if the parameter is of another shape, or cannot be read.
        """
        name = self.parameters[module.name]
        try:
            return module.layout.weight(self.files[name].read(name))
        except AdapterError as error:
            raise ModelError(
                f"module {plain(module.name)}: {plain(str(self.folder))}, {plain(name)}: {error}"
            ) from error


@contextmanager
def open_base(
    folder: str | os.PathLike[str], modules: Sequence[StoredModule]
) -> Iterator[BaseWeights]:
    """A base model's folder as transformers saves it, in one safetensors file or several.

    Args:
        folder: it holds ``model.safetensors``, or ``model.safetensors.index.json`` and what that names. Links are
            followed, since the hub's cache is made of them.
        modules: the modules whose weights will be asked for.

    Raises:
        ModelError: if the folder or a file cannot be read, or lacks the weight of a module.
    """
    path = Path(folder)
    with ExitStack() as stack:
        files: dict[str, TensorFile] = {}
        for name in _file_names(path):
            try:
                # a link is followed here and not when it is opened
                file = stack.enter_context(open_tensors((path / name).resolve(), LIMITS))
            except AdapterError as error:
                raise ModelError(f"{plain(str(path / name))}: {error}") from error
            files |= dict.fromkeys(file.infos, file)
        wanted = {module.name: f"{module.name}.{module.layout.parameter}" for module in modules}
        yield BaseWeights(path, files, matched(wanted, files, str(path)))


def _file_names(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"{plain(str(folder))} has neither {WEIGHTS} nor {INDEX}; expected the folder of the base model, saved "
            "with safetensors"
        )
    try:
        index = read_json((folder / INDEX).resolve(), LIMITS, LIMITS.header_bytes).get("weight_map")
    except AdapterError as error:
        raise ModelError(f"{plain(str(folder / INDEX))}: {error}") from error
    names = sorted({*index.values()}) if isinstance(index, dict) and _is_flat(index) else []
    odd = [name for name in names if Path(name).name != name]
    if not names or odd or len(names) > LIMITS.shards:
        came = plain(repr(odd[0])) if odd else f"{len(names):,} files"
        raise ModelError(
            f"{plain(str(folder / INDEX))}: weight_map has {came}; expected names of files in that folder, at most "
            f"{LIMITS.shards:,}"
        )
    return names


def _is_flat(index: Mapping[str, object]) -> bool:
    return all(isinstance(name, str) for name in index.values())


def matched(
    wanted: Mapping[str, str], known: Mapping[str, object], where: str = "the base model"
) -> dict[str, str]:
    """Module -> the name under which its parameter is known.

    A head around the model, or none, puts one prefix before all names or takes it away, such as ``model.`` or ``bert.``.
    That is allowed for where one prefix fits all modules and no other one does.

    Args:
        wanted: module -> name of its parameter, as the adapter has it.
        known: names of the base model's parameters.
        where: the base model, for messages.

    Raises:
        ModelError: if parameters are not there, or two prefixes would fit.

    Example:
        >>> matched({"bert.layer.0.q": "bert.layer.0.q.weight"}, {"layer.0.q.weight": None})
        {'bert.layer.0.q': 'layer.0.q.weight'}
        >>> matched({"layer.0.q": "layer.0.q.weight"}, {"bert.layer.0.q.weight": None})
        {'layer.0.q': 'bert.layer.0.q.weight'}
    """
    if all(name in known for name in wanted.values()):
        return dict(wanted)
    ways = [way for way in _prefixes(wanted, known) if _fits(way, wanted, known)]
    if len(ways) == 1:
        off, on = ways[0]
        return {module: on + name.removeprefix(off) for module, name in wanted.items()}
    lacking = [module for module, name in wanted.items() if name not in known]
    first = plain(wanted[lacking[0]])
    if ways:
        raise ModelError(
            f"{plain(where)} has {first} under {len(ways)} names, with prefixes "
            f"{listed([repr(on) for _, on in ways])}; expected one; give the folder of the model that was adapted alone"
        )
    raise ModelError(
        f"{plain(where)} has no {first} (modules: {listed(lacking, 3)}), not under another prefix either; expected the "
        "base model that the adapters were trained on"
    )


def _prefixes(wanted: Mapping[str, str], known: Mapping[str, object]) -> list[tuple[str, str]]:
    """(prefix to take off, prefix to put on) that would do for the first module."""
    parts = next(iter(wanted.values())).split(".")
    ways = []
    for depth in range(len(parts) - 1):
        off, rest = "".join(f"{part}." for part in parts[:depth]), ".".join(parts[depth:])
        if all(name.startswith(off) for name in wanted.values()):
            ways += [
                (off, name.removesuffix(rest))
                for name in known
                if name == rest or (depth == 0 and name.endswith(f".{rest}"))
            ]
    return ways


def _fits(way: tuple[str, str], wanted: Mapping[str, str], known: Mapping[str, object]) -> bool:
    off, on = way
    return all(on + name.removeprefix(off) in known for name in wanted.values())
