"""PEFT's adapter format in memory: state dict and settings on one side, :class:`Adapter` on the other.

PEFT itself is not imported here. Supported are LoRA, DoRA and HiRA pairs of linear layers, heads
(``modules_to_save``) and biases. To support a row of :data:`florana.peft_io.settings.UNSUPPORTED`, take it
out and teach :func:`build_adapter` and :func:`adapter_to_state_dict` its keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from statistics import mode
from typing import Any

import torch
from torch import Tensor

from florana.adapter import Adapter, LoraPair, Part
from florana.config import Variant
from florana.errors import AdapterError
from florana.peft_io.settings import (
    CARRIED,
    FOREIGN,
    IGNORED,
    SELECTORS,
    SUPPORTED,
    UNSUPPORTED,
    read_settings,
    resolve,
    short,
    suffixes,
)

PREFIX = "base_model.model."
KEYS: Mapping[Variant, Mapping[str, Part]] = {
    "lora": {"lora_A.weight": "A", "lora_B.weight": "B"},
    "dora": {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "magnitude"},
    "hira": {"hira_A": "A", "hira_B": "B"},
}
"""What PEFT calls the parts of a pair of each variant, below the module's name."""
_ANY_KEY = "|".join(sorted({re.escape(key) for keys in KEYS.values() for key in keys}))
MAX_NAME_LENGTH = 512

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def adapter_from_state_dict(
    state: Mapping[str, Tensor], config: Mapping[str, object], base_hash: str = ""
) -> Adapter:
    """Make an adapter from what ``get_peft_model_state_dict`` and ``LoraConfig.to_dict`` (or HiraConfig's) return.

    Args:
        state: PEFT's key -> tensor. The tensors are copied, since PEFT's are the model's own.
        config: PEFT's settings, as ``adapter_config.json`` has them.
        base_hash: hash of the base model's weights, or "" where it is not known.

    Returns:
        The adapter. Extras bear the base model's names: ``<module>.bias``, not PEFT's
        ``<module>.base_layer.bias``. Where ``config`` selects modules by a regular expression,
        ``peft_config`` lists those that have factors instead.

    Raises:
        AdapterError: if a setting or a tensor cannot be used or is not supported.

    Example:
        >>> state = {
        ...     "base_model.model.layer.lora_A.weight": torch.ones(2, 4),
        ...     "base_model.model.layer.lora_B.weight": torch.ones(3, 2),
        ... }
        >>> config = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "target_modules": "lay.*"}
        >>> adapter = adapter_from_state_dict(state, config)
        >>> adapter.pairs["layer"].scaling, adapter.peft_config["target_modules"]
        (8.0, ['layer'])
    """
    with about("adapter config"):
        settings = read_settings(config)
    with about("adapter state dict"):
        return build_adapter(state, settings, base_hash)


def adapter_to_state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """Copies of an adapter's tensors under PEFT's keys, for ``set_peft_model_state_dict``.

    Example:
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> list(adapter_to_state_dict(Adapter({"layer": pair}, {"layer.bias": torch.ones(3)})))[1:]
        ['base_model.model.layer.lora_B.weight', 'base_model.model.layer.base_layer.bias']
    """
    named: dict[str, Tensor] = {}
    for module, pair in adapter.pairs.items():
        named |= {
            f"{module}.{key}": getattr(pair, part) for key, part in KEYS[pair.variant].items()
        }
    for name, tensor in adapter.extras.items():
        owner = _bias_owner(name)
        named[f"{owner}.base_layer.bias" if owner in adapter.pairs else name] = tensor
    return {PREFIX + name: _copy(tensor) for name, tensor in named.items()}


def adapter_to_config(adapter: Adapter) -> dict[str, object]:
    """PEFT's settings for an adapter, as ``adapter_config.json`` has them.

    The most common rank and alpha become ``r`` and ``lora_alpha``, others become patterns that match
    one module each. If only some pairs use rsLoRA, none does in the result, and alphas are chosen to
    keep every scaling. What ``peft_config`` does not say is read off the tensors: modules, heads,
    and the kind of bias.

    Example:
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> wide = LoraPair(torch.ones(5, 4), torch.ones(3, 5), alpha=4)
        >>> config = adapter_to_config(Adapter({"a.up": pair, "b.up": pair, "up": wide}))
        >>> config["r"], config["lora_alpha"], config["rank_pattern"], config["target_modules"]
        (2, 4, {'^up': 5}, ['a.up', 'b.up', 'up'])
    """
    given, modules, variant = adapter.peft_config, adapter.pairs.keys(), adapter.variant
    has_bias = any(_bias_owner(name) in modules for name in adapter.extras)
    bias = str(given.get("bias") or ("lora_only" if has_bias else "none"))
    heads = {n.rpartition(".")[0] for n in adapter.extras if not _is_trained_bias(n, bias, modules)}
    config = {
        **{name: value for name, value in given.items() if name not in {*SELECTORS, *IGNORED}},
        "target_modules": _targets(given, modules),
        "modules_to_save": given.get("modules_to_save") or sorted(heads) or None,
        "bias": bias,
        "base_model_name_or_path": adapter.base_model or None,
        "peft_type": "HIRA" if variant == "hira" else "LORA",
        "inference_mode": True,
        **_ranks_and_alphas(adapter.pairs),
        **({"use_dora": True} if variant == "dora" else {}),
    }
    return {k: v for k, v in config.items() if k not in FOREIGN[str(config["peft_type"])]}


def _ranks_and_alphas(pairs: Mapping[str, LoraPair]) -> dict[str, object]:
    rslora = all(pair.rslora for pair in pairs.values())
    sizes = {
        # PEFT matches "(.*\.)?(key)$", where ^ leaves no room for a longer name
        "^" + re.escape(name): (
            pair.rank,
            _whole(pair.alpha if pair.rslora == rslora else pair.scaling * pair.rank),
        )
        for name, pair in pairs.items()
    }
    r, alpha = mode(sizes.values()) if sizes else (1, 1)
    return {
        "r": r,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "rank_pattern": {key: rank for key, (rank, _) in sizes.items() if rank != r},
        "alpha_pattern": {key: a for key, (_, a) in sizes.items() if a != alpha},
    }


def _whole(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def _targets(config: Mapping[str, Any], modules: Set[str]) -> list[str]:
    """A list by which PEFT finds the adapted modules again: the config's own, or all their names."""
    given = config.get("target_modules") or ""
    others = [config.get(name) for name in SELECTORS if name != "target_modules"]
    if not isinstance(given, str) and all(other in (None, [], "") for other in others):
        targets = set(given)
        if all(not targets.isdisjoint(suffixes(module)) for module in modules):
            return sorted(targets)
    return sorted(modules)


def build_adapter(state: Mapping[str, Tensor], settings: dict[str, Any], base_hash: str) -> Adapter:
    """The adapter of a state dict under settings that :func:`read_settings` has checked."""
    keys = KEYS[settings["variant"]]
    factors: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in sorted(state.items()):  # safetensors gives another order at every start
        name = _name(key)
        _check_tensor(key, tensor)
        match = re.fullmatch(rf"(.+)\.({_ANY_KEY})", name, re.DOTALL)
        module, which = match.groups() if match else (None, name)
        if module is not None and which not in keys:
            raise AdapterError(
                f"tensor {short(key)} belongs to {'HiRA' if which in KEYS['hira'] else 'DoRA or LoRA'}; expected "
                f"{' and '.join(keys)}, as peft_type and use_dora have it; save config and weights from one model"
            )
        (others if module is None else factors.setdefault(module, {}))[which] = _copy(tensor)
    if not factors:
        raise AdapterError(
            f"has no <module>.{next(iter(keys))}; expected one pair or more; save it again"
        )
    pairs = {module: _pair(module, both, settings) for module, both in factors.items()}
    carried = {n: settings[n] for n in CARRIED if n in settings and settings[n] not in ("", ())}
    return Adapter(
        pairs,
        _extras(
            others, settings.get("bias", "none"), tuple(settings["modules_to_save"]), pairs.keys()
        ),
        settings["base_model_name_or_path"],
        base_hash,
        carried | {"target_modules": _targets(settings, pairs.keys())},
    )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _name(key: str) -> str:
    """A key without PEFT's prefix, if it is one that we can read at all."""
    first, *rest = key.split(".")
    if found := _WRAPPERS & {first} or _WRAPPERS - {"module"} & {*rest}:
        fault = f"bears the prefix {min(found) + '.'!r} of a wrapper; expected {PREFIX}…; unwrap the model (torch.compile, DDP, FSDP) before saving"
    elif not key.startswith(PREFIX) or len(key) > MAX_NAME_LENGTH:
        fault = f"is unexpected; expected {PREFIX}… of at most {MAX_NAME_LENGTH} characters; save it with PEFT"
    elif unsupported := [what for what, _, pattern in UNSUPPORTED if re.search(pattern, key)]:
        fault = f"belongs to {unsupported[0]} and is not supported; {SUPPORTED}"
    else:
        return key.removeprefix(PREFIX)
    raise AdapterError(f"tensor {short(key)} {fault}")


def _check_tensor(key: str, tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        expected = ", ".join(map(str, _DTYPES))
        fault = f"is {tensor.dtype}; expected one of {expected}; cast it before saving"
    elif tensor.numel() == 0:
        fault = f"is empty, {tuple(tensor.shape)}; expected values; gather FSDP or DeepSpeed shards before saving"
    elif not torch.isfinite(tensor).all():
        fault = "holds NaN or infinity; expected finite values; leave this adapter out or train it again"
    else:
        return
    raise AdapterError(f"tensor {short(key)} {fault}")


def _pair(module: str, found: Mapping[str, Tensor], settings: Mapping[str, Any]) -> LoraPair:
    keys, variant = KEYS[settings["variant"]], settings["variant"]
    with about(f"module {short(module)}"):
        if len(found) < len(keys):
            why = ", since use_dora is True and DoRA has all" if variant == "dora" else ""
            raise AdapterError(
                f"has {' and '.join(sorted(found))} only; expected {' and '.join(keys)}{why}; save it again"
            )
        parts = {part: found[key] for key, part in keys.items()}
        A, B = parts["A"], parts["B"]
        if A.dtype != B.dtype:
            raise AdapterError(
                f"lora_A is {A.dtype}, lora_B is {B.dtype}; expected one dtype; cast it before saving"
            )
        if A.ndim > 2 or B.ndim > 2:
            raise AdapterError(
                f"lora_A is {tuple(A.shape)}, lora_B is {tuple(B.shape)}: an adapted convolution is not supported; {SUPPORTED}"
            )
        if variant == "hira":
            pair = LoraPair(A, B, float(A.shape[0]), hadamard=True)
        else:
            alpha = resolve(settings["alpha_pattern"], module, settings["lora_alpha"])
            m = parts.get("magnitude")
            pair = LoraPair(A, B, float(alpha), settings["use_rslora"], magnitude=m)
        rank = resolve(settings["rank_pattern"], module, settings["r"])
        if pair.rank != rank:
            raise AdapterError(
                f"lora_A and lora_B have rank {pair.rank}; expected {rank}, as r and rank_pattern have it; save config and weights from one model"
            )
        return pair


def _extras(
    others: Mapping[str, Tensor], bias: str, heads: tuple[str, ...], modules: Set[str]
) -> dict[str, Tensor]:
    """Heads and biases under the base model's parameter names; anything else is refused."""
    for module in modules:
        if any(f".{head}." in f".{module}." for head in heads):
            raise AdapterError(
                f"module {short(module)} has LoRA factors and is in modules_to_save too; expected one of the two"
            )
    extras: dict[str, Tensor] = {}
    for name, tensor in others.items():
        # with bias="all", PEFT saves a head's bias three times: plain, wrapped, and as it was
        in_head, parts = _is_in_head(name, heads), {*name.split(".")}
        if in_head and bias == "all" and parts & {"modules_to_save", "original_module"}:
            continue
        if not (in_head or _is_trained_bias(name, bias, modules)):
            raise AdapterError(
                f"tensor {short(PREFIX + name)} is unexpected with bias {bias!r} and modules_to_save {short(heads)}; {SUPPORTED}"
            )
        owner = _bias_owner(name)
        parameter = f"{owner}.bias" if owner in modules else name
        if parameter in extras:
            raise AdapterError(f"parameter {short(parameter)} comes twice; expected it once")
        extras[parameter] = tensor
    return extras


def _bias_owner(name: str) -> str | None:
    """The module whose bias a parameter is, with or without PEFT's ``base_layer`` in its name."""
    owner, _, last = name.rpartition(".")
    return owner.removesuffix(".base_layer") if last == "bias" else None


def _is_trained_bias(name: str, bias: str, modules: Set[str]) -> bool:
    owner = _bias_owner(name)
    return owner is not None and (bias == "all" or (bias == "lora_only" and owner in modules))


def _is_in_head(name: str, heads: tuple[str, ...]) -> bool:
    """Whether a parameter is below a head; PEFT compares the ends of module names, whole word or not."""
    parts = name.split(".")
    return any(".".join(parts[:depth]).endswith(heads) for depth in range(1, len(parts)))


@contextmanager
def about(where: object) -> Iterator[None]:
    """Put where it happened before the message of an :class:`AdapterError`."""
    try:
        yield
    except AdapterError as error:
        raise AdapterError(f"{where}: {error}") from error
