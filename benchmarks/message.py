"""What a message costs a node beside training: the process of a ClientApp from start to end, part by part.

    python benchmarks/message.py                  # seven fresh processes, the medians of their parts
    python benchmarks/message.py --bitsandbytes   # as for a base in 8 or 4 bits, which PEFT imports it for
    python benchmarks/message.py --collecting     # with Python's garbage collector as it is
    python benchmarks/message.py --model /path/to/model --repeats 3

On a Flower deployment every message starts a process anew. Each process here does what that one does, in the order in which
it does it, and says how many CPU seconds each part took; its data were tokenised and kept by a process before. The
quickstart's configuration, one thread. The table goes to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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
settings, state, bitsandbytes, collecting = json.loads(sys.argv[1])
done("Python")
import flwr.app, flwr.clientapp
done("import flwr")
from florana.garbage import importing, process_is_ours
if not collecting:
    process_is_ours()
from florana.config import load_config
config = load_config(None, settings)
done("configuration, import torch")
with importing("florana.experiments.node"):
    from florana.experiments.node import open_node
    from florana.training import load_libraries
done("import florana")
with importing("transformers"):
    import transformers, transformers.modeling_utils
done("import transformers")
load_libraries(bitsandbytes=bitsandbytes)
done("import peft")
node = open_node(config, {"partition-id": 0, "state": state, "threads": 1})
done("model, LoRA and cached examples")
print(json.dumps(marks))
"""


def one_process(*given: object) -> dict[str, float]:
    """The parts of one fresh process, CPU seconds each."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", PARTS, json.dumps(given)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    marks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    whole = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**marks, "end of the process": whole - sum(marks.values())}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--bitsandbytes", action="store_true")
    parser.add_argument("--collecting", action="store_true")
    given = parser.parse_args()
    settings = [f"model.name='{given.model}'"]
    with tempfile.TemporaryDirectory() as state:
        told = (settings, state, given.bitsandbytes, given.collecting)
        one_process(*told)  # tokenises and keeps the examples
        runs = [one_process(*told) for _ in range(given.repeats)]
    print("| part | CPU seconds |\n| --- | ---: |")
    for part in runs[0]:
        print(f"| {part} | {median(run[part] for run in runs):.2f} |")
    print(f"| all | {median(sum(run.values()) for run in runs):.2f} |")


if __name__ == "__main__":
    main()
