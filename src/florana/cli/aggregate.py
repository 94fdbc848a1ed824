"""``florana aggregate``: PEFT adapter folders in, one PEFT adapter folder out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from florana.errors import ConfigError
from florana.garbage import importing

if TYPE_CHECKING:
    from florana.config import ServerConfig
    from florana.folders.missing import Missing


def aggregate(
    adapters: Annotated[
        list[Path], typer.Argument(help="PEFT adapter folders, one per client.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    method: Annotated[
        str, typer.Option(help="A method that merges finished adapters; see florana methods.")
    ] = "florana-opt",
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="One per adapter, numbers of examples or shares; equal by default.",
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the result; by default the adapters' largest.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Alpha of the result; by default that of the largest rank."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; by default that of the adapters."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of the base model, with safetensors; for DoRA and HiRA only."),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(help="The base model's name, where adapters call one model by several."),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            help="A module that some adapters lack: refuse it, count it as zero, or take the mean of the others."
        ),
    ] = "refuse",
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="An option of the method, such as gauge=balanced, or an add-on, such as server.shrinkage=norm.",
        ),
    ] = None,
    streaming: Annotated[
        bool | None,
        typer.Option(
            help="Read modules in passes, in memory that does not grow with the number of adapters; by default "
            "where the ranks together exceed the module's size.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=NUMBER",
            help="How large an adapter's files may be, such as file_bytes=20000000000 or tensors=500.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the adapter that is at --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, modules included.")] = False,
) -> None:
    """Make one PEFT adapter of several: nothing is trained, and PeftModel.from_pretrained loads the result.

    The summary is on stdout, progress on stderr. Whatever happens, there is the whole result at --out or what was
    there before.

    florana aggregate site_a site_b site_c --out global --weights 1200,300,80
    """
    from florana.cli._folders import limits, numbers, progress, show

    options, server = _options(method, override or ())
    sizes = numbers("--weights", weights, float)
    with progress("reading headers") as watch:
        with importing("florana.folders.aggregate"):
            from florana.folders.aggregate import aggregate_folders

        result = aggregate_folders(
            adapters,
            out,
            method,
            sizes,
            rank=rank,
            alpha=alpha,
            dtype=dtype,
            base=base,
            base_name=base_name,
            missing=_missing(missing),
            server=server,
            streaming=streaming,
            overwrite=overwrite,
            limits=limits(limit),
            watch=watch,
            **options,
        )
    from florana.cli._aggregate_text import text

    show(json.dumps(result.as_dict(), indent=2, allow_nan=False) if as_json else text(result, out))


def _missing(said: str) -> Missing:
    from florana.folders.missing import CHOICES

    for choice in CHOICES:
        if choice == said:
            return choice
    raise ConfigError(f"--missing is {said!r}; expected one of {', '.join(CHOICES)}")


def _options(method: str, overrides: Sequence[str]) -> tuple[dict[str, Any], ServerConfig]:
    """The method's options and the server's add-ons, checked as those of a run are."""
    from florana.config import load_config

    keys = []
    for override in overrides:
        key = override.partition("=")[0].strip()
        if "." in key and not key.startswith("server."):
            raise ConfigError(
                f"--set {override!r}: expected an option of {method}, or server.KEY; no other setting has a part "
                "in aggregating"
            )
        keys.append(override if "." in key else f"method.{override.strip()}")
    config = load_config(None, ["method={}", f"method.name={json.dumps(method)}", *keys])
    return config.method.options, config.server
