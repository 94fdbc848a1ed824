"""A run's configuration as Flower's flat ``run_config``, and back.

Flower's values are int, float, bool and str, under keys such as ``federation.rounds``. A list is written as TOML
in a string, a key that is not set as an empty string, so that every key is there to be overridden with
``flwr run DIR NAME -c "federation.rounds=20 data.labels='[1, 2]'"``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from florana.config import RunConfig, check_config

Flat = dict[str, bool | int | float | str]

RESUME = "resume"
"""A key beside the configuration's: the run folder, on the server, of a run to go on with."""

NOT_THERE = ("federation.engine", "simulation")
"""Keys that say where ``florana run`` has its clients; in an app Flower says so."""


def write_run_config(config: RunConfig) -> Flat:
    """The configuration as flat keys.

    Example:
        >>> from florana.config import RunConfig
        >>> flat = write_run_config(RunConfig())
        >>> flat["federation.rounds"], flat["lora.target_modules"], flat["data.test"]
        (6, '["query", "value"]', '')
    """
    flat: Flat = {}
    for key, value in config.model_dump(mode="json").items():
        for name, entry in value.items() if isinstance(value, dict) else [("", value)]:
            full = f"{key}.{name}" if name else key
            if full not in NOT_THERE and key not in NOT_THERE:
                flat[full] = _flat(entry)
    return flat


def read_run_config(run_config: Mapping[str, Any]) -> RunConfig:
    """Check flat keys, as ``context.run_config`` has them.

    Raises:
        ConfigError: with one line for every mistake.
    """
    given: dict[str, Any] = {}
    for full, value in run_config.items():
        if isinstance(value, str) and not value:
            continue
        section, dot, name = full.partition(".")
        owner = given.setdefault(section, {}) if dot else given
        owner[name if dot else full] = _nested(value)
    return check_config(given, "the app's run config")


def _flat(value: Any) -> bool | int | float | str:  # noqa: ANN401
    if value is None:
        return ""
    if isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value)  # a list of strings or numbers is the same in TOML


def _nested(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, str) and value.startswith("["):
        try:
            return tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            return value
    return value
