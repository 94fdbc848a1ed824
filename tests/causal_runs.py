"""Short federations of stories260k, and four speakers of Shakespeare for them."""

from __future__ import annotations

import json
from pathlib import Path

from causal_models import stories_folder
from florana.config import load_config
from florana.experiments import runner
from florana.experiments.events import Event, RoundRow, Summary
from florana.tasks.plain_text import read

SHORT = [
    "threads=1",
    "device=cpu",
    "data.family=causal",
    "lora.target_modules=['q_proj','v_proj']",
    "federation.rounds=2",
    "federation.partition=column",
    "training.steps=4",
    "training.batch_size=8",
    "training.learning_rate=0.01",
]


def run(output: Path, *settings: str) -> tuple[Summary, list[Event]]:
    """Do a short run; how it ended and what it told."""
    events: list[Event] = []
    config = load_config(None, [*SHORT, f"output='{output}'", *settings])
    return runner.start(config, events.append), events


def losses(events: list[Event]) -> list[float]:
    """Loss of the global model on held-out text, round 0 first."""
    return [event.loss for event in events if isinstance(event, RoundRow)]


def speakers(data_root: Path, folder: Path, count: int = 4) -> list[str]:
    """What four speakers of Shakespeare say, short pieces of it, as settings of a run."""
    rows = read(data_root / "lm" / "tinyshakespeare.txt", block=120)
    names = ["ROMEO", "JULIET", "MENENIUS", "PETRUCHIO"][:count]
    chosen = [row for name in names for row in [r for r in rows if r["speaker"] == name][:40]]
    file = folder / "play.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return [
        f"model.name='{stories_folder()}'",
        "model.max_length=96",
        f"data.source='{file}'",
        "data.response='{text}'",
        f"federation.clients={count}",
        "federation.column=speaker",
    ]
