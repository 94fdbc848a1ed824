"""From a TOML file and overrides to a checked configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florana.config.checks import validate
from florana.config.run import RunConfig
from florana.errors import ConfigError


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, apply ``section.key=value`` overrides, and check everything.

    Args:
        path: the file, or None for the defaults.
        overrides: as given to ``--set``; a value is read as TOML, and as a string where it is none.

    Raises:
        ConfigError: with one line for every mistake.
    """
    given = _read_toml(path) if path is not None else {}
    mistakes = []
    for override in overrides:
        key, equals, value = override.partition("=")
        keys = [part.strip() for part in key.split(".")]
        if not equals or not all(keys):
            mistakes.append(f"--set {override!r}: expected section.key=value")
            continue
        problem = _assign(given, keys, _toml_value(value))
        if problem:
            mistakes.append(f"--set {override!r}: {problem}")
    return check_config(given, str(path) if path is not None else "configuration", mistakes)


def check_config(
    given: dict[str, Any], where: str = "configuration", mistakes: Sequence[str] = ()
) -> RunConfig:
    """Check nested settings, as a TOML file holds them.

    Args:
        given: section -> key -> value.
        where: what they are from, for the message.
        mistakes: what is known to be wrong already.

    Raises:
        ConfigError: with one line for every mistake.
    """
    config, found = validate(given)
    if config is None or mistakes or found:
        raise ConfigError("\n".join([f"{where}:", *(f"  {m}" for m in [*mistakes, *found])]))
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path} as TOML: {error}") from error


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(tree: dict[str, Any], keys: list[str], value: object) -> str | None:
    """Set a nested key, or say why it cannot be set."""
    *sections, last = keys
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            return f"{section} is no section"
    tree[last] = value
    return None
