"""The server: Flower's usual loop, with florana's strategy where FedAvg was."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from florana.flower import LoraStrategy
from flowertune_lora.model import get_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Federated rounds, then the adapter as a PEFT folder."""
    model = get_model(context.run_config)
    strategy = LoraStrategy(
        peft_config=model.peft_config["default"],
        fraction_train=float(context.run_config["fraction-train"]),
        fraction_evaluate=0.0,
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(model)),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
    set_peft_model_state_dict(model, result.arrays.to_torch_state_dict())
    model.save_pretrained(str(context.run_config["save-to"]))
