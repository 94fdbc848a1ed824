"""PEFT's adapter format in memory: state dict and settings on one side, :class:`Adapter` on the other.

PEFT itself is not imported here. Which keys make which pair is the business of :mod:`florana.peft_io.form`, how
they lie in them that of :mod:`florana.peft_io.layouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from typing import Any

from torch import Tensor

from florana.adapter import Adapter, LoraPair
from florana.config import Variant
from florana.errors import AdapterError
from florana.peft_io.extras import LORA_BIAS, TOKENS, is_table, is_trained_bias, scaled, stored_name
from florana.peft_io.form import AdapterForm, read_form, targets
from florana.peft_io.layouts import LINEAR, Layout
from florana.peft_io.modules import write_module
from florana.peft_io.names import PREFIX
from florana.peft_io.names import about as about
from florana.peft_io.scales import Scale, alike, one_entry, ranks_and_alphas
from florana.peft_io.settings import FOREIGN, IGNORED, SELECTORS, read_settings, short
from florana.peft_io.values import info_of


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
        >>> import torch
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


def build_adapter(state: Mapping[str, Tensor], settings: dict[str, Any], base_hash: str) -> Adapter:
    """The adapter of a state dict under settings that :func:`read_settings` has checked."""
    form = read_form({key: info_of(tensor) for key, tensor in state.items()}, settings)
    return read_adapter(form, lambda key: state[key].detach().clone(), base_hash)


def read_adapter(
    form: AdapterForm, tensor: Callable[[str], Tensor], base_hash: str = ""
) -> Adapter:
    """Everything that a form stands for.

    Args:
        form: what is stored under which key.
        tensor: key -> tensor.
        base_hash: hash of the base model's weights, or "" where it is not known.

    Raises:
        AdapterError: if a tensor holds NaN or infinity.
    """
    pairs = {
        name: pair for module in form.modules.values() for name, pair in module.read(tensor).items()
    }
    extras = {name: extra.read(tensor(extra.key)) for name, extra in form.extras.items()}
    return Adapter(pairs, extras, form.base_model, base_hash, form.peft_config, form.layouts)


def adapter_to_state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """Copies of an adapter's tensors under PEFT's keys, for ``set_peft_model_state_dict``.

    Raises:
        AdapterError: if an expert of a stack has no pair.

    Example:
        >>> import torch
        >>> from florana.adapter import LoraPair
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> list(adapter_to_state_dict(Adapter({"layer": pair}, {"layer.bias": torch.ones(3)})))[1:]
        ['base_model.model.layer.lora_B.weight', 'base_model.model.layer.base_layer.bias']
    """
    modules, pairs = dict(stored_modules(adapter.pairs, adapter.layouts)), writable_pairs(adapter)
    state: dict[str, Tensor] = {}
    for module, layout in modules.items():
        state |= write_module(module, layout, pairs)
    stems = {layout.stem(module) for module, layout in modules.items()}
    for name, tensor in adapter.extras.items():
        module = name.removesuffix(LORA_BIAS)
        if module != name and module in modules:
            key = f"{modules[module].stem(module)}.lora_B.bias"
            state[PREFIX + key] = scaled(tensor, 1 / pairs[module].scaling)
        else:
            state[PREFIX + stored_name(name, stems)] = scaled(tensor, 1)
    return state


def writable_pairs(adapter: Adapter) -> dict[str, LoraPair]:
    """The adapter's pairs, those padded with zeros of which PEFT's config can say one rank and alpha only."""
    given: Mapping[str, Any] = adapter.peft_config
    parameters = tuple(given.get("target_parameters") or ())
    entries: dict[Hashable, list[str]] = {}
    for module, layout in stored_modules(adapter.pairs, adapter.layouts):
        entry = one_entry(module, layout, parameters, adapter.variant)
        entries.setdefault(entry, []).extend(layout.pair_names(module))
    pairs = dict(adapter.pairs)
    for names in entries.values():
        if len(names) > 1:
            pairs |= zip(names, alike([pairs[name] for name in names]), strict=True)
    return pairs


def stored_modules(
    pairs: Collection[str], layouts: Mapping[str, Layout]
) -> Iterator[tuple[str, Layout]]:
    """Modules as PEFT stores them, with their layouts, from the names of pairs.

    Raises:
        AdapterError: if an expert of a stack has no pair.
    """
    inside: dict[str, str] = {}
    for module, layout in layouts.items():
        inside |= dict.fromkeys(layout.pair_names(module), module)
    done: set[str] = set()
    for name in pairs:
        module = inside.get(name, name)
        layout = layouts.get(module, LINEAR)
        if module in done:
            continue
        missing = [each for each in layout.pair_names(module) if each not in pairs]
        if missing:
            raise AdapterError(
                f"module {short(module)} lacks the pair {short(missing[0])}; expected one for each of its {layout.experts} experts"
            )
        done.add(module)
        yield module, layout


def adapter_to_config(adapter: Adapter) -> dict[str, object]:
    """PEFT's settings for an adapter, as ``adapter_config.json`` has them.

    The most common rank and alpha become ``r`` and ``lora_alpha``, others become patterns that match
    one module each. If only some pairs use rsLoRA, none does in the result, and alphas are chosen to
    keep every scaling. What ``peft_config`` does not say is read off the tensors: modules, heads,
    and the kind of bias.

    Example:
        >>> import torch
        >>> from florana.adapter import LoraPair
        >>> pair = LoraPair(torch.ones(2, 4), torch.ones(3, 2), alpha=4)
        >>> wide = LoraPair(torch.ones(5, 4), torch.ones(3, 5), alpha=4)
        >>> config = adapter_to_config(Adapter({"a.up": pair, "b.up": pair, "up": wide}))
        >>> config["r"], config["lora_alpha"], config["rank_pattern"], config["target_modules"]
        (2, 4, {'^up': 5}, ['a.up', 'b.up', 'up'])
    """
    scales, pairs = {}, writable_pairs(adapter)
    for module, layout in stored_modules(pairs, adapter.layouts):
        pair = pairs[layout.pair_names(module)[0]]
        scales[module] = Scale(pair.rank, pair.alpha, pair.rslora)
    return written_config(
        scales,
        adapter.layouts,
        adapter.variant,
        adapter.extras.keys(),
        adapter.base_model,
        adapter.peft_config,
    )


def written_config(
    scales: Mapping[str, Scale],
    layouts: Mapping[str, Layout],
    variant: Variant,
    extras: Collection[str],
    base_model: str,
    given: Mapping[str, Any],
) -> dict[str, object]:
    """PEFT's settings for what is to be written, without its tensors; see :func:`adapter_to_config`.

    Args:
        scales: module -> rank, alpha and rsLoRA flag.
        layouts: module -> layout, where it is not that of a linear layer.
        variant: of all pairs.
        extras: names of the parameters beside the pairs.
        base_model: name of the base model.
        given: settings to carry along, as ``Adapter.peft_config`` has them.

    Raises:
        AdapterError: if PEFT has no config for such ranks and alphas.
    """
    modules, parameters = scales.keys(), tuple(given.get("target_parameters") or ())
    has_bias = any(is_trained_bias(name, "lora_only", modules) for name in extras)
    bias = str(given.get("bias") or ("lora_only" if has_bias else "none"))
    # PEFT names its heads; in an adapter made by hand a table can only be one
    by_peft = "target_modules" in given
    tables = {name for name in extras if name.removesuffix(".weight") in modules}
    tables |= {name for name in extras if by_peft and is_table(name, set())}
    heads = {
        name.rpartition(".")[0]
        for name in extras
        if not (is_trained_bias(name, bias, modules) or name in tables)
        and not name.endswith((LORA_BIAS, TOKENS))
    }
    peft_type = "HIRA" if variant == "hira" else "LORA"
    config = {
        **{name: value for name, value in given.items() if name not in {*SELECTORS, *IGNORED}},
        "target_modules": targets(given, modules),
        "modules_to_save": given.get("modules_to_save") or sorted(heads) or None,
        "bias": bias,
        "base_model_name_or_path": base_model or None,
        "peft_type": peft_type,
        "inference_mode": True,
        **ranks_and_alphas(scales, layouts, parameters, variant),
        **({"use_dora": True} if variant == "dora" else {}),
        **({"lora_bias": True} if any(name.endswith(LORA_BIAS) for name in extras) else {}),
    }
    return {name: value for name, value in config.items() if name not in FOREIGN[peft_type]}
