"""Text to learn from, with what is asked of it, as one frozen value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from florana.errors import DataError


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Texts, each with a class, a value, or a response.

    Args:
        name: where the data came from, for people.
        texts: n texts; of causal data the prompts.
        labels: n integers, indices into ``label_names``: classes, and what Dirichlet and label partitions go by. Of a
            regression they are quantile bins of the values; of causal data categories, or all 0.
        label_names: the classes, bins or categories.
        text_pairs: second sentence of each example, for pair tasks.
        groups: value of the partition column for each example, if one was asked for.
        values: regression: n values.
        responses: causal: n texts that the model is to write, the only ones that the loss counts.
        references: causal with generated answers: n texts, what the scorer needs.

    Raises:
        DataError: if there are fewer than two classes or values, no example, or columns of unlike lengths.
    """

    name: str
    texts: Sequence[str]
    labels: NDArray[np.int64]
    label_names: Sequence[str]
    text_pairs: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    values: NDArray[np.float64] | None = None
    responses: Sequence[str] | None = None
    references: Sequence[str] | None = None

    def __post_init__(self) -> None:
        columns = [self.labels, self.text_pairs, self.groups, self.values]
        columns += [self.responses, self.references]
        lengths = {len(self.texts), *(len(c) for c in columns if c is not None)}
        if len(lengths) > 1:
            raise DataError(f"{self.name}: columns have unlike lengths {sorted(lengths)}")
        if self.responses is not None:
            if not self.texts:
                raise DataError(f"{self.name}: no examples")
            return
        asked, kind = (self.labels, "label") if self.values is None else (self.values, "value")
        if len(np.unique(asked)) < 2:
            raise DataError(
                f"{self.name}: {len(self.texts)} examples with {len(np.unique(asked))} {kind}(s); "
                f"there is nothing to learn without at least two different {kind}s"
            )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over texts, pairs, labels, groups, label names, and what else an example has."""
        digest = hashlib.sha256()
        pairs, groups = self.text_pairs, self.groups
        further = [c for c in (self.values, self.responses, self.references) if c is not None]
        for i, text in enumerate(self.texts):
            row = [
                text,
                pairs[i] if pairs else None,
                int(self.labels[i]),
                groups[i] if groups else None,
                *(column[i] for column in further),
            ]
            digest.update(json.dumps(row).encode())
        digest.update(json.dumps(list(self.label_names)).encode())
        return digest.hexdigest()

    def select(self, chosen: NDArray[np.int64], part: str = "") -> TextDataset:
        """The examples at these indices; ``part`` says in messages what they are."""
        return replace(
            self,
            name=f"{self.name}, {part}" if part else self.name,
            texts=[self.texts[i] for i in chosen],
            labels=self.labels[chosen],
            text_pairs=_chosen(self.text_pairs, chosen),
            groups=_chosen(self.groups, chosen),
            values=None if self.values is None else self.values[chosen],
            responses=_chosen(self.responses, chosen),
            references=_chosen(self.references, chosen),
        )

    def head(self, count: int | None, rng: np.random.Generator) -> TextDataset:
        """A random ``count`` of the examples, or all of them."""
        if count is None or count >= len(self):
            return self
        return self.select(np.sort(rng.permutation(len(self))[:count]))


def _chosen(column: Sequence[str] | None, chosen: NDArray[np.int64]) -> list[str] | None:
    return None if column is None else [column[i] for i in chosen]
