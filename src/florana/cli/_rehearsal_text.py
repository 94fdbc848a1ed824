"""What ``florana run --dry-run`` shows."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from florana.cli._partition_text import partition_table
from florana.experiments.rehearsal import Rehearsal
from florana.tasks.partition import in_words


def show_rehearsal(found: Rehearsal, console: Console) -> None:
    """Print what a run would be made of."""
    config, factors = found.config, found.factors
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    rows = {
        "model": f"{found.source.name} (SHA-256 {found.source.sha256[:12]}…), {_millions(found.parameters)} "
        f"parameters, in {config.model.dtype} on {found.device}",
        "data": f"{found.data}: {found.train} to train, {found.test} to test",
        "LoRA": f"{config.lora.variant}, rank {config.lora.rank}, in {found.modules} modules: {factors} numbers, "
        f"{factors * 4 / 1e6:.2f} MB in float32",
        "clients": f"{config.federation.clients}, {in_words(config.federation.model_dump())}",
        "server": config.method.name,
    }
    for name, value in rows.items():
        head.add_row(name, escape(value))
    console.print(head)
    console.print()
    console.print(partition_table(found.partition))
    console.print()
    for note in found.notes:
        console.print(escape(note), soft_wrap=True)
    console.print("Everything fits. Nothing was trained or written.")


def _millions(count: int) -> str:
    """A number of parameters for people.

    Example:
        >>> _millions(22_713_216), _millions(6_738_415_616), _millions(259_520)
        ('22.7 M', '6.74 B', '0.26 M')
    """
    if count >= 1e9:
        return f"{count / 1e9:.2f} B"
    return f"{count / 1e6:.1f} M" if count >= 1e7 else f"{count / 1e6:.2f} M"
