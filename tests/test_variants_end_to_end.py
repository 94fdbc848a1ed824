"""DoRA and HiRA in PEFT's folders, on the wire, in training, and in whole runs."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import florana
from crash import SMALL
from florana.adapter import EVERYTHING, Adapter, ClientUpdate
from florana.aggregators import aggregate
from florana.config import LoraConfig, RunConfig, Variant, load_config
from florana.errors import AdapterError, AggregationError
from florana.experiments import runner
from florana.experiments.events import Event, RoundRow
from florana.experiments.run_folder import RunFolder
from florana.experiments.setup import prepare
from florana.federation.records import Held, pack, unpack
from florana.federation.strategy import LoraStrategy
from florana.lowrank import Product
from florana.training.base_model import ModelSource
from florana.training.lora_model import LoraModel
from strategies import assert_near, dense

VARIANTS: tuple[Variant, ...] = ("dora", "hira")
SOURCE = ModelSource("toy", Path(), "00")
CPU = torch.device("cpu")
RESIDUAL_WIDTH = 2


class Toy(nn.Module):
    """Two linear layers with a bias, of which one is adapted, and a head."""

    fresh_modules = ("head",)
    task_type = "SEQ_CLS"

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "toy"}
        self.query = nn.Linear(7, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Answers (n, 3) to inputs (n, 7)."""
        hidden: Tensor = self.head(torch.tanh(self.query(x)))
        return hidden

    def prepare_inputs_for_generation(self) -> None:
        """Looked for by PEFT."""


def base() -> Toy:
    """The same base model every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Toy()


def toy(variant: Variant, rank: int = 2) -> LoraModel:
    """The base model with an adapter of a variant."""
    alpha = rank if variant == "hira" else 3.0
    config = LoraConfig(variant=variant, rank=rank, alpha=alpha, target_modules=("query",))
    return LoraModel(base(), SOURCE, config, 1, CPU)


def moved(adapter: Adapter, seed: int) -> Adapter:
    """The adapter with noise on every tensor, as after training."""
    g = torch.Generator().manual_seed(seed)
    tensors = adapter.tensors()
    return adapter.with_tensors(
        {n: t + 0.3 * torch.randn(t.shape, generator=g) for n, t in tensors.items()}
    )


def residual(seed: int) -> dict[str, Product]:
    """Something that earlier rounds added to the base."""
    g = torch.Generator().manual_seed(seed)
    B, A = torch.randn(5, RESIDUAL_WIDTH, generator=g), torch.randn(RESIDUAL_WIDTH, 7, generator=g)
    return {"query": Product(0.2 * B, 0.2 * A)}


def logits(model: nn.Module) -> Tensor:
    """The answers of a model to fixed inputs."""
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        answers: Tensor = model.eval().get_submodule("base_model.model")(x)
    return answers


def expected_logits(adapter: Adapter, F: Tensor | None = None) -> Tensor:
    """The same from the whole weight, worked out from the papers' formulas in float64."""
    model, pair = base().double(), adapter.pairs["query"]
    W = model.query.weight.detach()
    F = torch.zeros_like(W) if F is None else F
    product = pair.B.double() @ pair.A.double()
    if pair.magnitude is None:
        whole = W * (1 + F + product)
    else:
        V = W + F + pair.alpha / pair.rank * product
        whole = (pair.magnitude.double() / V.norm(dim=1))[:, None] * V
    with torch.no_grad():
        model.query.weight.copy_(whole)
        model.head.weight.copy_(adapter.extras["head.weight"])
        model.head.bias.copy_(adapter.extras["head.bias"])
        return model(torch.randn(4, 7, generator=torch.Generator().manual_seed(9)).double()).float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_computes_the_formula_with_and_without_a_residual(variant: Variant) -> None:
    """D(W + F + sBA), or W ⊙ (1 + F + BA): F on, another F, F off, and the loaded adapter comes back out."""
    model = toy(variant)
    first, second = moved(model.initial, 1), moved(model.initial, 2)
    W = base().query.weight.detach()
    for adapter, F in ((first, None), (first, residual(3)), (second, residual(4)), (second, None)):
        model.load(adapter, F)
        assert_near(
            logits(model.module), expected_logits(adapter, dense(F["query"]) if F else None), 1e-5
        )
        out = model.take()
        assert all(torch.equal(t, out.tensors()[n]) for n, t in adapter.tensors().items())
        assert torch.equal(model.base_weights["query"], W)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_what_is_trained_and_only_that(variant: Variant) -> None:
    """All parts are trained by default, magnitudes included; a plan without them leaves them frozen."""
    model = toy(variant)
    model.load(moved(model.initial, 1), residual(3))
    model.train_only(EVERYTHING)
    model.module.get_submodule("base_model.model")(torch.ones(2, 7)).square().sum().backward()
    names = [n for n, p in model.module.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(names) == len(model.initial.tensors())
    assert len(model.parameters) == len(names)
    model.train_only({"heads"})
    assert len(model.parameters) == 2


def test_a_model_refuses_another_variant() -> None:
    """Factors of one variant are not read as another's."""
    with pytest.raises(AdapterError, match="query is hira, expected dora"):
        toy("dora").load(toy("hira").initial)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_below_the_models_own(variant: Variant) -> None:
    """A client of a smaller rank is served by the same model, with the same answers as its own formula."""
    model = toy(variant, rank=4)
    small = moved(toy(variant, rank=2).initial, 1)
    pair = small.pairs["query"]
    if variant == "dora":
        small = replace(small, pairs={"query": replace(pair, alpha=1.5)})  # s = 0.75, the model's
    model.load(small)
    assert_near(logits(model.module), expected_logits(small), 1e-5)
    assert model.take().pairs["query"].rank == 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_folders_round_trip_with_peft(variant: Variant, tmp_path: Path) -> None:
    """What PEFT wrote we read, what we wrote PEFT reads, with the same tensors and answers."""
    model = toy(variant)
    model.load(moved(model.initial, 1))
    whole: Any = model.module
    whole.save_pretrained(str(tmp_path / "theirs"))
    adapter = florana.load_adapter(tmp_path / "theirs")
    assert adapter.pairs["query"].variant == variant
    assert all(torch.equal(t, adapter.tensors()[n]) for n, t in model.take().tensors().items())
    florana.save_adapter(adapter, tmp_path / "ours")
    again = florana.load_adapter(tmp_path / "ours")
    assert all(torch.equal(t, again.tensors()[n]) for n, t in adapter.tensors().items())
    theirs, ours = (
        safetensors.torch.load_file(tmp_path / who / "adapter_model.safetensors")
        for who in ("theirs", "ours")
    )
    assert theirs.keys() == ours.keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT only warns of missing keys
        loaded = peft.PeftModel.from_pretrained(base(), str(tmp_path / "ours"))
    assert torch.equal(logits(loaded), logits(model.module))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["florana-opt", "ideal"])
def test_peft_merges_the_result_into_the_mean_of_what_it_merges_from_clients(
    variant: Variant, method: str, tmp_path: Path
) -> None:
    """PEFT itself as the oracle, over two rounds: the merged global weight is the mean of the clients' merged ones."""
    model = toy(variant, rank=5)
    begun, F, state = model.initial, None, None
    weights = model.base_weights
    for server_round in (1, 2):
        updates, whole = [], []
        for u in range(2):
            adapter = moved(begun, 10 * server_round + u)
            updates.append(ClientUpdate(f"{u}", 1, adapter))
            alone = aggregate([updates[u]], "ideal", base_weights=weights, state=state).adapter
            whole.append(merged_weight(alone, tmp_path / f"{server_round}{u}"))
        result = aggregate(updates, method, base_weights=weights, state=state)
        made = merged_weight(result.adapter, tmp_path / f"{server_round}")
        assert_near(made, torch.stack(whole).mean(dim=0), 1e-5)
        first = state or florana.aggregators.GlobalState(model.initial, model.initial)
        state = first.after(result)
        begun, F = state.adapter, state.residual
    assert bool(F) == (method == "ideal")


def merged_weight(adapter: Adapter, folder: Path) -> Tensor:
    """The whole weight after PEFT has loaded a folder of ours and merged it."""
    florana.save_adapter(adapter, folder)
    merged: Any = peft.PeftModel.from_pretrained(base(), str(folder))
    weight: Tensor = merged.merge_and_unload().query.weight.detach()
    return weight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": "lora_magnitude_vector"}, ["query", "lora_magnitude_vector", "DoRA"]),
        ({"use_dora": False}, ["lora_magnitude_vector", "use_dora"]),
        ({"rank": "hira", "lora_alpha": 4}, ["lora_alpha is 4", "HIRA"]),
        ({"rank": "hira", "peft_type": "LORA", "lora_alpha": 4}, ["hira_A", "HiRA"]),
        ({"rank": "hira", "hira_dropout": 3}, ["hira_dropout is 3"]),
        ({"rank": "hira", "init_weights": "pissa"}, ["init_weights is 'pissa'"]),
        ({"rank": "hira", "r": 3}, ["rank 2", "expected 3"]),
        ({"hira_dropout": 0.1}, ["hira_dropout is 0.1", "LORA"]),
        ({"shape": (2, 5)}, ["magnitude", "(2, 5)"]),
    ],
)
def test_faults_of_a_folder_are_refused(change: dict[str, Any], words: list[str]) -> None:
    """Settings and tensors that do not belong to one variant are refused by name."""
    change = dict(change)
    variant: Variant = "hira" if change.pop("rank", "") else "dora"
    adapter = toy(variant).initial
    state = florana.peft_io.adapter_to_state_dict(adapter)
    config = florana.peft_io.adapter_to_config(adapter)
    dropped, shape = change.pop("drop", None), change.pop("shape", None)
    state = {k: v for k, v in state.items() if dropped is None or dropped not in k}
    if shape:
        state["base_model.model.query.lora_magnitude_vector"] = torch.ones(shape)
    with pytest.raises(AdapterError) as caught:
        florana.peft_io.adapter_from_state_dict(state, {**config, **change})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_records_carry_the_variant(variant: Variant) -> None:
    """All tensors arrive bit for bit; magnitudes can be left out where they are held; other variants are refused."""
    adapter = moved(toy(variant).initial, 1)
    held = Held(moved(adapter, 2))
    came = unpack(pack(adapter), held.adapter).adapter
    assert came.variant == variant
    assert all(torch.equal(t, came.tensors()[n]) for n, t in adapter.tensors().items())
    content = pack(adapter, parts=EVERYTHING - {"magnitude"})
    came = unpack(content, held.adapter, held).adapter
    for name, tensor in adapter.tensors().items():
        expected = held.adapter.tensors()[name] if name.endswith("magnitude") else tensor
        assert torch.equal(came.tensors()[name], expected)
    with pytest.raises(AdapterError, match=f"query has variant '{variant}', expected 'lora'"):
        unpack(pack(adapter), toy("lora").initial)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_strategy_wants_the_weights_at_once(variant: Variant) -> None:
    """Not after a round of training, but when it is made."""
    model = toy(variant)
    with pytest.raises(AggregationError, match="base_weights"):
        LoraStrategy(model.initial, "ideal")
    LoraStrategy(model.initial, "ideal", base_weights=model.base_weights)


def small(output: Path, variant: Variant, method: str) -> RunConfig:
    """The quickstart in small on a little file, with enough steps for clients to disagree."""
    source = output.parent / "texts.jsonl"
    words = ("red", "round", "loud", "far")
    rows = [{"text": f"{words[i % 4]} thing {i}", "label": words[i % 4]} for i in range(120)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [f'output="{output}"', f'data.source="{source}"', "training.steps=2"]
    more += ["federation.rounds=2", f"lora.variant={variant}", f"method.name={method}"]
    return load_config(None, [*SMALL, *more])


class InterruptedRunError(Exception):
    """Stands for a kill between two rounds."""


@pytest.mark.usefixtures("minilm")
@pytest.mark.parametrize(("variant", "method"), [("dora", "ideal"), ("hira", "ideal")])
def test_a_run_resumes_and_its_result_is_peft_s(
    variant: Variant, method: str, tmp_path: Path
) -> None:
    """InterruptedRunError after round 1 and resumed a run ends with the same bits; PEFT gives our model's answers."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    events: list[Event] = []
    runner.start(small(unbroken, variant, method), events.append)
    rows = [e for e in events if isinstance(e, RoundRow) and e.server_round]
    assert all(r.error_used is not None and r.error_used < 1e-5 for r in rows)
    assert rows[-1].error_average is not None
    assert rows[-1].error_average > 1e-3

    def interrupt(event: Event) -> None:
        if isinstance(event, RoundRow) and event.server_round == 1:
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        runner.start(small(broken, variant, method), interrupt)
    runner.resume(broken, lambda _e: None)
    for name in ("metrics.jsonl", "checkpoint.safetensors", "final/adapter_model.safetensors"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes(), name

    experiment = prepare(small(tmp_path / "unused", variant, method))
    checkpoint = RunFolder.open(unbroken).read_checkpoint(experiment.first)
    assert checkpoint is not None
    experiment.model.load(checkpoint.state.adapter, checkpoint.state.residual)
    inputs, _ = experiment.test.batch(np.arange(8), CPU)
    with torch.no_grad():
        ours = experiment.model.module.eval()(**inputs).logits
        theirs = florana.load_model(unbroken)(**inputs).logits
    assert_near(theirs, ours, 1e-5)
