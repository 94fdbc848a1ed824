"""What a PEFT file holds, told from its settings and the shapes of its tensors alone: which keys make which pair."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from florana.errors import AdapterError
from florana.peft_io.extras import TOKENS, read_extras
from florana.peft_io.extras import StoredExtra as StoredExtra
from florana.peft_io.layouts import (
    EMBEDDING,
    LINEAR,
    Layout,
)
from florana.peft_io.modules import StoredModule as StoredModule
from florana.peft_io.modules import read_module
from florana.peft_io.names import factor_keys, plain_names
from florana.peft_io.scales import pattern_names
from florana.peft_io.settings import CARRIED, SELECTORS, short, suffixes
from florana.peft_io.values import TensorInfo as TensorInfo
from florana.peft_io.values import check_info


@dataclass(frozen=True, slots=True)
class AdapterForm:
    """All that a PEFT adapter holds, without a value of it.

    Args:
        modules: module name -> what is stored for it, sorted by name.
        extras: parameter name -> what is stored for it: heads, biases, token rows, tables.
        base_model: the base model's name.
        peft_config: the settings to carry along, as :class:`florana.adapter.Adapter` has them.
    """

    modules: Mapping[str, StoredModule]
    extras: Mapping[str, StoredExtra]
    base_model: str
    peft_config: Mapping[str, object]

    @property
    def layouts(self) -> dict[str, Layout]:
        """Module -> layout, for all but plain linear layers: ``layouts`` of an :class:`~florana.adapter.Adapter`."""
        return {name: m.layout for name, m in self.modules.items() if m.layout != LINEAR}


def read_form(infos: Mapping[str, TensorInfo], settings: dict[str, Any]) -> AdapterForm:
    """Find out which tensors make which pair, and refuse what does not fit together.

    Args:
        infos: key -> dtype and shape of every tensor of the file.
        settings: as :func:`florana.peft_io.settings.read_settings` returns them.

    Raises:
        AdapterError: if a tensor is missing, left over, of another shape than the settings say, or not supported.

    Example:
        >>> import torch
        >>> from florana.peft_io.settings import read_settings
        >>> infos = {
        ...     "base_model.model.conv.lora_A.weight": TensorInfo(torch.float32, (2, 4, 3)),
        ...     "base_model.model.conv.lora_B.weight": TensorInfo(torch.float32, (8, 2, 1)),
        ... }
        >>> form = read_form(infos, read_settings({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
        >>> form.modules["conv"].shape, form.modules["conv"].scaling
        ((8, 12), 2.0)
    """
    names = plain_names(infos)
    for key in names.values():
        check_info(key, infos[key])
    factors, others = factor_keys(names)
    if not factors:
        raise AdapterError(
            "has no <module>.lora_A.weight or the like; expected one pair or more; save it again"
        )
    _check_complete(factors.keys(), others, settings)
    modules, stems = {}, {}
    for stem, ends in factors.items():
        module = read_module(stem, ends, factors.keys(), infos, settings)
        modules[module.name], stems[stem] = module, module.name
    embeddings = {name for name, module in modules.items() if module.layout == EMBEDDING}
    scalings = {name: module.scaling for name, module in modules.items()}
    extras = read_extras(others, infos, stems, scalings, embeddings, settings)
    carried = {
        n: settings[n] for n in CARRIED if n in settings and settings[n] not in ("", (), {}, [])
    }
    if not carried.get("lora_bias"):
        carried.pop("lora_bias", None)
    return AdapterForm(
        MappingProxyType(dict(sorted(modules.items()))),
        MappingProxyType(dict(sorted(extras.items()))),
        settings["base_model_name_or_path"],
        MappingProxyType(carried | {"target_modules": targets(settings, modules)}),
    )


def _check_complete(
    stems: Set[str], others: Mapping[str, str], settings: Mapping[str, Any]
) -> None:
    """Refuse settings without their tensors, which PEFT would leave as they start."""
    parameters = settings.get("target_parameters", ())
    missing = {*parameters}
    for stem in stems if parameters else ():
        for name in pattern_names(stem, LINEAR, parameters):
            missing.difference_update(suffixes(name))
    if missing:
        raise AdapterError(
            f"target_parameters has {short(min(missing))}, and no factors are there; expected lora_A and lora_B of its module; save "
            "config and weights from one model"
        )
    if settings.get("trainable_token_indices") and not any(n.endswith(TOKENS) for n in others):
        raise AdapterError(
            "has no trainable_tokens_delta; expected one, since trainable_token_indices is set; save it again"
        )
    if settings.get("lora_bias"):
        bare = [stem for stem in stems if f"{stem}.lora_B.bias" not in others]
        if bare:
            raise AdapterError(
                f"module {short(bare[0])} has no lora_B.bias; expected one, since lora_bias is True; save it again"
            )


def targets(config: Mapping[str, Any], modules: Mapping[str, object] | Set[str]) -> list[str]:
    """A list by which PEFT finds the adapted modules again: the config's own, or all their names."""
    given = config.get("target_modules") or ""
    others = [config.get(name) for name in SELECTORS if name != "target_modules"]
    parameters = tuple(config.get("target_parameters") or ())
    wanted = [
        name
        for name in modules
        if not name.endswith(".out_proj") or name.removesuffix(".out_proj") not in modules
    ]
    wanted = [name for name in wanted if pattern_names(name, LINEAR, parameters) == (name,)]
    if not isinstance(given, str) and all(other in (None, [], "") for other in others):
        chosen = set(given)
        if all(not chosen.isdisjoint(suffixes(name)) for name in wanted):
            return sorted(chosen)
    return sorted(wanted)
