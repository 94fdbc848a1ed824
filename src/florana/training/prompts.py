"""Prompts and responses as tokens: where one ends and the other begins, and what is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from florana.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Written:
    """Examples as tokens.

    Args:
        ids: the tokens of each example: its prompt, then its response.
        prompts: how many of them are the prompt's.
        cut_prompts: examples whose prompt lost tokens on its left.
        cut_responses: examples whose response lost tokens on its right, the end token among them.
    """

    ids: list[list[int]]
    prompts: list[int]
    cut_prompts: int = 0
    cut_responses: int = 0


def write(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    max_length: int,
    *,
    chat: bool | None = None,
    system: str | None = None,
) -> Written:
    """Tokenise prompts and responses so that training sees the very tokens that generation starts from.

    A prompt's tokens are those of the prompt alone, after the beginning-of-sequence token where the tokenizer puts one.
    A response's are what the whole text has after them; where the whole text's tokens do not begin with the prompt's
    (a token reaches over the seam), those of the response alone. The end-of-sequence token, or what ends a turn of the
    chat template, belongs to the response.

    An example longer than ``max_length`` loses tokens on the left of its prompt, but for the beginning-of-sequence token.
    A response that does not fit even then is cut on its right.

    Args:
        tokenizer: the model's.
        prompts: n texts, empty where the whole text is the response.
        responses: n texts.
        max_length: most tokens of an example.
        chat: whether to write with the tokenizer's chat template; None: if it has one and there are prompts.
        system: what the system says before a prompt.

    Raises:
        ModelError: if the tokenizer has no end-of-sequence token, or not the chat template that is asked for.
        DataError: if an example has nothing to learn from.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so a model cannot learn where a "
            "response ends; give it an eos_token in its tokenizer_config.json"
        )
    if chat is None:
        chat = bool(tokenizer.chat_template) and any(prompts)
    if chat:
        asked, answered = _in_chat(tokenizer, prompts, responses, system)
        begin: list[int] = []  # the template writes it
    else:
        asked = [f"{system}\n\n{prompt}" if system and prompt else prompt for prompt in prompts]
        answered, begin = list(responses), _beginning(tokenizer)
    heads, tails = _apart(tokenizer, asked, answered)
    ids, counts, cuts = [], [], [0, 0]
    ends = _ends(tokenizer)
    for number, (head, tail) in enumerate(zip(heads, tails, strict=True), start=1):
        whole = tail if tail and tail[-1] in ends else [*tail, _as_int(tokenizer.eos_token_id)]
        kept_head, kept_tail = _fit(begin, head, whole, max_length)
        cuts[0] += len(kept_head) < len(begin) + len(head)
        cuts[1] += len(kept_tail) < len(whole)
        if len(kept_head) + len(kept_tail) < 2:
            raise DataError(
                f"example {number} has neither prompt nor response; take it out of the data"
            )
        ids.append(kept_head + kept_tail)
        counts.append(len(kept_head))
    return Written(ids, counts, *cuts)


def _fit(
    begin: list[int], head: list[int], tail: list[int], max_length: int
) -> tuple[list[int], list[int]]:
    """Cut the prompt from its left, then the response from its right."""
    room = max_length - len(begin)
    if not begin and head:
        tail = tail[: room - 1]  # the first token of a response is learnt from one before it
    tail = tail[:room]
    left = room - len(tail)
    return begin + (head[-left:] if left else []), tail


def _apart(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[str], answered: Sequence[str]
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of the prompts, and of what follows them."""
    heads = _ids(tokenizer, asked)
    wholes = _ids(tokenizer, [a + b for a, b in zip(asked, answered, strict=True)])
    tails = [whole[len(head) :] for head, whole in zip(heads, wholes, strict=True)]
    over = [i for i, head in enumerate(heads) if wholes[i][: len(head)] != head]
    for i, alone in zip(over, _ids(tokenizer, [answered[i] for i in over]), strict=True):
        tails[i] = alone
    return heads, tails


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    found: Any = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [list(row) for row in found]


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, where the tokenizer puts one before every text."""
    alone: Any = tokenizer("")["input_ids"]
    return list(alone[:1]) if alone and alone[0] == tokenizer.bos_token_id else []


def _ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end a response: any that are no text."""
    added = tokenizer.added_tokens_decoder.items()
    return {_as_int(tokenizer.eos_token_id), *(i for i, token in added if token.special)}


def _in_chat(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    system: str | None,
) -> tuple[list[str], list[str]]:
    """Prompts up to where the assistant begins to write, and what it writes, with the end of its turn."""
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer of {name} has no chat template; set data.chat = false")
    asked, answered = [], []
    said = [{"role": "system", "content": system}] if system else []
    for prompt, response in zip(prompts, responses, strict=True):
        turns = [*said, {"role": "user", "content": prompt}]
        reply = {"role": "assistant", "content": response}
        try:
            before = _render(tokenizer, turns, ask=True)
            whole = _render(tokenizer, [*turns, reply], ask=False)
        except Exception as error:  # templates raise what they like
            raise ModelError(
                f"the chat template of {name} refuses a system, user or assistant turn ({error}); leave data.system out "
                "or set data.chat = false"
            ) from error
        if not whole.startswith(before):
            raise ModelError(
                f"the chat template of {name} writes a finished answer in another way than it asks for one; set "
                "data.chat = false"
            )
        asked.append(before)
        answered.append(whole[len(before) :].rstrip())
    return asked, answered


def _render(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]], *, ask: bool) -> str:
    made: Any = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    return str(made)


def _as_int(token: Any) -> int:  # noqa: ANN401
    return int(token)
