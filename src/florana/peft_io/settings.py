"""PEFT's settings, as ``adapter_config.json`` has them, checked one by one against an allow-list.

What a client sends is untrusted: patterns among the settings are compared as text and never run.

Read, and kept where it says what the tensors are: everything of LoRA, rsLoRA, DoRA and HiRA, and starts that leave the
base model as it is ("gaussian", "orthogonal", "eva", which gives modules unlike ranks, and "mica", which freezes B).
Refused, and why:

- PiSSA, OLoRA, CorDA, LoRA-GA: the start takes s B₀ A₀ out of the base weights, so a client's change is
  s (B A − B₀ A₀), and B₀ A₀ is not in the file. PEFT's ``path_initial_model_for_weight_conversion`` writes that change
  as plain LoRA of rank 2r, which is read.
- LoftQ: the base becomes a quantised one that follows from bits, iterations and, beyond the first one, the rank; a
  result of another rank or start would be loaded on another base.
- KaSA changes the base weights too. aLoRA, Arrow, BD-LoRA, MonteCLoRA, QALoRA, VeLoRA and Megatron's layers have a
  forward pass or factors of their own, which a mean of s B A does not describe.
- ``ensure_weight_tying``: one pair is loaded into two modules, transposed in one of them.
- A grouped convolution (told by its shapes): PEFT cannot merge it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from florana.errors import AdapterError

MAX_RANK, MAX_HEADS, MAX_ALPHA = 2**31, 300, 1e6

_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
SUPPORTED = "supported are LoRA, DoRA and HiRA pairs of linear layers, embeddings, convolutions, attention and target_parameters, heads in modules_to_save, biases, and trainable tokens"

# what PEFT can train and we cannot read: what it is and why not, its settings, its keys ("(?!)"
# matches none)
UNSUPPORTED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("KaSA, which changes the base weights,", ("kasa_config",), r"\.lora_diag\b"),
    ("a variant of LoRA with a forward pass of its own", ("alora_invocation_tokens", "arrow_config", "megatron_config", "monteclora_config", "use_bdlora", "use_qalora", "velora_config"), r"(?!)"),
    ("weight tying, where one tensor stands for two modules,", ("ensure_weight_tying",), r"(?!)"),
)  # fmt: skip


def _are_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _are_heads(value: Any) -> bool:  # noqa: ANN401, it is whatever a client sent
    # PEFT runs these as regular expressions, so none but plain names may reach it
    return (
        _are_names(value)
        and len(value) <= MAX_HEADS
        and all(re.fullmatch(r"[\w.-]+", v) for v in value)
    )


def _are_tokens(value: object) -> bool:
    if isinstance(value, Mapping):
        return _are_heads([*value]) and all(map(_are_indices, value.values()))
    return _are_indices(value)


def _are_indices(value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(i) is int and i >= 0 for i in value)


def _are_ranges(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        _are_indices(pair) and len(pair) == 2 and pair[0] < pair[1] for pair in value
    )


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_alpha(value: object) -> bool:
    return (type(value) is int or type(value) is float) and 0 < value <= MAX_ALPHA


_STARTS = ("gaussian", "orthogonal", "eva", "mica")
_START = (
    f"true, false or one of {', '.join(_STARTS)}; PiSSA, OLoRA, CorDA and LoRA-GA change the base weights, so that these factors "
    "are no update of them: save with PEFT's path_initial_model_for_weight_conversion, which writes plain LoRA of rank 2r; LoftQ "
    "trains on a quantised base of its own, by bits, iterations and rank: save that base, and train on it with init_lora_weights=True"
)
_ALPHA, _NAMES = f"a number above 0, at most {MAX_ALPHA:,.0f}", "a list of module names"
# setting -> its value where the config has none (None: it must have one), what it may be, in words
_Field = tuple[object, Callable[[Any], bool], str]
_PEFT_TYPE: _Field = (None, lambda v: v in ("LORA", "HIRA"), f"'LORA' or 'HIRA'; {SUPPORTED}")
_FIELDS: dict[str, _Field] = {
    "peft_type": _PEFT_TYPE,
    "r": (None, _is_rank, f"a whole number from 1 to {MAX_RANK:,}"),
    "rank_pattern": ({}, lambda v: isinstance(v, Mapping) and all(map(_is_rank, v.values())), f"module names, each with a whole number from 1 to {MAX_RANK:,}"),
    "base_model_name_or_path": ("", lambda v: isinstance(v, str), "a name"),
    "target_modules": ((), lambda v: isinstance(v, str) or _are_names(v), _NAMES),
    "modules_to_save": ((), _are_heads, f"{_NAMES}, at most {MAX_HEADS} and no patterns"),
    "fan_in_fan_out": (False, lambda v: type(v) is bool, "true or false"),
    "task_type": ("", lambda v: v in _TASKS, f"one of {', '.join(_TASKS)}"),
    "revision": ("", lambda v: isinstance(v, str), "a name"),
}  # fmt: skip
_DROPOUT: _Field = (0.0, lambda v: type(v) in (int, float) and 0 <= v <= 1, "a number from 0 to 1")
# peft_type -> the settings that it has beside those
_OWN_FIELDS: dict[str, dict[str, _Field]] = {
    "LORA": {
        "lora_alpha": (None, _is_alpha, _ALPHA),
        "alpha_pattern": ({}, lambda v: isinstance(v, Mapping) and all(map(_is_alpha, v.values())), f"module names, each with {_ALPHA}"),
        "use_rslora": (False, lambda v: type(v) is bool, "true or false"),
        "use_dora": (False, lambda v: type(v) is bool, "true or false"),
        "bias": ("none", lambda v: v in ("none", "all", "lora_only"), "'none', 'all' or 'lora_only'"),
        "lora_bias": (False, lambda v: type(v) is bool, "true or false"),
        "lora_dropout": _DROPOUT,
        "target_parameters": ((), _are_heads, f"a list of parameter names, at most {MAX_HEADS} and no patterns"),
        "trainable_token_indices": ({}, _are_tokens, "a list of token numbers, or module names, each with such a list"),
        "layer_replication": ((), _are_ranges, "a list of pairs of layer numbers, each [first, one past the last]"),
        "init_lora_weights": (True, lambda v: type(v) is bool or v in _STARTS, _START),
    },
    "HIRA": {
        "hira_dropout": _DROPOUT,
        "init_weights": (True, lambda v: type(v) is bool or v == "gaussian", "true, false or 'gaussian'"),
    },
}  # fmt: skip
FOREIGN = {"LORA": _OWN_FIELDS["HIRA"].keys(), "HIRA": _OWN_FIELDS["LORA"].keys()}
"""peft_type -> settings of the other one."""
CARRIED = ("bias", "fan_in_fan_out", "hira_dropout", "layer_replication", "lora_bias", "lora_dropout", "modules_to_save", "revision", "target_parameters", "task_type", "trainable_token_indices")  # fmt: skip
SELECTORS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
# no part of the update: how the start was drawn, or of the software; auto_mapping is not carried along because PEFT imports what it names
IGNORED = {"auto_mapping", "corda_config", "eva_config", "inference_mode", "loftq_config", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "runtime_config"}  # fmt: skip


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with all fields checked or set, its ``variant``, and the patterns ready for :func:`resolve`."""
    is_hira = _value(config, "peft_type", _PEFT_TYPE) == "HIRA"  # in memory PEFT has an enum
    kind = "HIRA" if is_hira else "LORA"
    fields = _FIELDS | _OWN_FIELDS[kind]
    foreign = [name for name in config if name in FOREIGN[kind] and config[name]]
    if foreign:
        raise AdapterError(
            f"{foreign[0]} is {short(config[foreign[0]])}; expected no such setting, since peft_type is {kind!r}; "
            "save again with PEFT"
        )
    values: dict[str, Any] = {name: _value(config, name, field) for name, field in fields.items()}
    for name in {"rank_pattern", "alpha_pattern"} & fields.keys():
        values[name] = _patterns(name, values[name])
    if values.get("target_parameters"):  # a set to PEFT, which sorts it
        values["target_parameters"] = sorted(values["target_parameters"])
    unsupported = {name: what for what, names, _ in UNSUPPORTED for name in names}
    known = fields.keys() | FOREIGN[kind] | IGNORED | {*SELECTORS}
    for name, value in config.items():
        if value and name in unsupported:
            raise AdapterError(
                f"{name} is {short(value)}: {unsupported[name]} is not supported; {SUPPORTED}"
            )
        if value and name not in known:
            raise AdapterError(
                f"{short(name)} is {short(value)}; expected no setting that PEFT 0.21 does not have for LoRA; save again with that PEFT"
            )
    variant = "hira" if kind == "HIRA" else "dora" if values["use_dora"] else "lora"
    return {**config, **values, "variant": variant}


def _value(config: Mapping[str, object], name: str, field: _Field) -> object:
    default, accepts, expected = field
    value = config.get(name)
    if value is None and default is not None:
        return default
    value = sorted(value) if isinstance(value, set) else value  # in memory PEFT has sets of names
    if not accepts(value):
        came = short(value) if name in config else "missing"
        raise AdapterError(f"{name} is {came}; expected {expected}")
    return value


def _patterns(setting: str, patterns: Mapping[str, object]) -> dict[str, tuple[int, object]]:
    """Module or dotted suffix of one -> place in the config and value; ``^`` before a full name."""
    named: dict[str, tuple[int, object]] = {}
    for position, (pattern, value) in enumerate(patterns.items()):
        if not re.fullmatch(r"\^?(?:[\w.-]|\\\W)+", pattern):
            raise AdapterError(
                rf"{setting} has {short(pattern)}; expected a module's name or its end, with ^ before a full name and \. for dots at most, since patterns from outside are not run; spell the names out"
            )
        named.setdefault(re.sub(r"\\(\W)", r"\1", pattern), (position, value))
    return named


def resolve(patterns: Mapping[str, tuple[int, Any]], module: str, default: float) -> float:
    """Value of the first pattern that matches a module, as PEFT has it."""
    if not patterns:
        return default
    names = ("^" + module, *suffixes(module))
    return min((patterns[n] for n in names if n in patterns), default=(0, default))[1]


def suffixes(name: str) -> Iterator[str]:
    """``a.b.c`` -> ``a.b.c``, ``b.c``, ``c``."""
    while name:
        yield name
        name = name.partition(".")[2]


def short(value: object) -> str:
    """A value for a message, cut where an attacker would have it fill the screen."""
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
