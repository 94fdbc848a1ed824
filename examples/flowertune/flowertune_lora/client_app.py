"""The clients: they know PEFT and Flower, and nothing of florana."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoTokenizer

from flowertune_lora.model import get_model

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Some steps from the global adapter on this client's own lines."""
    own = int(context.node_config["partition-id"])
    count = int(context.node_config["num-partitions"])
    lines = Path(str(context.run_config["data.path"])).read_text("utf-8").splitlines()[own::count]
    model = get_model(context.run_config)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    loss = fine_tune(model, lines, context)
    content = RecordDict(
        {
            "arrays": ArrayRecord(get_peft_model_state_dict(model)),
            "metrics": MetricRecord({"num-examples": len(lines), "train-loss": loss}),
        }
    )
    return Message(content, reply_to=message)


def fine_tune(model: PeftModel, lines: list[str], context: Context) -> float:
    """Plain training on the next token; the mean loss."""
    config = context.run_config
    tokenizer = AutoTokenizer.from_pretrained(config["model.name"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=float(config["train.learning-rate"])
    )
    size, steps = int(config["train.batch-size"]), int(config["train.steps"])
    texts, total = cycle(lines), 0.0
    for _ in range(steps):
        inputs = tokenizer(
            list(islice(texts, size)),
            padding=True,
            truncation=True,
            max_length=int(config["train.max-length"]),
            return_tensors="pt",
        )
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        loss = model(
            input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
    return total / steps
