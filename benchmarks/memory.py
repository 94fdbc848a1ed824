"""Peak memory of whole runs against the number of clients, and against the size of the base model's file.

    python benchmarks/memory.py                           # all cases; writes benchmarks/results/memory.md
    python benchmarks/memory.py --case minilm --clients 2,100

Every run is a process of its own, and its peak is what the system says of it (``ru_maxrss``): interpreter, libraries
and pages of the model's file that were read are in it. Two rounds of one step of two examples, all clients in every round:
what is left to grow is what the clients leave behind. Target: with 100 clients at most 1.3 times that with 2.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_base import Decoder, write_decoder, write_texts

RESULTS = Path(__file__).parent / "results" / "memory"
ALL = '["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]'
ATTENTION = '["q_proj", "k_proj", "v_proj", "o_proj"]'
COMMON = (
    "federation.rounds=2",
    "federation.partition='iid'",
    "training.steps=1",
    "training.batch_size=2",
    "data.test_fraction=0.02",
    "data.max_examples=1200",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of run.

    Args:
        title: for people.
        settings: beside :data:`COMMON`.
        clients: numbers of clients.
        base: the random base model, or None for MiniLM on docstrings.
    """

    title: str
    settings: tuple[str, ...]
    clients: tuple[int, ...] = (2, 10, 100)
    base: Decoder | None = None


WIDE = Decoder(hidden=1024, inner=2816, layers=2, heads=8)
LARGE = Decoder(hidden=2048, inner=5632, layers=16, heads=16, vocabulary=32_000, dtype="bfloat16")
CASES: Mapping[str, Case] = {
    "minilm": Case("MiniLM, rank 8, florana-blend", ()),
    "minilm-fedex": Case(
        "MiniLM, rank 8, fedex-lora (clients remember the residual)", ("method.name='fedex-lora'",)
    ),
    "minilm-fedsa": Case(
        "MiniLM, rank 8, fedsa-lora (B stays home)", ("method.name='fedsa-lora'",)
    ),
    "wide": Case(
        "random decoder of width 1024, 2 layers, rank 16 on all linear layers, florana-blend",
        ("lora.rank=16", "lora.alpha=16.0", f"lora.target_modules={ALL}"),
        base=WIDE,
    ),
    "base": Case(
        "random bfloat16 decoder of 1.9 GB, rank 16 on attention, florana-blend",
        ("lora.rank=16", "lora.alpha=16.0", f"lora.target_modules={ATTENTION}",
         "model.dtype='bfloat16'"),
        clients=(2,),
        base=LARGE,
    ),
}  # fmt: skip


def measure(settings: Sequence[str]) -> dict[str, float]:
    """One run in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(list(settings))],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(settings: Sequence[str]) -> None:
    """Do a run here, and print what it took."""
    from florana.config import load_config
    from florana.experiments import runner
    from florana.experiments.events import Event, Prepared

    imported, adapter = _peak(), 0.0
    folder = next(s.split("=", 1)[1].strip("'") for s in settings if s.startswith("output="))

    def watch(event: Event) -> None:
        nonlocal adapter
        if isinstance(event, Prepared):
            adapter = _peak()

    runner.start(load_config(None, list(settings)), watch)
    numbers = (Path(folder) / "final" / "adapter_model.safetensors").stat().st_size
    print(
        json.dumps(
            {"imported": imported, "prepared": adapter, "peak": _peak(), "adapter": numbers / 2**20}
        )
    )


def _peak() -> float:
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def run_case(name: str, clients: Sequence[int] | None) -> list[dict[str, Any]]:
    """All runs of one case."""
    case, rows = CASES[name], list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as parent:
        settings, size = [*COMMON, *case.settings], 0
        if case.base is not None:
            # elsewhere: a process that is started begins with the peak of the one that started it
            subprocess.run([sys.executable, __file__, "--write", name, parent], check=True)
            size = sum(file.stat().st_size for file in Path(parent).glob("base/*.safetensors"))
            write_texts(Path(parent) / "text.jsonl", 1200)
            settings += [f"model.name='{parent}/base'", f"data.source='{parent}/text.jsonl'"]
            settings += ["data.text='text'", "data.label='label'"]
        for count in clients or case.clients:
            own = [f"federation.clients={count}", f"output='{parent}/run-{count}'"]
            found = measure([*settings, *own])
            rows.append({"case": name, "clients": count, "base": size / 2**20, **found})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| run | clients | adapter, MiB | after imports, MiB | peak, MiB | to the fewest clients | to the base's file |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        alike = [r for r in rows if r["case"] == row["case"]]
        ratio = row["peak"] / min(alike, key=lambda r: int(r["clients"]))["peak"]
        over = (row["peak"] - row["imported"]) / row["base"] if row["base"] else None
        lines.append(
            f"| {CASES[row['case']].title} | {row['clients']} | {row['adapter']:.2f} | {row['imported']:.0f} "
            f"| {row['peak']:.0f} | {ratio:.2f} | {'' if over is None else f'{over:.2f}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--clients", help="such as 2,100")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(json.loads(given.child))
        return
    if given.write:
        shape = CASES[given.write[0]].base
        assert shape is not None
        write_decoder(Path(given.write[1]) / "base", shape)
        return
    clients = [int(n) for n in given.clients.split(",")] if given.clients else None
    rows = [row for name in given.case or CASES for row in run_case(name, clients)]
    print(table(rows))
    if given.case is None and clients is None:
        head = "# Peak memory\n\n`python benchmarks/memory.py`; the last column is the peak, less what imports took, "
        head += "over the bytes of the base model's file.\n\n"
        RESULTS.with_suffix(".md").write_text(head + table(rows) + "\n")
        RESULTS.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
