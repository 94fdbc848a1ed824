"""A number for a text: squared error, and Pearson and Spearman correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from florana.errors import DataError
from florana.tasks.dataset import TextDataset
from florana.tasks.metrics import METRICS, Metric, of_values
from florana.training.evaluation import BATCH_SIZE, Score, forward
from florana.training.examples import Examples, tokenize
from florana.training.head import Head
from florana.training.lora_model import LoraModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Regression:
    r"""Learn a value v of a text.

    .. math:: \ell = \frac{1}{n} \sum_i (z_i - y_i)^2, \qquad y_i = \frac{v_i - m}{h}

    with the outputs z (n, 1), and m = (low + high) / 2 and h = (high − low) / 2 of ``value_range``; m = 0 and h = 1
    without one. A model's value for a text is m + h z. The range is told in advance: mean and spread of clients'
    labels, the usual choice in one place, no client has to give away, and no node has to wait for.

    Args:
        value_range: (low, high), or None.
        metrics: what is told, the judge first; in the values' own units.
        batch_size: examples that are scored at a time.
    """

    value_range: tuple[float, float] | None = None
    metrics: tuple[Metric, ...] = (METRICS["pearson"], METRICS["spearman"])
    batch_size: int = BATCH_SIZE

    @property
    def head(self) -> Head:
        """A fresh layer with one output."""
        return Head("regression", 1)

    @property
    def _middle_and_half(self) -> tuple[float, float]:
        low, high = self.value_range or (-1.0, 1.0)
        return (low + high) / 2, (high - low) / 2

    def tokenize(
        self, data: TextDataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Texts or pairs with their targets y.

        Raises:
            DataError: if the data have no values.
        """
        if data.values is None:
            raise DataError(f"{data.name}: a regression needs values, these data have classes")
        middle, half = self._middle_and_half
        targets = torch.from_numpy((data.values - middle) / half).float()
        return tokenize(data, tokenizer, max_length, targets)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of the targets."""
        return nn.functional.mse_loss(logits.float().squeeze(-1), labels)

    def evaluate(self, model: LoraModel, examples: Examples, *, bf16: bool = False) -> Score:
        """The metrics, in the values' own units, and the loss that is trained for, of the targets."""
        middle, half = self._middle_and_half
        said = np.empty(len(examples), dtype=np.float64)
        for chosen, logits, _ in forward(model, examples, bf16=bf16, batch_size=self.batch_size):
            said[chosen] = middle + half * logits.squeeze(-1).double().cpu().numpy()
        truth = middle + half * examples.labels.double().numpy()
        value, *others = (of_values(metric.name, truth, said) for metric in self.metrics)
        names = [metric.name for metric in self.metrics[1:]]
        return Score(
            value,
            of_values("mse", truth, said) / half**2,
            len(examples),
            dict(zip(names, others, strict=True)),
        )
