"""The folder that a run leaves behind, and what makes it safe to kill a run at any moment.

    config.toml             the resolved configuration, ready to be run again
    provenance.json         the same with seed, versions, hashes, data fingerprint and partition
    metrics.jsonl           one line per round and client; the same bits in every run of one config
    timings.jsonl           wall seconds per round
    checkpoint.safetensors  all that the next round follows from, and where in metrics.jsonl the round ended
    states/                 what clients in this process remember from round to round, where a method needs that
    best/, final/           PEFT folders
    clients/                PEFT folders of the clients' own models, for methods that keep a part of them at home
    summary.json            how the run ended

A round is finished when its checkpoint is there. Everything written before that is written again, in the
same way, when the round is done again: metrics.jsonl is cut back to where the checkpoint says it ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from safetensors import SafetensorError

from florana import __version__
from florana.adapter import Adapter
from florana.aggregators import GlobalState
from florana.atomic import write_atomically
from florana.config import RunConfig
from florana.errors import AdapterError, RunError
from florana.experiments.checkpoint import STATES, Checkpoint, decode, encode
from florana.federation.client_states import ClientStates
from florana.peft_io import save_adapter

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder; make one with :meth:`create` or :meth:`open`."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: RunConfig, provenance: Mapping[str, Any]) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            RunError: if something is there already, or it cannot be written.
        """
        refuse_used(path)
        folder = cls(path)
        with _told(path):
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "provenance.json", _json(provenance))
        folder.write_config(config)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            RunError: if there is no run in it.
        """
        if not (path / "provenance.json").is_file():
            raise RunError(
                f"{path} holds no run (there is no provenance.json in it); start one with: florana run"
            )
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from doing this run at the same time, each applying its own rounds.

        The hold is the operating system's (``flock`` on the folder), and ends with the process, however that ends.

        Raises:
            RunError: if another process is at it, such as a server whose connection was thought lost.
        """
        if fcntl is None:
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path} is at work in another process; wait for its end, or end that process and resume"
                ) from None
            yield
        finally:
            os.close(handle)

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved configuration, ready to be run again."""
        settings = config.model_dump(mode="json", exclude_none=True, exclude={"output"})
        with _told(self.path):
            write_atomically(self.path / "config.toml", tomli_w.dumps(settings).encode())

    def read_provenance(self) -> dict[str, Any]:
        """What the run was made of."""
        return self._read_json("provenance.json")

    def read_config(self) -> RunConfig:
        """The run's resolved configuration.

        Raises:
            RunError: if it is not one of this version of florana.
        """
        try:
            return RunConfig.model_validate(self.read_provenance()["config"])
        except (KeyError, ValidationError) as error:
            raise RunError(
                f"{self.path / 'provenance.json'} cannot be read by florana {__version__}: {error}"
            ) from error

    def read_summary(self) -> dict[str, Any] | None:
        """How the run ended, or None if it has not."""
        return self._read_json("summary.json") if (self.path / "summary.json").exists() else None

    def append_metrics(self, lines: Sequence[Mapping[str, Any]], after: int) -> int:
        """Write a round's lines at byte ``after`` of metrics.jsonl, and nothing after them; the new size."""
        with _told(self.path), (self.path / "metrics.jsonl").open("ab") as stream:
            stream.truncate(after)
            stream.seek(after)
            for line in lines:
                stream.write(json.dumps(line).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
            return stream.tell()

    def append_timing(self, server_round: int, seconds: Mapping[str, float]) -> None:
        """Note how long the parts of a round took."""
        line = {"round": server_round, **{k: round(v, 4) for k, v in seconds.items()}}
        with _told(self.path), (self.path / "timings.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open() as stream:
            yield from map(json.loads, stream)

    def write_adapter(self, name: str, adapter: Adapter) -> Path:
        """Write ``best``, ``final`` or ``clients/3`` as a PEFT folder."""
        with _told(self.path):
            try:
                return save_adapter(adapter, self.path / name, overwrite=True)
            except RunError as error:
                if isinstance(error.__cause__, OSError):  # the run's own message says how to go on
                    raise error.__cause__ from None
                raise

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Note how the run ended."""
        with _told(self.path):
            write_atomically(self.path / "summary.json", _json(summary))

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Finish a round: write its state aside, then put it in place in one step."""
        with _told(self.path):
            write_atomically(self.path / "checkpoint.safetensors", encode(checkpoint))
            if isinstance(checkpoint.clients, ClientStates):
                checkpoint.clients.drop_unused()

    def client_states(self, checkpoint: Checkpoint) -> ClientStates:
        """What clients in this process remember: as the checkpoint has it, or nothing yet."""
        if isinstance(checkpoint.clients, ClientStates):
            return checkpoint.clients
        return ClientStates(self.path / STATES)

    def read_checkpoint(self, first: GlobalState) -> Checkpoint | None:
        """The last finished round, or None before the first.

        Raises:
            RunError: if the file is there and cannot be read.
        """
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            return decode(path, first)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AdapterError) as error:
            raise RunError(
                f"{path} is damaged ({type(error).__name__}: {error}); start the run anew with: "
                f"florana run {self.path / 'config.toml'} --output NEW"
            ) from error

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise RunError(f"{path} cannot be read: it holds {type(found).__name__}, no object")
        return found


def refuse_used(path: Path) -> None:
    """Refuse a folder in which something is; what a kill left aside does not count.

    Raises:
        RunError: saying how to go on with the run in it, if there is one.
    """
    if not path.exists():
        return
    if not path.is_dir() or any(not p.name.startswith(".") for p in path.iterdir()):
        holds = (path / "provenance.json").exists()
        raise RunError(
            f"{path} is not empty{' and holds another run' if holds else ''}; choose another --output"
            + (f", or go on with it: florana run --resume {path}" if holds else "")
        )


def free_folder(parent: Path, stem: str) -> Path:
    """``parent/stem``, or the first of ``stem-2``, ``stem-3``, ... that is not there yet."""
    candidate, number = parent / stem, 2
    while candidate.exists():
        candidate, number = parent / f"{stem}-{number}", number + 1
    return candidate


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn a failed write, such as on a full disk, into a message that says what to do."""
    try:
        yield
    except OSError as error:
        begun = (path / "provenance.json").exists()
        then = (
            f"then go on with: florana run --resume {path}"
            if begun
            else "or choose another --output"
        )
        raise RunError(
            f"cannot write to {path}: {error.strerror or error}; free some space or mend the permissions, {then}"
        ) from error
