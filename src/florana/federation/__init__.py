"""Federated rounds on Flower: records, strategy, client app, and clients in this process."""

from florana.federation.client_app import LocalResult, build_client_app
from florana.federation.local_grid import LocalGrid
from florana.federation.outcome import RoundOutcome
from florana.federation.records import Held, pack, unpack
from florana.federation.strategy import LoraStrategy

__all__ = [
    "Held",
    "LocalGrid",
    "LocalResult",
    "LoraStrategy",
    "RoundOutcome",
    "build_client_app",
    "pack",
    "unpack",
]
