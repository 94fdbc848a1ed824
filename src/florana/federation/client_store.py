"""What a client keeps between rounds on its own disk: one small file per round, two of them at a time.

On engines where every message starts a process, and a SuperNode that comes back has forgotten its
``context.state``, the parts that a method keeps at home, the last global model and the codec's error live here.

A file is named after the round that made it. A message of round t is answered from the newest file of an earlier
round: a round that is done again, because its reply was lost or the server went back to its checkpoint, starts
from where it started the first time, so that nothing is applied twice.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from florana.atomic import write_atomically
from florana.errors import FederationError
from florana.federation.client_memory import freeze, thaw

_NAME = re.compile(r"round-(\d+)\.safetensors")
_RUN_KEY = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class ClientStore:
    """The memory of one client in one run; make one with :meth:`of`."""

    folder: Path

    @classmethod
    def of(cls, root: Path, run_key: str, partition: int) -> ClientStore:
        """The store of a client.

        Args:
            root: folder of all that this node keeps.
            run_key: names the run over restarts of all its processes, as the server sends it.
            partition: the client.

        Raises:
            FederationError: if the key is none that a server makes; it becomes part of a path.
        """
        if not _RUN_KEY.fullmatch(run_key):
            raise FederationError(
                f"the server's run-key is {run_key[:80]!r}, expected 8 to 64 hexadecimal digits"
            )
        return cls(root / "runs" / run_key / f"partition-{partition}")

    def read(self, server_round: int) -> RecordDict:
        """What the client kept before this round; empty if it took part in none.

        Raises:
            FederationError: if a file is damaged, saying what to do.
        """
        earlier = [number for number in self._rounds() if number < server_round]
        if not earlier:
            return RecordDict()
        path = self._path(max(earlier))
        try:
            with safe_open(path, framework="pt") as file:
                said = json.loads((file.metadata() or {})["state"])
                blobs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return thaw(blobs, said)[0]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FederationError(
                f"what this client kept in {path} is damaged ({type(error).__name__}: {error}); "
                "delete the file, and the server sends the whole model again"
            ) from error

    def write(self, server_round: int, state: RecordDict) -> None:
        """Keep what the client knows after this round, and the round's own start beside it.

        Raises:
            FederationError: if it cannot be written.
        """
        if not state:
            return
        blobs, said = freeze({0: state})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self._path(server_round), save(blobs, metadata={"state": json.dumps(said)})
            )
            earlier = sorted(number for number in self._rounds() if number < server_round)
            later = [number for number in self._rounds() if number > server_round]
            for number in [*earlier[:-1], *later]:
                self._path(number).unlink(missing_ok=True)
        except OSError as error:
            raise FederationError(
                f"cannot keep what this client needs next time in {self.folder}: {error.strerror or error}; "
                "free some space, or give the node another folder: --node-config 'state=\"/path\"'"
            ) from error

    def _path(self, server_round: int) -> Path:
        return self.folder / f"round-{server_round}.safetensors"

    def _rounds(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return [int(match[1]) for match in matches if match]
