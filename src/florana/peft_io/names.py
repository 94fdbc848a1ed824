"""Keys of PEFT's files: wrappers taken off, and what each names: a part of a pair, or a parameter of the base model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from florana.errors import AdapterError
from florana.peft_io.settings import SUPPORTED, UNSUPPORTED, short

PREFIX = "base_model.model."
MAX_NAME_LENGTH = 512

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PART = re.compile(
    r"(.+)\.(lora_A\.weight|lora_B\.weight|lora_embedding_[AB]|lora_magnitude_vector|hira_[AB]|hira_embedding_[AB])",
    re.DOTALL,
)
_UNSUPPORTED_KEYS = [
    (what, re.compile(pattern)) for what, _, pattern in UNSUPPORTED if pattern != "(?!)"
]


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Name without PEFT's prefix and without wrappers -> key, sorted by name.

    Raises:
        AdapterError: if a key is none of PEFT's, belongs to what is not supported, or is another one's twin.

    Example:
        >>> plain_names(["module.base_model.model._orig_mod.q.lora_A.weight"])
        {'q.lora_A.weight': 'module.base_model.model._orig_mod.q.lora_A.weight'}
    """
    names: dict[str, str] = {}
    for key in keys:
        name = _plain(key)
        if name in names:
            raise AdapterError(
                f"tensors {short(names[name])} and {short(key)} are the same but for wrappers ({', '.join(sorted(_WRAPPERS | {'module'}))}); "
                "expected one of them; unwrap the model before saving"
            )
        names[name] = key
    return dict(sorted(names.items()))


def _plain(key: str) -> str:
    if len(key) <= 2 * MAX_NAME_LENGTH:
        while key.startswith("module."):  # DistributedDataParallel, around the whole model only
            key = key.removeprefix("module.")
        if any(wrapper in key for wrapper in _WRAPPERS):
            key = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        key = key.removeprefix("module.")
    if not key.startswith(PREFIX) or len(key) > MAX_NAME_LENGTH:
        raise AdapterError(
            f"tensor {short(key)} is unexpected; expected {PREFIX}… of at most {MAX_NAME_LENGTH} characters; save it with PEFT"
        )
    for what, pattern in _UNSUPPORTED_KEYS:
        if pattern.search(key):
            raise AdapterError(
                f"tensor {short(key)} belongs to {what} and is not supported; {SUPPORTED}"
            )
    return key.removeprefix(PREFIX)


def factor_keys(
    names: Mapping[str, str],
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Names -> what PEFT adapts (where -> end of the key -> key), and what is left over (name -> key)."""
    factors: dict[str, dict[str, str]] = {}
    others: dict[str, str] = {}
    for name, key in names.items():
        match = _PART.fullmatch(name)
        if match:
            factors.setdefault(match[1], {})[match[2]] = key
        else:
            others[name] = key
    return factors, others


@contextmanager
def about(where: object) -> Iterator[None]:
    """Put where it happened before the message of an :class:`AdapterError`."""
    try:
        yield
    except AdapterError as error:
        raise AdapterError(f"{where}: {error}") from error
