"""Prompts and responses as tokens: where the loss begins, what ends a response, what is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from causal_models import CHAT, letters_model, stories, tokenizer_of, write_letters
from florana.errors import DataError, ModelError
from florana.training.base_model import ModelSource
from florana.training.prompts import write
from strategies import few

BOS, EOS, END = 1, 2, 3

texts = st.text(alphabet="abc xyz19+=", min_size=1, max_size=12)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer of single letters that puts <bos> before a text and has no padding token."""
    return tokenizer_of(letters_model(tmp_path_factory.mktemp("letters")))


def tokenizer(folder: Path, **habits: Any) -> PreTrainedTokenizerBase:
    """A tokenizer of letters with these habits."""
    write_letters(folder, **habits)
    return tokenizer_of(ModelSource("letters", folder, ""))


@few
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4))
def test_an_example_is_beginning_prompt_response_end(
    letters: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]
) -> None:
    """<bos>, the prompt's letters, the response's letters, <eos>; the response's are after the counted ones."""
    made = write(letters, [p for p, _ in pairs], [r for _, r in pairs], 64)
    for (prompt, response), ids, count in zip(pairs, made.ids, made.prompts, strict=True):
        assert (ids[0], ids[-1]) == (BOS, EOS)
        assert letters.decode(ids[1:count]) == prompt
        assert letters.decode(ids[count:-1]) == response
    assert (made.cut_prompts, made.cut_responses) == (0, 0)


@few
@given(texts, texts, st.integers(4, 30))
def test_what_does_not_fit_is_cut_where_it_hurts_least(
    letters: PreTrainedTokenizerBase, prompt: str, response: str, max_length: int
) -> None:
    """The response stays whole as long as it can, the prompt keeps its end, <bos> stays; cuts are counted."""
    made = write(letters, [prompt], [response], max_length)
    ids, count = made.ids[0], made.prompts[0]
    room = max_length - 1
    assert ids[0] == BOS
    assert len(ids) == min(max_length, 1 + len(prompt) + len(response) + 1)
    kept = min(len(response) + 1, room)
    assert letters.decode(ids[count:]) == (
        response + "<eos>" if kept > len(response) else response[:kept]
    )
    left = min(len(prompt), room - kept)
    assert letters.decode(ids[1:count]) == (prompt[-left:] if left else "")
    assert made.cut_prompts == (left < len(prompt))
    assert made.cut_responses == (kept < len(response) + 1)


def test_without_a_beginning_token_the_prompt_keeps_one(tmp_path: Path) -> None:
    """The first token of a response is learnt from one before it, so one of the prompt stays."""
    plain = tokenizer(tmp_path, bos=False)
    made = write(plain, ["abc"], ["defgh"], 4)
    assert plain.decode(made.ids[0]) == "cdef"
    assert (made.prompts, made.cut_prompts, made.cut_responses) == ([1], 1, 1)


def test_the_prompts_tokens_are_those_that_generation_starts_from() -> None:
    """Where a token of the whole text would reach over the seam, the prompt keeps its own tokens, and nothing is lost."""
    real = tokenizer_of(stories())
    prompts, answers = ["Once upon a ti", "She said: ", "Lily and"], ["me there", "hello", " Tom"]
    made = write(real, prompts, answers, 64)
    for prompt, answer, ids, count in zip(prompts, answers, made.ids, made.prompts, strict=True):
        assert ids[:count] == real(prompt)["input_ids"]
        whole = "".join((prompt + answer).split())
        assert "".join(str(real.decode(ids[1:-1])).split()) == whole


def test_a_chat_template_writes_headers_and_ends_the_turn(tmp_path: Path) -> None:
    """The prompt reaches to where the assistant begins; its words and the end of its turn are learnt, no new line."""
    chat = tokenizer(tmp_path, chat=CHAT)
    made = write(chat, ["1+1?"], ["2"], 99, system="add")
    ids, count = made.ids[0], made.prompts[0]
    assert chat.decode(ids[:count]) == "<bos><|system|>add<end>\n<|user|>1+1?<end>\n<|assistant|>"
    assert ids[count:] == [*chat("2", add_special_tokens=False)["input_ids"], END]


def test_a_chat_template_is_used_where_there_is_one_unless_told(tmp_path: Path) -> None:
    """By default with a template and prompts; never for plain text; not where it is turned off."""
    chat = tokenizer(tmp_path, chat=CHAT)
    written = {
        how: chat.decode(write(chat, [prompt], ["2"], 99, chat=told).ids[0])
        for how, prompt, told in [("auto", "1", None), ("off", "1", False), ("text", "", None)]
    }
    assert written == {
        "auto": "<bos><|user|>1<end>\n<|assistant|>2<end>",
        "off": "<bos>12<eos>",
        "text": "<bos>2<eos>",
    }


def test_a_system_text_without_a_template_is_a_paragraph(letters: PreTrainedTokenizerBase) -> None:
    """It goes before the prompt, an empty line between them."""
    made = write(letters, ["1+1"], ["2"], 99, system="add")
    assert letters.decode(made.ids[0]) == "<bos>add\n\n1+12<eos>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "has no chat template; set data.chat = false"),
        (
            "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "{{ m['content'] }}{% endfor %}",
            "refuses a system, user or assistant turn .no system.",
        ),
        (
            "{% for m in messages %}{{ m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %}think{% endif %}",
            "writes a finished answer in another way",
        ),
    ],
)
def test_a_template_that_does_not_serve_is_told(
    tmp_path: Path, template: str, message: str
) -> None:
    """None there, one that knows no system, one whose answers do not begin where it asks for them."""
    chat = tokenizer(tmp_path, chat=template)
    with pytest.raises(ModelError, match=message):
        write(chat, ["1"], ["2"], 99, chat=True, system="add")


def test_a_tokenizer_that_cannot_end_is_told(
    letters: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Without an end token a model would never learn to stop."""
    endless = tokenizer(tmp_path)
    endless.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        write(endless, ["1"], ["2"], 99)


def test_nothing_to_learn_is_told(tmp_path: Path) -> None:
    """Neither prompt nor response nor <bos>: no token is learnt from another."""
    plain = tokenizer(tmp_path, bos=False)
    with pytest.raises(DataError, match="example 2 has neither prompt nor response"):
        write(plain, ["", ""], ["ab", ""], 99)
