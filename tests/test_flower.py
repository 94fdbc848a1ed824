"""LoraStrategy in FedAvg's place: in an app of Flower's kind whose clients know nothing of florana."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file

from florana.aggregators import cards
from florana.errors import ConfigError, FederationError
from florana.federation.local_grid import LocalGrid
from florana.flower import LoraStrategy, fits_plain_clients
from florana.peft_io import adapter_to_config, adapter_to_state_dict
from tiny_models import WORDS, Kind
from toys import make_adapter

REPOSITORY = Path(__file__).resolve().parent.parent
APP = REPOSITORY / "examples" / "flowertune"

pytestmark = pytest.mark.usefixtures("quiet_flower")


@pytest.fixture
def flowertune(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example app, as Flower would import it."""
    monkeypatch.syspath_prepend(str(APP))
    yield
    for name in [name for name in sys.modules if name.startswith("flowertune_lora")]:
        del sys.modules[name]


def with_fedavg() -> ModuleType:
    """The example's server as it was before the difference that docs/flower.md shows."""
    source = (APP / "flowertune_lora" / "server_app.py").read_text()
    before = [line[1:] for line in diff_lines() if line.startswith("-")]
    after = [line[1:] for line in diff_lines() if line.startswith("+")]
    assert (len(before), len(after)) == (2, 3)
    for line in after:
        assert source.count(line + "\n") == 1, line
    source = source.replace(after[0], before[0]).replace(after[1], before[1])
    module = ModuleType("flowertune_lora.before")
    exec(compile(source.replace(after[2] + "\n", ""), "before.py", "exec"), module.__dict__)
    return module


def diff_lines() -> list[str]:
    """The difference in the documentation."""
    page = (REPOSITORY / "docs" / "flower.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```diff\n")[1:]]
    return [line for block in blocks for line in block.splitlines()]


def run_app(server: Any, kind: Kind, folder: Path) -> dict[str, torch.Tensor]:
    """The app on three clients in this process; the adapter that it saved."""
    from flowertune_lora.client_app import app as client_app  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, size=6)) for _ in range(30)]
    folder.mkdir()
    (folder / "lines.txt").write_text("\n".join(lines))
    config = {
        "num-server-rounds": 2,
        "fraction-train": 1.0,
        "model.name": str(kind.source.path),
        "model.targets": ",".join(kind.targets),
        "model.rank": 4,
        "model.alpha": 8,
        "data.path": str(folder / "lines.txt"),
        "train.steps": 2,
        "train.batch-size": 4,
        "train.max-length": 16,
        "train.learning-rate": 0.01,
        "save-to": str(folder / "final"),
    }
    context = Context(1, 1, {}, RecordDict(), config)
    server.app(grid=LocalGrid(client_app, 3, config), context=context)
    return load_file(folder / "final" / "adapter_model.safetensors")


def delta(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """B A of every module."""
    return {
        name: (state[name.replace("lora_A", "lora_B")] @ tensor).double()
        for name, tensor in state.items()
        if "lora_A" in name
    }


def test_three_lines_turn_fedavg_into_florana(
    flowertune: None, kinds: dict[str, Kind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example before and after the documented difference; as fedit it is FedAvg to rounding."""
    from flowertune_lora import server_app  # type: ignore[import-not-found]

    kind = kinds["decoder"]
    plain = run_app(with_fedavg(), kind, tmp_path / "before")
    ours = run_app(server_app, kind, tmp_path / "after")

    def fedit(**arguments: Any) -> LoraStrategy:
        return LoraStrategy(**arguments, method="fedit")

    monkeypatch.setattr(server_app, "LoraStrategy", fedit)
    same = run_app(server_app, kind, tmp_path / "same")
    assert plain.keys() == ours.keys() == same.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(same[name], tensor, rtol=1e-4, atol=1e-7)
    assert any(not torch.equal(d, delta(ours)[name]) for name, d in delta(plain).items())


def plain_client(change: Any = lambda _content: None) -> ClientApp:
    """A client that moves every tensor, then lets a fault into its reply if it is number 1."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        own = int(context.node_config["partition-id"])
        rng = np.random.default_rng(own)
        arrays = {
            name: Array((a.numpy() + rng.normal(0, 0.1, a.shape)).astype(np.float32))
            for name, a in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": 10 * (own + 1), "loss": float(own)})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        if own == 1:
            change(content)
        return Message(content, reply_to=message)

    return app


def federated(app: ClientApp, **options: Any) -> Any:
    """Two rounds of three clients."""
    adapter = make_adapter()
    config = adapter_to_config(adapter)
    config = {**config, "modules_to_save": ["classifier"]}
    strategy = LoraStrategy(peft_config=config, fraction_evaluate=0.0, **options)
    arrays = ArrayRecord(adapter_to_state_dict(adapter))
    return strategy.start(LocalGrid(app, 3), arrays, num_rounds=2)


@pytest.mark.parametrize("method", [name for name in cards() if fits_plain_clients(name)])
def test_every_method_that_fits_keeps_names_and_shapes(method: str) -> None:
    """So that set_peft_model_state_dict takes what comes back, in every round."""
    result = federated(plain_client(), method=method)
    wanted = adapter_to_state_dict(make_adapter())
    made = result.arrays.to_torch_state_dict()
    assert {n: t.shape for n, t in made.items()} == {n: t.shape for n, t in wanted.items()}
    assert result.train_metrics_clientapp[2]["loss"] == pytest.approx((20 * 1 + 30 * 2) / 60)
    assert result.train_metrics_clientapp[2]["aggregation-error"] >= 0


@pytest.mark.parametrize("method", ["fedsa-lora", "flora", "centralised", "rolora"])
def test_a_method_that_needs_other_clients_is_refused(method: str) -> None:
    """With the names of those that can be used."""
    with pytest.raises(ConfigError, match=rf"{method} needs clients[\s\S]*florana-opt"):
        LoraStrategy(peft_config={}, method=method)


def spoil(content: RecordDict) -> None:
    """NaN in one tensor."""
    name = next(iter(content["arrays"]))
    numbers = content["arrays"][name].numpy().copy()
    numbers.flat[0] = np.nan
    content["arrays"][name] = Array(numbers)


def lose_one(content: RecordDict) -> None:
    """A module less."""
    for name in [name for name in content["arrays"] if "encoder.query" in name]:
        del content["arrays"][name]


@pytest.mark.parametrize(
    "change",
    [spoil, lose_one, lambda c: c["metrics"].pop("num-examples"), lambda c: c.pop("arrays")],
    ids=["NaN", "a module less", "no num-examples", "no arrays"],
)
def test_a_faulty_reply_is_left_out_and_the_others_count(change: Any) -> None:
    """The result is that of the two others, which FedAvg's mean of their metrics shows too."""
    result = federated(plain_client(change), method="fedit")
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(30 * 2 / 40)
    assert all(torch.isfinite(t).all() for t in result.arrays.to_torch_state_dict().values())


def test_a_round_without_a_usable_reply_stops_the_run() -> None:
    """FedAvg would keep the old arrays and say that all is well."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise OSError("no data here")

    with pytest.raises(FederationError, match=r"no usable reply[\s\S]*node 1000: .*no data here"):
        federated(app)
    assert issubclass(LoraStrategy, FedAvg)
