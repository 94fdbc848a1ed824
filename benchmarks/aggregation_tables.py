"""Tables and plot of aggregation.py, and docs/benchmarks.md brought up to date with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aggregation_contestants import CONTESTANTS
from evidence_document import fill

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
FIGURES = ROOT / "docs" / "figures"

SIZES = (768, 1024, 2048, 4096)
CLIENTS = (2, 10, 100, 1000)

GOAL = (4096, 10)
"""Size and clients that the project's targets are set for."""

Row = dict[str, Any]
Rows = Mapping[tuple[int, int, str], Row]


def write_all(rows: Sequence[Row], results: Path, document: bool) -> None:
    """The tables beside the results; plot and document too where these are the project's own results."""
    if not rows:
        return
    found = {(row["size"], row["clients"], row["contestant"]): row for row in rows}
    blocks = tables(found)
    text = "\n\n".join(f"## {name}\n\n{block}" for name, block in blocks.items())
    results.with_suffix(".md").write_text(f"# Aggregation\n\n{text}\n")
    if document:
        draw(found, FIGURES)
        text = DOCUMENT.read_text()
        shown = {n: block for n, block in blocks.items() if f"<!-- table {n} -->" in text}
        DOCUMENT.write_text(fill(text, shown))
    else:
        draw(found, results.parent)


def tables(rows: Rows) -> dict[str, str]:
    """Every block of the document by its name."""
    clients = sorted({key[1] for key in rows} | set(CLIENTS))
    return {
        "machine": machine(rows),
        "targets": targets(rows),
        "goal": goal(rows),
        **{f"time-{count}": by_size(rows, count, "seconds") for count in clients},
        **{f"memory-{count}": by_size(rows, count, "peak_bytes") for count in clients},
        "errors": errors(rows),
        "skipped": skipped(rows),
    }


def machine(rows: Rows) -> str:
    """Where it was measured; one line for each machine that results came from."""
    lines = {f"{row['machine']}; {row['threads']} threads" for row in rows.values()}
    return "\n".join(f"Measured on {line}." for line in sorted(lines))


def targets(rows: Rows) -> str:
    """The three targets and what was measured for them."""
    seconds = {name: rows.get((*GOAL, name), {}).get("seconds") for name in CONTESTANTS}
    ours = rows.get((*GOAL, "florana-opt"), {})
    lines = [
        (
            "florana-opt ÷ fedit, time",
            "at most 10",
            _ratio(seconds["florana-opt"], seconds["fedit"]),
        ),
        (
            "florana-opt ÷ bare plain averaging, time",
            "–",
            _ratio(seconds["florana-opt"], seconds["average"]),
        ),
        (
            "torch.linalg.svd ÷ florana-opt, time",
            "at least 1,000",
            _ratio(seconds["dense-svd"], seconds["florana-opt"]),
        ),
        ("error above the optimum, relative", "at most 1e-5", _excess(ours)),
    ]
    return _table(["", "target", "measured"], lines)


def goal(rows: Rows) -> str:
    """Everything about the case of the targets."""
    least = rows.get((*GOAL, "florana-opt"), {}).get("least")
    lines = []
    for name, contestant in CONTESTANTS.items():
        row = rows.get((*GOAL, name))
        if row is None:
            continue
        fedit = rows.get((*GOAL, "fedit"), {}).get("seconds")
        lines.append(
            (
                contestant.title,
                _seconds(row),
                _ratio(row.get("seconds"), fedit),
                _mebibytes(row),
                f"{row['error']:.4g}" if "error" in row else "–",
                _excess(row) if contestant.optimal else "–",
            )
        )
    head = ["", "time", "÷ fedit", "peak memory", "error", "above the optimum"]
    note = "" if least is None else f"\n\nThe least error at rank 8 is {least:.6f}."
    return _table(head, lines) + note


def by_size(rows: Rows, clients: int, field: str) -> str:
    """One number by contestant and size, for so many clients."""
    sizes = sorted({size for size, count, _ in rows if count == clients})
    if not sizes:
        return f"{clients:,} clients: not measured yet."
    show = _seconds if field == "seconds" else _mebibytes
    lines = [
        (contestant.title, *(show(rows.get((size, clients, name), {})) for size in sizes))
        for name, contestant in CONTESTANTS.items()
        if any((size, clients, name) in rows for size in sizes)
    ]
    return _table([f"{clients:,} clients", *(f"{size}²" for size in sizes)], lines)


def errors(rows: Rows) -> str:
    """Relative error at the largest size, by number of clients, beside the least there is."""
    size = max(key[0] for key in rows)
    clients = sorted({count for s, count, _ in rows if s == size})
    names = [name for name in CONTESTANTS if any((size, c, name) in rows for c in clients)]

    def shown(name: str, count: int) -> str:
        error = rows.get((size, count, name), {}).get("error")
        return "–" if error is None else f"{error:.3g}"

    def least(count: int) -> str:
        return next(
            (
                f"{r['least']:.3g}"
                for n in names
                if "least" in (r := rows.get((size, count, n), {}))
            ),
            "–",
        )

    lines = [(CONTESTANTS[n].title, *(shown(n, c) for c in clients)) for n in names]
    lines.append(("least at rank 8", *map(least, clients)))
    return _table([f"{size}²", *(f"{count:,} clients" for count in clients)], lines)


def skipped(rows: Rows) -> str:
    """What was not measured, and why."""
    lines = [
        (CONTESTANTS[name].title, f"{size}²", f"{clients:,}", row["skipped"])
        for (size, clients, name), row in rows.items()
        if "skipped" in row
    ]
    return _table(["", "size", "clients", "reason"], lines) if lines else "Nothing was left out."


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, marks, *lines])


def _seconds(row: Row) -> str:
    if "seconds" not in row:
        return "–"
    value: float = row["seconds"]
    return f"{1000 * value:.2f} ms" if value < 0.1 else f"{value:.2f} s"


def _mebibytes(row: Row) -> str:
    return f"{row['peak_bytes'] / 2**20:.1f} MiB" if "peak_bytes" in row else "–"


def _ratio(part: float | None, whole: float | None) -> str:
    if part is None or not whole:
        return "–"
    return f"{part / whole:,.0f}" if part >= 100 * whole else f"{part / whole:.3g}"


def _excess(row: Row) -> str:
    return "–" if "error" not in row else f"{row['error'] / row['least'] - 1:.1e}"


def draw(rows: Rows, folder: Path) -> None:
    """Time by size, time by clients and memory by size, as SVG and PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from florana.report import _style as style

    looks = {
        "fedit": style.Look(style.MUTED, "o"),
        "florana": style.Look(style.GREEN, "s"),
        "florana-opt": style.Look(style.BLUE, "D"),
        "streamed": style.Look(style.BLUE, "D", "--", hollow=True),
        "peft-cat": style.Look(style.PURPLE, "v", "--", hollow=True),
        "peft-svd": style.Look(style.PURPLE, "v"),
        "chorus": style.Look(style.VERMILION, "^"),
        "dense-svd": style.Look(style.INK, "x"),
    }
    sizes, counts = sorted({key[0] for key in rows}), sorted({key[1] for key in rows})
    size, count = GOAL if GOAL[:2] in {key[:2] for key in rows} else (sizes[-1], counts[0])
    panels = [
        ("seconds", 1.0, "seconds", "size of the weight", sizes, [(s, count) for s in sizes]),
        ("seconds", 1.0, "seconds", "clients", counts, [(size, c) for c in counts]),
        ("peak_bytes", 2**20, "MiB", "size of the weight", sizes, [(s, count) for s in sizes]),
    ]
    titles = [f"time, {count} clients", f"time, {size} × {size}", f"memory, {count} clients"]
    with mpl.rc_context(style.SETTINGS):
        figure = Figure(figsize=(style.FULL, 3.0))
        axes = figure.subplots(1, 3)
        for panel, title, (field, unit, y, x, at, cases) in zip(axes, titles, panels, strict=True):
            curves = [
                style.Curve(
                    CONTESTANTS[name].title,
                    [_value(rows, (*case, name), field, unit) for case in cases],
                    look,
                )
                for name, look in looks.items()
            ]
            style.draw_curves(panel, at, curves)
            panel.set(title=title, xlabel=x, ylabel=y)
            style.log_axis(panel, "x")
            style.log_axis(panel, "y")
            panel.set_xticks(at, [f"{v:,}" for v in at])
        style.legend_above(figure, axes)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "aggregation.svg", metadata={"Date": None})
        figure.savefig(folder / "aggregation.png", dpi=200)


def _value(rows: Rows, key: tuple[int, int, str], field: str, unit: float) -> float | None:
    """A number to draw; nothing where it is missing or 0, which a logarithm does not show."""
    value = rows.get(key, {}).get(field)
    return value / unit if value else None
