"""One contestant of benchmarks/rounds.py trains the clients of a round, in a process of its own; prints one line of JSON.

python benchmarks/rounds_worker.py peft --clients 8 --model minilm --steps 8 --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch.utils.data import DataLoader

from florana.adapter import Plan
from florana.config import RunConfig, load_config
from florana.experiments.setup import Experiment, prepare
from florana.seeding import torch_seed
from florana.training import together
from florana.training.base_model import build_model, find_model, load_tokenizer
from florana.training.loop import Place, train

DECODER: dict[str, Any] = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
}
"""A Llama of 22 M parameters, of which 12 M are its embeddings."""


def write_decoder(folder: Path) -> None:
    """A random Llama with MiniLM's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer: Any = load_tokenizer(find_model("minilm"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size: Any = {**DECODER, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    LlamaForCausalLM(LlamaConfig(**size, tie_word_embeddings=True)).save_pretrained(folder)


def settings(given: argparse.Namespace, folder: Path) -> RunConfig:
    """The quickstart's configuration for this model and number of clients."""
    chosen = [
        f"federation.clients={given.clients}",
        f"training.steps={given.steps}",
        f"training.batch_size={given.batch_size}",
        f"threads={given.threads}",
        f"output='{folder / 'run'}'",
        "device=cpu",
    ]
    if given.model == "decoder":
        write_decoder(folder / "decoder")
        chosen += [
            f"model.name='{folder / 'decoder'}'",
            "lora.target_modules=['q_proj', 'v_proj']",
        ]
    return load_config(None, chosen)


def one_by_one(experiment: Experiment, clients: int) -> None:
    """florana, one client after the other."""
    model, config = experiment.model, experiment.config
    for client in range(clients):
        model.load(model.initial)
        place = Place(config.seed, 1, config.federation.rounds, client)
        train(
            model,
            experiment.clients[client].train,
            experiment.objective,
            experiment.training,
            place,
        )
        model.take()


def at_once(experiment: Experiment, clients: int) -> None:
    """florana, all clients in one pass of the base."""
    model, config = experiment.model, experiment.config
    jobs = []
    for client in range(clients):
        model.load(model.initial)
        place = Place(config.seed, 1, config.federation.rounds, client)
        jobs.append(together.Job(together.held(model), experiment.clients[client].train, place))
    found = together.fit(model, experiment.clients[0].train)
    if found.reason is not None:
        raise SystemExit(found.reason)
    done = together.train_together(
        model,
        jobs,
        experiment.objective,
        experiment.training,
        Plan().train,
        found=found,
    )
    for made in done:
        model.load(model.initial)
        together.put(model, made.tensors)
        model.take()


class Plain:
    """A PEFT loop as one writes it: a DataLoader and an AdamW per client, state dicts in and out."""

    def __init__(self, experiment: Experiment) -> None:
        import peft

        config = experiment.config
        source = find_model(config.model.name)
        seed = torch_seed(config.seed, "head")
        base: Any = build_model(source, config.model, experiment.objective.head, seed)
        settings = peft.LoraConfig(
            r=config.lora.rank,
            lora_alpha=int(config.lora.alpha),
            target_modules=list(config.lora.target_modules),
            modules_to_save=list(base.fresh_modules) or None,
            task_type=base.task_type,
        )
        self.peft, self.model = peft, peft.get_peft_model(base, settings)
        self.start = {k: v.clone() for k, v in peft.get_peft_model_state_dict(self.model).items()}

    def __call__(self, experiment: Experiment, clients: int) -> None:
        """Train the clients of a round."""
        config = experiment.training
        for client in range(clients):
            self.peft.set_peft_model_state_dict(self.model, self.start)
            examples = experiment.clients[client].train
            rows = list(zip(examples.token_ids, examples.labels, strict=True))

            def collate(batch: list[Any], pad: int = examples.pad_id) -> dict[str, torch.Tensor]:
                ids = [row for row, _ in batch]
                padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
                lengths = torch.tensor([len(row) for row in ids])
                mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
                labels = torch.stack([label for _, label in batch])
                return {"input_ids": padded, "attention_mask": mask, "labels": labels}

            loader: Any = DataLoader(
                rows,  # type: ignore[arg-type]
                batch_size=config.batch_size,
                shuffle=True,
                drop_last=len(rows) >= config.batch_size,
                collate_fn=collate,
            )
            trained = [p for p in self.model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
            self.model.train()
            step = 0
            while step < (config.steps or 1):
                for batch in loader:
                    labels = batch.pop("labels")
                    logits = self.model(**batch).logits
                    loss = torch.nn.functional.cross_entropy(logits, labels)
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(trained, config.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                    step += 1
                    if step == config.steps:
                        break
            self.peft.get_peft_model_state_dict(self.model)


def simulated(config: RunConfig) -> dict[str, float]:
    """A second round on Flower's simulation: wall time with the messages, without the server's tests."""
    from florana.experiments import runner
    from florana.experiments.events import Event

    federation = config.federation.model_copy(update={"engine": "simulation", "rounds": 2})

    def watch(_event: Event) -> None:
        pass

    runner.start(config.model_copy(update={"federation": federation}), watch)
    lines = (Path(str(config.output)) / "timings.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    return {"seconds": last["training"] + last["federation"]}


def measure(work: Callable[[Experiment, int], None], config: RunConfig) -> dict[str, float]:
    """Seconds and CPU seconds of a round, after a first one of a single client."""
    experiment = prepare(config)
    if work is plain:
        work = Plain(experiment)
    work(experiment, 1)
    wall, cpu = time.perf_counter(), time.process_time()
    work(experiment, len(experiment.clients))
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def plain(experiment: Experiment, clients: int) -> None:
    """Stands for :class:`Plain`, which needs a model of its own."""
    raise NotImplementedError


CONTESTANTS: dict[str, Callable[[Experiment, int], None]] = {
    "peft": plain,
    "one by one": one_by_one,
    "at once": at_once,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("contestant", choices=[*CONTESTANTS, "simulation"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--model", choices=["minilm", "decoder"], default="minilm")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(given, Path(folder))
        if given.contestant == "simulation":
            made = simulated(config)
        else:
            made = measure(CONTESTANTS[given.contestant], config)
    examples = given.clients * given.steps * given.batch_size
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    told = {**vars(given), **made, "examples": examples, "peak_megabytes": peak / 1024}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
