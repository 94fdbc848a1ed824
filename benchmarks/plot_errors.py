"""Draw the aggregation error per round of a run: the README's picture.

    pip install matplotlib
    python benchmarks/plot_errors.py RUN [RUN ...] --out docs/figures/error.svg

Each run gives one panel: what the run used, what plain averaging would have had in the same round on the same
updates, and the least that any pair of that rank has.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

CURVES = {  # colours that the colour-blind tell apart (Okabe and Ito)
    "error_average": ("plain averaging", "#D55E00", "o"),
    "error_optimum": ("optimum at this rank", "#009E73", "^"),
    "error_used": ("used", "#0072B2", "s"),
}


def read_rounds(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's rounds after the start."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "round" and line["round"]]


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "florana"  # the same file every time
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    figure, panels = plt.subplots(
        1, len(given.runs), figsize=(4.6 * len(given.runs), 3.2), sharey=True, squeeze=False
    )
    for panel, run in zip(panels[0], given.runs, strict=True):
        rounds = read_rounds(run)
        method = json.loads((run / "provenance.json").read_text())["config"]["method"]["name"]
        for key, (name, colour, marker) in CURVES.items():
            shown = f"used: {method}" if key == "error_used" else name
            panel.plot(
                [r["round"] for r in rounds],
                [r[key] for r in rounds],
                color=colour,
                marker=marker,
                markerfacecolor="none" if key == "error_used" else colour,
                markersize=8 if key == "error_used" else 5,
                linestyle="--" if key == "error_optimum" else "-",
                label=shown,
            )
        panel.set_xlabel("round")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=9)
    panels[0][0].set_ylabel("relative aggregation error")
    figure.tight_layout()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, metadata={"Date": None} if given.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
