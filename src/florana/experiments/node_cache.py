"""A client's tokenised examples on its node's disk, so that a process per message does not tokenise anew."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from florana import __version__
from florana.atomic import write_atomically
from florana.config import RunConfig
from florana.errors import DataError
from florana.experiments.client import ClientData
from florana.experiments.data import expanded
from florana.training.base_model import ModelSource
from florana.training.examples import Examples

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens*",
    "added_tokens*",
    "chat_template*",
    "*.model",
)


def cached(
    folder: Path, key: str, make: Callable[[], tuple[ClientData, int]]
) -> tuple[ClientData, int]:
    """The examples under a key, and the number of classes; made and written, aside and renamed, if they are not there or damaged.

    Args:
        folder: where they are kept.
        key: hash of all that they are made of, see :func:`key_of`.
        make: makes them.

    Raises:
        DataError: if they cannot be written.
    """
    path = folder / f"{key}.safetensors"
    try:
        return _read(path)
    except (OSError, SafetensorError, KeyError, ValueError):  # not there, or torn
        made, labels = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _encode(made, labels))
    except OSError as error:
        raise DataError(
            f"cannot keep tokenised examples in {folder}: {error.strerror or error}; free some space, or "
            "give the node another folder: --node-config 'state=\"/path\"'"
        ) from error
    return made, labels


def key_of(config: RunConfig, source: ModelSource, client: int, own: str | None) -> str:
    """Hash of everything that a client's tokenised examples follow from.

    Args:
        config: the run's.
        source: whose tokenizer it is.
        client: the partition.
        own: the node's own file, if it has one.
    """
    federation = config.federation
    said: dict[str, Any] = {
        "florana": __version__,
        "data": config.data.model_dump(mode="json", exclude={"test"} if own else None),
        "content": _fingerprint(own or config.data.source),
        "test": own is None and config.data.test is not None,
        "tokenizer": _hash(_tokenizer_files(source.path)),
        "max_length": config.model.max_length,
        "seed": config.seed,
        "client": client,
        "own": own is not None,
    }
    if own is None:
        said["partition"] = federation.model_dump(
            mode="json",
            include={
                "clients", "partition", "dirichlet_alpha", "labels_per_client", "min_labels", "column",
            },
        )  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _fingerprint(source: str) -> str:
    """What the source holds: a hash of its files, or what names it."""
    if source == "docstrings":
        return f"Python {platform.python_version()}"
    path = Path(expanded(source)).expanduser()
    if path.is_dir():
        return _hash(sorted(p for p in path.iterdir() if p.is_file()))
    return _hash([path]) if path.is_file() else source


def _tokenizer_files(folder: Path) -> list[Path]:
    found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def _hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _encode(data: ClientData, labels: int) -> bytes:
    tensors: dict[str, Tensor] = {}
    for part, examples in (("train", data.train), ("test", data.test)):
        lengths = [len(ids) for ids in examples.token_ids]
        tensors[f"{part}.ids"] = torch.cat(examples.token_ids)
        tensors[f"{part}.lengths"] = torch.tensor(lengths)
        tensors[f"{part}.labels"] = examples.labels.contiguous()
        if examples.segments:
            tensors[f"{part}.segments"] = torch.cat(examples.segments)
        if examples.prompts is not None:
            tensors[f"{part}.prompts"] = examples.prompts.contiguous()
        if examples.references is not None:
            text = json.dumps(examples.references).encode()
            tensors[f"{part}.references"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return save(tensors, metadata={"pad_id": str(data.train.pad_id), "labels": str(labels)})


def _read(path: Path) -> tuple[ClientData, int]:
    with safe_open(path, framework="pt") as file:
        said = file.metadata() or {}
        pad_id, labels = int(said["pad_id"]), int(said["labels"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts = []
    for part in ("train", "test"):
        lengths = tensors[f"{part}.lengths"].tolist()
        segments = tensors.get(f"{part}.segments")
        said_references = tensors.get(f"{part}.references")
        references = None
        if said_references is not None:
            references = tuple(json.loads(said_references.numpy().tobytes()))
        parts.append(
            Examples(
                torch.split(tensors[f"{part}.ids"], lengths),
                tensors[f"{part}.labels"],
                pad_id,
                None if segments is None else torch.split(segments, lengths),
                tensors.get(f"{part}.prompts"),
                references,
            )
        )
    return ClientData(*parts), labels
