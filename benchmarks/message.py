"""What a message costs a node beside training: the start of a ClientApp's process, part by part.

    python benchmarks/message.py            # seven fresh processes, the medians of their parts
    python benchmarks/message.py --model /path/to/model --repeats 3

On a Flower deployment every message starts a process anew. Each process here does what that one does, in the order in which
it does it, and says how many CPU seconds each part took; its data were tokenised and kept by a process before. The
quickstart's configuration, one thread. The table goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from statistics import median

PARTS = """
import json, sys, time
marks, last = {}, 0.0
def done(part):
    global last
    now = time.process_time()
    marks[part] = now - last
    last = now
done("Python")
import torch
done("import torch")
import flwr.app, flwr.clientapp
done("import flwr")
import transformers, transformers.modeling_utils
done("import transformers")
import peft
done("import peft")
from florana.config import load_config
from florana.experiments.node import open_node
done("import florana")
settings, state = json.loads(sys.argv[1]), sys.argv[2]
config = load_config(None, settings)
done("configuration")
node = open_node(config, {"partition-id": 0, "state": state, "threads": 1})
done("model, LoRA and cached examples")
print(json.dumps(marks))
"""


def one_process(settings: list[str], state: str) -> dict[str, float]:
    """The parts of one fresh process, CPU seconds each."""
    done = subprocess.run(
        [sys.executable, "-c", PARTS, json.dumps(settings), state],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    marks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return marks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    settings = [f"model.name='{given.model}'"]
    with tempfile.TemporaryDirectory() as state:
        one_process(settings, state)  # tokenises and keeps the examples
        runs = [one_process(settings, state) for _ in range(given.repeats)]
    print("| part | CPU seconds |\n| --- | ---: |")
    for part in runs[0]:
        print(f"| {part} | {median(run[part] for run in runs):.2f} |")
    print(f"| all | {median(sum(run.values()) for run in runs):.2f} |")


if __name__ == "__main__":
    main()
