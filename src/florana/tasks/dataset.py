"""Labelled text as one frozen value."""

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
    """Texts with one label each.

    Args:
        name: where the data came from, for people.
        texts: n texts.
        labels: n integers, indices into ``label_names``.
        label_names: the classes.
        text_pairs: second sentence of each example, for pair tasks.
        groups: value of the partition column for each example, if one was asked for.

    Raises:
        DataError: if there are fewer than two classes or the columns have unlike lengths.
    """

    name: str
    texts: Sequence[str]
    labels: NDArray[np.int64]
    label_names: Sequence[str]
    text_pairs: Sequence[str] | None = None
    groups: Sequence[str] | None = None

    def __post_init__(self) -> None:
        columns = [self.labels, self.text_pairs, self.groups]
        lengths = {len(self.texts), *(len(c) for c in columns if c is not None)}
        if len(lengths) > 1:
            raise DataError(f"{self.name}: columns have unlike lengths {sorted(lengths)}")
        if len(np.unique(self.labels)) < 2:
            raise DataError(
                f"{self.name}: {len(self.texts)} examples with {len(np.unique(self.labels))} label(s); "
                "a classifier needs at least two different labels"
            )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over texts, pairs, labels, groups and label names."""
        digest = hashlib.sha256()
        pairs, groups = self.text_pairs, self.groups
        for i, text in enumerate(self.texts):
            row = [
                text,
                pairs[i] if pairs else None,
                int(self.labels[i]),
                groups[i] if groups else None,
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
            text_pairs=[self.text_pairs[i] for i in chosen] if self.text_pairs else None,
            groups=[self.groups[i] for i in chosen] if self.groups else None,
        )

    def head(self, count: int | None, rng: np.random.Generator) -> TextDataset:
        """A random ``count`` of the examples, or all of them."""
        if count is None or count >= len(self):
            return self
        return self.select(np.sort(rng.permutation(len(self))[:count]))
