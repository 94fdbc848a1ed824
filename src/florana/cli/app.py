"""``florana app``: a run as a Flower app, for a simulation or any SuperLink."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florana import __version__
from florana.errors import RunError

if TYPE_CHECKING:
    from florana.config import RunConfig


def write_app(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; must not exist.")],
    config: Annotated[
        Path | None, typer.Argument(help="TOML file; without one the defaults are taken.")
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as for florana run."),
    ] = None,
) -> None:
    """Write a run as a Flower app: flwr run DIR NAME --stream does it on any SuperLink.

    The app is a pyproject.toml with the configuration, and points into the installed florana; so florana has to
    be installed where the SuperLink and the SuperNodes run.
    """
    from florana.config import load_config

    checked = load_config(config, override or [])
    if folder.exists():
        raise RunError(f"{folder} is there already; choose another folder")
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "florana-app"
    try:
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(_pyproject(name, checked), "utf-8")
        (folder / "README.md").write_text(_readme(name, folder, checked), "utf-8")
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from error
    typer.echo(f"{folder}: a Flower app; run it with: flwr run {folder} NAME --stream")


def _pyproject(name: str, config: RunConfig) -> str:
    import tomli_w

    from florana.app_config import RESUME, write_run_config

    project = {
        "project": {
            "name": name,
            "version": "1.0.0",
            "description": f"A run of florana {__version__}.",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "florana",
                    "components": {
                        "serverapp": "florana.flower_app:server_app",
                        "clientapp": "florana.flower_app:client_app",
                    },
                    "config": {**_nested(write_run_config(config)), RESUME: ""},
                }
            }
        },
    }
    return tomli_w.dumps(project)


def _nested(flat: dict[str, bool | int | float | str]) -> dict[str, object]:
    """Sections as tables, which Flower flattens again."""
    tree: dict[str, object] = {key: value for key, value in flat.items() if "." not in key}
    for full, value in flat.items():
        section, dot, key = full.partition(".")
        if dot:
            table = tree.setdefault(section, {})
            assert isinstance(table, dict)
            table[key] = value
    return tree


def _readme(name: str, folder: Path, config: RunConfig) -> str:
    nodes = config.federation.clients
    data = ' data="/path/to/its/own.csv"' if config.data.source == "nodes" else ""
    return f"""\
# {name}

A run of florana as a Flower app. florana {__version__} has to be installed on the SuperLink's machine and on every node.

On a simulation, with the connection `local` of Flower's own configuration:

    flwr run {folder} local --stream --federation-config "num-supernodes={nodes} client-resources-num-cpus=1"

On a SuperLink that is named NAME in that configuration, with {nodes} SuperNodes, each started with

    flower-supernode ... --node-config 'partition-id=0 num-partitions={nodes}{data}'

(`partition-id` from 0 to {nodes - 1}; `data`, `model` and `state` may name the node's own data, model folder and
folder for what it keeps):

    flwr run {folder} NAME --stream

`-c "federation.rounds=20"` overrides a key, `-c "resume='/path/of/the/run'"` goes on with an interrupted run.
"""
