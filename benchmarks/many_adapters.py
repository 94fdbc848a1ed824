"""Whole commands on adapters of Llama-2-7B's shape: time, CPU time and peak memory, beside reading and averaging them.

    python benchmarks/many_adapters.py                 # 10 and 1,000 adapters; writes 16 GiB under --folder, and removes it
    python benchmarks/many_adapters.py --adapters 10   # 10 alone

32 layers, query and value projections of 4096 × 4096, rank 8, float32. From the hundredth on adapters repeat the numbers
of the first hundred, in files of their own. Files are read once before the clock starts, so that they are in the system's cache if it has room.
Contestants run in turn, each in a process of its own; start-up and import are part of the time. `read and average` is
what anybody would write with safetensors and torch. Results go to benchmarks/results/many-adapters.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

RESULTS = Path(__file__).parent / "results" / "many-adapters.md"
WIDTH, RANK, LAYERS, UNLIKE = 4096, 8, 32, 100
MODULES = [
    f"model.layers.{layer}.self_attn.{name}"
    for layer in range(LAYERS)
    for name in ("q_proj", "v_proj")
]
SETTINGS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
    "r": RANK,
    "lora_alpha": 2 * RANK,
    "target_modules": ["q_proj", "v_proj"],
}
PLAIN = """
import sys
from safetensors import safe_open
mean = {}
for path in sys.argv[1:]:
    with safe_open(path + "/adapter_model.safetensors", "pt") as file:
        for key in file.keys():
            tensor = file.get_tensor(key)
            mean[key] = mean[key].add_(tensor) if key in mean else tensor.clone()
mean = {key: tensor.div_(len(sys.argv) - 1) for key, tensor in mean.items()}
"""
COMMANDS: Mapping[str, Sequence[str]] = {
    "read and average": ("-c", PLAIN),
    "florana aggregate, fedit": ("-m", "florana", "aggregate", "--method", "fedit"),
    "florana aggregate, florana-opt": ("-m", "florana", "aggregate", "--method", "florana-opt"),
}


def make(folder: Path, count: int) -> list[Path]:
    """Adapter folders near a common start."""
    shared = torch.Generator().manual_seed(0)
    start = {name: torch.randn(RANK, WIDTH, generator=shared) / WIDTH**0.5 for name in MODULES}
    paths = [folder / f"{number:04d}" for number in range(count)]
    for number, path in enumerate(paths):
        path.mkdir(parents=True)
        (path / "adapter_config.json").write_text(json.dumps(SETTINGS))
        if number >= UNLIKE:
            weights = "adapter_model.safetensors"
            shutil.copyfile(paths[number % UNLIKE] / weights, path / weights)
            continue
        own = torch.Generator().manual_seed(1 + number)
        state = {}
        for name, A in start.items():
            key = f"base_model.model.{name}"
            step = torch.randn(RANK, WIDTH, generator=own)
            state[f"{key}.lora_A.weight"] = A + 0.005 * step
            state[f"{key}.lora_B.weight"] = 0.01 * torch.randn(WIDTH, RANK, generator=own)
        save_file(state, path / "adapter_model.safetensors", metadata={"format": "pt"})
    return paths


def run(command: Sequence[str], paths: Sequence[Path], out: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak MiB of one process."""
    output = ["--out", str(out), "--overwrite"] if "aggregate" in command else []
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command, *map(str, paths), *output],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[:5])} failed")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    """Make, measure, write, remove."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--adapters", default="10,1000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/many-adapters"))
    given = parser.parse_args()
    lines = ["| adapters | | seconds | CPU seconds | to reading and averaging | peak MiB |"]
    lines += ["| ---: | --- | ---: | ---: | ---: | ---: |"]
    for count in map(int, given.adapters.split(",")):
        try:
            paths = make(given.folder / "in", count)
            taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
            for turn in range(given.repeats + 1):
                for name, command in COMMANDS.items():
                    found = run(command, paths, given.folder / "out")
                    if turn > 0:  # the first fills the cache
                        taken[name].append(found)
        finally:
            shutil.rmtree(given.folder, ignore_errors=True)
        reading = median(seconds for seconds, _, _ in taken["read and average"])
        for name, times in taken.items():
            wall, cpu, peak = (median(values) for values in zip(*times, strict=True))
            cells = [
                f"{count:,}",
                name,
                f"{wall:.1f}",
                f"{cpu:.1f}",
                f"{wall / reading:.1f}",
                f"{peak:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines)
    RESULTS.write_text(
        "# Many adapters\n\nMade by `python benchmarks/many_adapters.py`: median of "
        f"{given.repeats} runs in turn, start-up included; 64 modules of 4096 × 4096, rank 8, float32; "
        f"{os.cpu_count()} processors.\n\n{table}\n"
    )
    print(table)


if __name__ == "__main__":
    main()
