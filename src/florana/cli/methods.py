"""``florana methods``: what can stand behind ``--method``, with paper and wire cost."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """List the aggregation methods with their paper, options, and numbers sent per module, client and round."""
    from florana import aggregators

    cards = aggregators.cards().values()
    if as_json:
        rows = [{k: v for k, v in asdict(card).items() if k != "build"} for card in cards]
        options = [list(card.options) for card in cards]
        typer.echo(
            json.dumps([{**r, "options": o} for r, o in zip(rows, options, strict=True)], indent=2)
        )
        return
    for card in cards:
        typer.echo(f"{card.name:12} {card.summary}")
        ranks = "clients may have unlike ranks" if card.mixed_ranks else "one rank for all clients"
        typer.echo(f"{'':12} {card.title}, {card.paper}; {ranks}")
        typer.echo(f"{'':12} up {card.uplink}; down {card.downlink}")
        typer.echo(f"{'':12} options: {', '.join(card.options) or 'none'}\n")
    typer.echo("r: rank; R: sum of the clients' ranks; d_in, d_out: sides of the adapted weight")
