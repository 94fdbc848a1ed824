"""Greedy generation: a batch says what each prompt says alone, token by token, without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from causal_models import letters_model, lora_model, stories, tokenizer_of
from florana.training.generation import generate

PROMPTS = [
    "Once upon a time",
    "The big dog was very happy, because he",
    "Lily",
    "One day a little boy named Tim went to the park with his",
]


def alone(model: Any, prompt: Tensor, count: int, stop: set[int]) -> list[int]:
    """The likeliest token again and again, the whole text read anew for each."""
    ids = prompt[None]
    with torch.inference_mode():
        for _ in range(count):
            token = model(input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, token[None, None]], dim=1)
            if int(token) in stop:
                break
    return [int(i) for i in ids[0, len(prompt) :]]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_batch_says_what_each_prompt_says_alone(batch_size: int) -> None:
    """Left padding and the cache change nothing, in the real stories260k with a trained-looking adapter."""
    source = stories()
    model, tokenizer = lora_model(source), tokenizer_of(source)
    g = torch.Generator().manual_seed(0)
    shaken = {
        n: 0.05 * torch.randn(t.shape, generator=g) for n, t in model.take().tensors().items()
    }
    model.load(model.initial.with_tensors(shaken))
    prompts = [torch.tensor(tokenizer(text)["input_ids"]) for text in PROMPTS]
    made = generate(model.module, tokenizer, prompts, max_new_tokens=24, batch_size=batch_size)
    expected = [alone(model.module.eval(), prompt, 24, {2}) for prompt in prompts]
    assert made == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert len(set(made)) == len(PROMPTS)


def test_a_text_ends_at_a_stop_token_and_at_the_bound(tmp_path: Path) -> None:
    """Whatever the random model says first, told as a stop token, ends its text there."""
    source = letters_model(tmp_path)
    model, tokenizer = lora_model(source), tokenizer_of(source)
    prompts = [
        torch.tensor(tokenizer(text)["input_ids"]) for text in ("abc", "x", "hello", "what?")
    ]
    free = generate(model.module, tokenizer, prompts, max_new_tokens=9)
    tokens = [alone(model.module.eval(), prompt, 9, {2}) for prompt in prompts]
    stop = max(tokens, key=len)[2]
    cut = generate(model.module, tokenizer, prompts, max_new_tokens=9, stop={stop})
    letter = str(tokenizer.decode([stop]))
    assert max(map(len, free)) == 9
    assert cut != free
    for whole, short in zip(free, cut, strict=True):
        assert short == whole[: whole.index(letter) + 1] if letter in whole else short == whole


def test_the_settings_of_the_models_folder_are_set_aside(tmp_path: Path) -> None:
    """A folder that asks for sampling and penalties changes no text."""
    source = letters_model(tmp_path)
    tokenizer = tokenizer_of(source)
    prompts = [torch.tensor(tokenizer("abc")["input_ids"])]
    plain = generate(lora_model(source).module, tokenizer, prompts, max_new_tokens=12)
    make: Any = GenerationConfig
    make(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        min_length=40,
    ).save_pretrained(tmp_path)
    model: Any = lora_model(source).module
    assert model.generation_config.repetition_penalty == 9.0
    assert generate(model, tokenizer, prompts, max_new_tokens=12) == plain
