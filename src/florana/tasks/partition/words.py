"""A partition in a few words, for plans and reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def in_words(federation: Mapping[str, Any]) -> str:
    """How the data are spread, as the keys of ``[federation]`` say.

    Args:
        federation: the section; keys that older runs do not have may be missing.

    Example:
        >>> in_words({"partition": "dirichlet", "dirichlet_alpha": 0.5, "column": "type"})
        'dirichlet 0.5 over type'
        >>> in_words({"partition": "iid", "quantity": "lognormal", "quantity_sigma": 1.0})
        'iid, sizes lognormal 1'
    """
    scheme = str(federation.get("partition", "–"))
    column, words = federation.get("column"), scheme
    if scheme == "dirichlet" and "dirichlet_alpha" in federation:
        words += f" {federation['dirichlet_alpha']:g}"
    elif scheme == "label":
        words += f" {federation.get('labels_per_client', '')}"
    if scheme == "column":
        words += f" {column or ''}"
    elif column and scheme != "iid":
        words += f" over {column}"
    quantity = federation.get("quantity")
    if quantity:
        spread = federation["quantity_alpha" if quantity == "dirichlet" else "quantity_sigma"]
        words += f", sizes {quantity} {spread:g}"
    return words
