"""The causal objective against sums written out: loss on responses alone, perplexity, accuracy, exact match."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from causal_models import CAUSAL, CPU, letters_model, lora_model, responses, stories, tokenizer_of
from florana.config import LoraConfig, ModelConfig, RunConfig, check_config
from florana.errors import ConfigError, DataError, ModelError
from florana.tasks.metrics import METRICS
from florana.training.base_model import ModelSource, build_model
from florana.training.examples import Examples
from florana.training.lora_model import LoraModel
from florana.training.objectives import build
from florana.training.objectives.causal import Causal
from strategies import few

PAIRS = [("1+1=", "2"), ("what is 3-1? ", "it is 2."), ("a", "bcdefg"), ("hello, ", "you")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A tiny random Llama that knows letters; its tokenizer has no padding token."""
    return letters_model(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def model(source: ModelSource) -> LoraModel:
    """The same with LoRA, its factors anything."""
    made = lora_model(source)
    g = torch.Generator().manual_seed(1)
    shaken = {n: 0.2 * torch.randn(t.shape, generator=g) for n, t in made.take().tensors().items()}
    made.load(made.initial.with_tensors(shaken))
    return made


def toy(source: ModelSource, pairs: Sequence[tuple[str, str]] = PAIRS, **settings: Any) -> Examples:
    """Pairs as examples of an objective with these settings."""
    data = responses(list(pairs), settings.pop("references", None))
    return Causal(source, **settings).tokenize(data, tokenizer_of(source), 64)


def token_losses(model: LoraModel, ids: Tensor, prompt: int) -> list[float]:
    """−log p of each response token, one example alone, summed over the vocabulary in float64."""
    with torch.no_grad():
        logits = model.module.eval()(input_ids=ids[None]).logits[0].double()
    return [
        float(torch.logsumexp(logits[k - 1], 0) - logits[k - 1, ids[k]])
        for k in range(prompt, len(ids))
    ]


def test_the_loss_is_the_mean_over_response_tokens(source: ModelSource, model: LoraModel) -> None:
    """Whatever the prompts and the padding beside them are: the mean over all response tokens of the batch."""
    examples = toy(source)
    inputs, labels = examples.batch(np.arange(len(PAIRS)), CPU)
    with torch.no_grad():
        logits = model.module.eval()(**inputs).logits
    assert examples.prompts is not None
    counts = examples.prompts.tolist()
    alone = [token_losses(model, i, n) for i, n in zip(examples.token_ids, counts, strict=True)]
    every = [loss for example in alone for loss in example]
    assert len(every) == sum(len(response) + 1 for _, response in PAIRS)
    assert float(Causal(source).loss(logits, labels)) == pytest.approx(np.mean(every), rel=1e-5)


@few
@given(st.integers(0, 2**32 - 1), st.data())
def test_the_loss_reads_kept_logits_alone(seed: int, data: st.DataObject) -> None:
    """Logits of the last k positions give the same loss as all, if all response tokens are said there; grad stays inside."""
    g = torch.Generator().manual_seed(seed)
    n, t, v = 3, data.draw(st.integers(2, 7)), 5
    first = data.draw(st.integers(1, t - 1))
    logits = torch.randn(n, t, v, generator=g, requires_grad=True)
    labels = torch.randint(v, (n, t), generator=g)
    labels[:, :first] = -100
    objective = Causal(ModelSource("none", Path(), ""))
    whole = objective.loss(logits, labels)
    kept = objective.loss(logits[:, first - 1 :], labels)
    assert torch.equal(whole, kept)
    (gradient,) = torch.autograd.grad(whole, logits)
    assert not gradient[:, : first - 1].any()
    assert not gradient[:, -1].any()
    assert bool(gradient[:, first - 1 : -1].any(dim=-1).all())


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_perplexity_weighs_tokens(source: ModelSource, model: LoraModel, batch_size: int) -> None:
    """Exp of the mean over response tokens, not of the mean over examples, for every size of batch."""
    examples = toy(source)
    assert examples.prompts is not None
    counts = examples.prompts.tolist()
    losses = [token_losses(model, i, n) for i, n in zip(examples.token_ids, counts, strict=True)]
    mean = np.mean([loss for example in losses for loss in example])
    score = Causal(source, batch_size=batch_size).evaluate(model, examples)
    assert score.loss == pytest.approx(mean, rel=1e-5)
    assert score.value == pytest.approx(math.exp(mean), rel=1e-4)
    assert score.examples == len(PAIRS)
    with torch.no_grad():
        hits = [
            int(model.module(input_ids=ids[None]).logits[0, k - 1].argmax() == ids[k])
            for ids, n in zip(examples.token_ids, counts, strict=True)
            for k in range(n, len(ids))
        ]
    assert score.others == {"token_accuracy": pytest.approx(np.mean(hits))}


def test_what_is_written_is_held_against_the_references(
    source: ModelSource, model: LoraModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scorer gets each prompt's own text and its own reference; the share that it accepts is the metric."""
    metrics = (METRICS["exact_match"], METRICS["perplexity"])
    objective = Causal(source, metrics, "number", max_new_tokens=5)
    examples = toy(source, references=["r0", "r1", "r2", "r3"], scorer="number")
    written = objective.write(model, examples)
    seen: list[tuple[Sequence[str], Sequence[str]]] = []

    def scorer(texts: Sequence[str], references: Sequence[str]) -> list[bool]:
        seen.append((texts, references))
        return [reference != "r1" for reference in references]

    monkeypatch.setattr("florana.tasks.scorers.SCORERS", {"number": scorer})
    score = objective.evaluate(model, examples.take(np.array([3, 1, 0])))
    assert score.value == pytest.approx(2 / 3)
    assert score.others.keys() == {"perplexity"}
    assert seen == [([written[3], written[1], written[0]], ("r3", "r1", "r0"))]


def test_the_real_model_reads_a_story_better_than_noise() -> None:
    """stories260k: a child's story has less than a tenth of the perplexity of the same words in disorder."""
    real = stories()
    words = [
        "Once",
        "upon",
        "a",
        "time,",
        "there",
        "was",
        "a",
        "little",
        "girl",
        "named",
        "Lily.",
        "She",
        "loved",
        "to",
        "play",
        "with",
        "her",
        "mom.",
    ]
    disorder = np.random.default_rng(0).permutation(words)
    examples = [toy(real, [("", " ".join(w))]) for w in (words, disorder)]
    model = lora_model(real)
    story, noise = (Causal(real).evaluate(model, e).value for e in examples)
    assert story < noise / 10


# What is told before training


def run_config(**data: Any) -> RunConfig:
    """A causal run's configuration."""
    settings = {"family": "causal", "source": "x.jsonl", "response": "{text}", **data}
    allow = settings.pop("allow_code", False)
    return check_config({"data": settings, "evaluation": {"allow_code": allow}})


@pytest.mark.parametrize(
    ("data", "metrics", "scorer"),
    [
        ({}, ("perplexity", "token_accuracy"), None),
        ({"metric": "token_accuracy"}, ("token_accuracy", "perplexity"), None),
        (
            {"scorer": "number", "reference": "{a}"},
            ("exact_match", "perplexity", "token_accuracy"),
            "number",
        ),
        (
            {"scorer": "number", "reference": "{a}", "metric": "perplexity"},
            ("perplexity", "token_accuracy"),
            None,
        ),
        (
            {"scorer": "program", "reference": "{a}", "allow_code": True},
            ("pass@1", "perplexity", "token_accuracy"),
            "program",
        ),
    ],
)
def test_the_metric_decides_whether_answers_are_written(
    source: ModelSource, data: dict[str, Any], metrics: tuple[str, ...], scorer: str | None
) -> None:
    """With a scorer the written answers judge, unless data.metric says perplexity; then none are written."""
    made = build(run_config(**data), 0, source)
    assert isinstance(made, Causal)
    assert tuple(metric.name for metric in made.metrics) == metrics
    assert made.scorer == scorer
    assert made.head == CAUSAL


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"metric": "exact_match"}, "'exact_match' is none of family 'causal'.*data.scorer"),
        ({"metric": "accuracy"}, "'accuracy' is none of family 'causal'; known: perplexity"),
        ({"scorer": "program", "reference": "{a}"}, "allow it with evaluation.allow_code = true"),
    ],
)
def test_a_metric_that_cannot_be_had_is_told(
    source: ModelSource, data: dict[str, Any], message: str
) -> None:
    """Before anything is trained, with the key to set."""
    with pytest.raises(ConfigError, match=message):
        build(run_config(**data), 0, source)


def test_missing_responses_or_references_are_told(source: ModelSource) -> None:
    """Data of another family, or a scorer with nothing to hold an answer against."""
    tokenizer, data = tokenizer_of(source), responses(PAIRS)
    bare = replace(data, responses=None, labels=np.arange(len(PAIRS)))
    with pytest.raises(DataError, match=r"no responses to learn from; set data\.response"):
        Causal(source).tokenize(bare, tokenizer, 64)
    with pytest.raises(DataError, match=r"scorer 'number' needs data\.reference"):
        Causal(source, scorer="number").tokenize(data, tokenizer, 64)


def test_cuts_are_counted_and_told(source: ModelSource) -> None:
    """How many of how many, at which length, and which end was cut."""
    examples = Causal(source).tokenize(responses(PAIRS), tokenizer_of(source), 8)
    assert examples.notes == (
        "toy: 3 of 4 examples are longer than model.max_length = 8 tokens and lose tokens on the left of their prompt",
        "toy: 1 of 4 examples are longer than model.max_length = 8 tokens and have a response that is cut on its right",
    )
    assert toy(source).notes == ()


@pytest.mark.parametrize(
    ("kind", "message"),
    [(BertModel, "has no weights for cls"), (BertForMaskedLM, "depends on the tokens after it")],
)
def test_a_model_that_cannot_write_is_told(tmp_path: Path, kind: Any, message: str) -> None:
    """An encoder, with or without a head for masked words, is no causal model."""
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    kind(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"is no causal language model.*{message}"):
        build_model(ModelSource("encoder", tmp_path, ""), ModelConfig(), CAUSAL, 0, CPU)


def test_missing_target_modules_are_told_with_those_there(source: ModelSource) -> None:
    """The default targets are an encoder's; a Llama has others."""
    base = build_model(source, ModelConfig(), CAUSAL, 0, CPU)
    with pytest.raises(ModelError, match=r"no linear module 'query'.*down_proj.*q_proj"):
        LoraModel(base, source, LoraConfig(rank=4), 0, CPU)


def test_the_adapter_is_a_causal_one_without_a_head(source: ModelSource, model: LoraModel) -> None:
    """PEFT's task type, factors only, under the names of the plain model."""
    assert model.initial.extras == {}
    assert set(model.initial.pairs) == {
        f"model.layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "v_proj")
    }
    peft_config: Any = model.module.peft_config
    assert peft_config["default"].task_type == "CAUSAL_LM"
    assert json.loads((source.path / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLM"
    ]
