"""A class for a text: cross-entropy, and accuracy, F1 or Matthews correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from florana.tasks.dataset import TextDataset
from florana.tasks.metrics import METRICS, Metric, of_classes
from florana.training.evaluation import BATCH_SIZE, Score, forward
from florana.training.examples import Examples, tokenize
from florana.training.head import Head
from florana.training.lora_model import LoraModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Classification:
    r"""Learn which of c classes a text is of.

    .. math:: \ell = -\frac{1}{n} \sum_i \log \mathrm{softmax}(z_i)_{y_i}

    with the logits z (n, c) and the right classes y (n).

    Args:
        num_labels: c.
        metrics: what is told, the judge first.
        batch_size: examples that are scored at a time.
    """

    num_labels: int
    metrics: tuple[Metric, ...] = (METRICS["accuracy"],)
    batch_size: int = BATCH_SIZE

    @property
    def head(self) -> Head:
        """A fresh layer with an output per class."""
        return Head("classification", self.num_labels)

    def tokenize(
        self, data: TextDataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Texts or pairs with their classes."""
        return tokenize(data, tokenizer, max_length)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return nn.functional.cross_entropy(logits.float(), labels)

    def evaluate(self, model: LoraModel, examples: Examples, *, bf16: bool = False) -> Score:
        """The metrics and the mean cross-entropy of the likeliest classes."""
        said = np.empty(len(examples), dtype=np.int64)
        loss = 0.0
        for chosen, logits, labels in forward(
            model, examples, bf16=bf16, batch_size=self.batch_size
        ):
            said[chosen] = logits.argmax(dim=-1).cpu().numpy()
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        truth = examples.labels.numpy()
        value, *others = (
            of_classes(metric.name, truth, said, self.num_labels) for metric in self.metrics
        )
        names = [metric.name for metric in self.metrics[1:]]
        return Score(
            value, loss / len(examples), len(examples), dict(zip(names, others, strict=True))
        )
