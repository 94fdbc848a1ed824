"""Batches, padding and tokenising, and the plain mean that evaluation is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from florana.config import ModelConfig
from florana.tasks.dataset import TextDataset
from florana.training.base_model import ModelSource, build_model, load_tokenizer
from florana.training.examples import Examples, sample_batches, steps_per_epochs, tokenize
from strategies import assert_near, seeds
from tiny_models import CLASSES, CPU, Kind, evaluate, logits, make, shaken, toy_examples


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
    base: Any = build_model(kind.source, ModelConfig(), CLASSES.head, 0)
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
    assert score.value == int((rows.argmax(dim=1) == examples.labels).sum()) / 70
    expected = nn.functional.cross_entropy(rows.double(), examples.labels)
    assert score.loss == pytest.approx(float(expected), rel=1e-5)
    assert score.examples == 70


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
