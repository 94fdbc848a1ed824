"""What an objective is: how text becomes examples, what the loss is, and how a model is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from florana.tasks.dataset import TextDataset
from florana.tasks.metrics import Metric
from florana.training.evaluation import Score
from florana.training.examples import Examples
from florana.training.head import Head
from florana.training.lora_model import LoraModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Objective(Protocol):
    """What a family of tasks trains for; a frozen value, the same on server and clients."""

    @property
    def head(self) -> Head:
        """What the base model has to end in."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What :meth:`evaluate` tells; the first judges rounds."""

    def tokenize(
        self, data: TextDataset, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> Examples:
        """Examples of at most ``max_length`` tokens; what was cut is counted in their notes."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch, a float32 scalar.

        Args:
            logits: (n, c), or (n, t, v) of causal models.
            labels: as :meth:`Examples.batch` gives them, (n,) or (n, t).
        """

    def evaluate(self, model: LoraModel, examples: Examples, *, bf16: bool = False) -> Score:
        """Score the adapter that ``model`` holds.

        Args:
            model: holds the adapter.
            examples: what to answer.
            bf16: compute matrix products in bfloat16, as training with that option does.
        """
