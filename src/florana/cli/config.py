"""``florana config``: the default configuration as a commented TOML file to start from."""

from __future__ import annotations

import inspect

import typer


def config() -> None:
    """Print every key with its default, as TOML: florana config > my.toml."""
    typer.echo(_as_toml())


def _as_toml() -> str:
    from pydantic import BaseModel

    from florana.config import RunConfig

    defaults = RunConfig()
    plain = [name for name in RunConfig.model_fields if not _is_section(defaults, name)]
    blocks = [_comment(RunConfig) + "\n" + "\n".join(_line(defaults, name) for name in plain)]
    for name in RunConfig.model_fields:
        section = getattr(defaults, name)
        if isinstance(section, BaseModel):
            lines = [_line(section, key) for key in type(section).model_fields]
            blocks.append("\n".join([f"[{name}]", _comment(type(section)), *lines]))
    return "\n\n".join(blocks)


def _is_section(config: object, name: str) -> bool:
    from pydantic import BaseModel

    return isinstance(getattr(config, name), BaseModel)


def _comment(section: type) -> str:
    """A section's docstring as comments, without the markup."""
    text = inspect.cleandoc(section.__doc__ or "").replace("``", "").replace(":func:`", "`")
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def _line(section: object, key: str) -> str:
    """``key = value``; a key without a default is commented out."""
    import tomli_w

    value = getattr(section, key)
    if value is None:
        return f"# {key} ="
    return tomli_w.dumps({key: list(value) if isinstance(value, tuple) else value}).strip()
