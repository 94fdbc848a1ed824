"""To write a response to a prompt: cross-entropy of its tokens, perplexity, and what a scorer says of written answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from florana.config import RunConfig
from florana.errors import ConfigError, DataError
from florana.tasks.dataset import TextDataset
from florana.tasks.judging import READ, WRITTEN, judge_of
from florana.tasks.metrics import METRICS, Metric
from florana.training import prompts
from florana.training.base_model import ModelSource, load_tokenizer
from florana.training.evaluation import Score
from florana.training.examples import NO_LOSS, Examples
from florana.training.generation import generate
from florana.training.head import Head
from florana.training.lora_model import LoraModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from florana.tasks.scorers import Scorer

LOGITS = 2**27
"""Most logits that one batch of an evaluation holds: half a gigabyte in float32."""


@dataclass(frozen=True, slots=True)
class Causal:
    r"""Learn to write responses y of tokens y_1, ..., y_m, the last of which ends it, after prompts x.

    .. math:: \ell = -\frac{1}{M} \sum_i \sum_{k=1}^{m_i} \log p(y_{ik} \mid x_i, y_{i1}, \ldots, y_{i,k-1})

    with M = Σ m_i over the batch: prompts and padding have no loss. ``perplexity`` is exp ℓ over all response tokens of the
    examples, ``token_accuracy`` the share of them that is the likeliest one. With a scorer that is among the metrics, the
    model writes an answer to every prompt, greedily, and ``exact_match`` or ``pass@1`` is the share that the scorer
    accepts. Without it nothing is generated.

    Args:
        source: the base model, whose tokenizer turns text into tokens and back.
        metrics: what is told, the judge first.
        scorer: a name of :data:`florana.tasks.scorers.SCORERS`; None: no answers are written.
        chat: whether prompts are written with the tokenizer's chat template; None: where it has one.
        system: what the system says before each prompt.
        max_new_tokens: most tokens of a written answer.
        batch_size: examples that are scored at a time; fewer where their logits would be more than :data:`LOGITS`.
    """

    source: ModelSource
    metrics: tuple[Metric, ...] = (METRICS["perplexity"], METRICS["token_accuracy"])
    scorer: str | None = None
    chat: bool | None = None
    system: str | None = None
    max_new_tokens: int = 256
    batch_size: int = 64

    @property
    def head(self) -> Head:
        """The model's own."""
        return Head("causal", 0)

    def tokenize(
        self, data: TextDataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Prompts with their responses, as :func:`florana.training.prompts.write` has them.

        Raises:
            DataError: if there are no responses, or no references for the scorer.
            ModelError: if the tokenizer cannot end a response, or has no chat template to write with.
        """
        if data.responses is None:
            raise DataError(f"{data.name}: there are no responses to learn from; set data.response")
        if self.scorer is not None and data.references is None:
            raise DataError(
                f"{data.name}: data.scorer {self.scorer!r} needs data.reference, what an answer is held against"
            )
        written = prompts.write(
            tokenizer,
            data.texts,
            data.responses,
            max_length,
            chat=self.chat,
            system=self.system,
        )
        pads = tokenizer.pad_token_id
        return Examples(
            tuple(torch.tensor(row) for row in written.ids),
            torch.from_numpy(data.labels),
            pads if isinstance(pads, int) else 0,
            prompts=torch.tensor(written.prompts),
            references=tuple(data.references) if data.references is not None else None,
            notes=_notes(data, written, max_length),
        )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the response tokens, in nats.

        Args:
            logits: (n, k, v) of the last k of t tokens, k = t unless the model was told to keep fewer.
            labels: (n, t), -100 where there is no loss.
        """
        said, wanted = _responses(logits, labels)
        return nn.functional.cross_entropy(said.float(), wanted)

    def evaluate(self, model: LoraModel, examples: Examples, *, bf16: bool = False) -> Score:
        """The metrics, and the mean cross-entropy of the response tokens."""
        nats, hits, tokens = _read(model, examples, self.batch_size, bf16=bf16)
        loss = nats / tokens
        found = {
            "perplexity": math.exp(min(loss, 700.0)),  # beyond it there is no float
            "token_accuracy": hits / tokens,
        }
        if self.scorer is not None:
            found[WRITTEN[self.scorer]] = float(np.mean(self._right(model, examples, bf16=bf16)))
        value, *others = (found[metric.name] for metric in self.metrics)
        names = [metric.name for metric in self.metrics[1:]]
        return Score(value, loss, len(examples), dict(zip(names, others, strict=True)))

    def write(self, model: LoraModel, examples: Examples, *, bf16: bool = False) -> list[str]:
        """What the model writes after each example's prompt.

        Args:
            model: holds the adapter.
            examples: whose prompts are answered.
            bf16: compute matrix products in bfloat16.
        """
        assert examples.prompts is not None
        counts = examples.prompts.tolist()
        tokenizer = _tokenizer(self.source)
        special = set(tokenizer.all_special_ids)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return generate(
                model.module,
                tokenizer,
                [ids[:n] for ids, n in zip(examples.token_ids, counts, strict=True)],
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
                stop={int(ids[-1]) for ids in examples.token_ids} & special,
            )

    def _right(self, model: LoraModel, examples: Examples, *, bf16: bool) -> list[bool]:
        assert examples.references is not None
        return _scorer(self.scorer)(self.write(model, examples, bf16=bf16), examples.references)


def build(config: RunConfig, source: ModelSource) -> Causal:
    """The causal objective of a run.

    Answers are generated where the metrics want them: if ``data.metric`` is ``perplexity`` none are.

    Args:
        config: the run's.
        source: the base model.

    Raises:
        ConfigError: if ``data.metric`` cannot be computed, or programs would have to run that may not.
    """
    data, judge = config.data, judge_of(config)
    written = (WRITTEN[data.scorer],) if data.scorer else ()
    generates = judge.name in written
    if generates and data.scorer == "program" and not config.evaluation.allow_code:
        raise ConfigError(
            f"data.metric: {judge.name!r} runs programs that the model writes, under limits but on this machine; allow it "
            "with evaluation.allow_code = true, or set data.metric = 'perplexity'"
        )
    names = dict.fromkeys((judge.name, *(written if generates else ()), *READ))
    return Causal(
        source,
        tuple(METRICS[name] for name in names),
        data.scorer if generates else None,
        None if data.chat == "auto" else data.chat,
        data.system,
        config.evaluation.max_new_tokens,
        config.evaluation.batch_size,
    )


def _notes(data: TextDataset, written: prompts.Written, max_length: int) -> tuple[str, ...]:
    """How many examples were cut, and what of them."""
    kinds = {
        "lose tokens on the left of their prompt": written.cut_prompts,
        "have a response that is cut on its right": written.cut_responses,
    }
    return tuple(
        f"{data.name}: {count:,} of {len(data):,} examples are longer than model.max_length = {max_length} tokens and {what}"
        for what, count in kinds.items()
        if count
    )


def _responses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (m, v) of the m response tokens, and those tokens (m,): a token is said by the one before it."""
    wanted = labels[:, labels.shape[1] - logits.shape[1] + 1 :]
    counted = wanted != NO_LOSS
    return logits[:, :-1][counted], wanted[counted]


def _read(
    model: LoraModel, examples: Examples, batch_size: int, *, bf16: bool
) -> tuple[float, int, int]:
    """Over all response tokens: nats, how many are the likeliest, and how many there are."""
    model.module.eval()
    nats, hits, tokens = 0.0, 0, 0
    longest = max(len(ids) for ids in examples.token_ids)
    vocabulary = model.module.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    size = max(1, min(batch_size, LOGITS // (longest * vocabulary)))
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=bf16)
    with torch.inference_mode(), autocast:
        for chosen in examples.by_length(size):
            inputs, labels = examples.batch(chosen, model.device)
            said, wanted = _responses(model.module(**inputs).logits, labels)
            said = said.float()
            nats += float(nn.functional.cross_entropy(said, wanted, reduction="sum"))
            hits += int((said.argmax(dim=-1) == wanted).sum())
            tokens += len(wanted)
    return nats, hits, tokens


def _scorer(name: str | None) -> Scorer:
    from florana.tasks.scorers import SCORERS

    return SCORERS[str(name)]


@lru_cache(maxsize=4)
def _tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    return load_tokenizer(source)
