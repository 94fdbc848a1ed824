"""Adapters on the wire: one flat float32 tensor with a manifest that both sides check.

Flower moves every array as an object of its own, on every hop, so an adapter of 400 tensors takes
many times as long as one tensor of the same size. An adapter is therefore flattened into one tensor; the
manifest says which names, shapes, ranks, alphas and base model it is made of.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from reprlib import repr as short
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from florana.adapter import Adapter, LoraPair
from florana.errors import AdapterError
from florana.lowrank import Product

ARRAYS = "arrays"
MANIFEST = "manifest"
ADAPTER = "adapter"
RESIDUAL = "residual"


def pack(adapter: Adapter, residual: Mapping[str, Product] | None = None) -> RecordDict:
    """Put an adapter, and the residual beside it if there is one, into Flower records."""
    parts: dict[str, Tensor] = {ADAPTER: _flatten(adapter.tensors())}
    manifest = {"adapter": describe(adapter)}
    if residual:
        parts[RESIDUAL] = _flatten(_factors(residual))
        manifest["residual"] = {name: product.width for name, product in residual.items()}
    arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in parts.items()})
    return RecordDict({ARRAYS: arrays, MANIFEST: ConfigRecord({"json": json.dumps(manifest)})})


def unpack(content: RecordDict, template: Adapter) -> tuple[Adapter, dict[str, Product]]:
    """Take an adapter and its residual out of Flower records.

    Args:
        content: as :func:`pack` made it.
        template: an adapter of the same base and modules; ranks and alphas may differ.

    Raises:
        AdapterError: if the manifest is missing, does not fit the template, or does not fit the arrays.
    """
    manifest = _manifest(content)
    adapter = _template_for(manifest, template)
    arrays = content.array_records.get(ARRAYS)
    if arrays is None or ADAPTER not in arrays:
        raise AdapterError(f"the message holds no array {ADAPTER!r} in its record {ARRAYS!r}")
    laid_out = _unflatten(arrays[ADAPTER], _in_sent_order(adapter, manifest), ADAPTER)
    adapter = adapter.with_tensors(laid_out)
    widths = manifest.get("residual", {})
    if not isinstance(widths, dict):
        raise AdapterError(
            f"the manifest's residual is {short(widths)}, expected a width per module"
        )
    if not widths:
        return adapter, {}
    if RESIDUAL not in arrays:
        raise AdapterError(f"the message holds no array {RESIDUAL!r}, which its manifest announces")
    blank = {name: _blank_product(adapter, name, width) for name, width in widths.items()}
    factors = _unflatten(arrays[RESIDUAL], _factors(blank), RESIDUAL)
    return adapter, {name: Product(factors[f"{name}.B"], factors[f"{name}.A"]) for name in widths}


def describe(adapter: Adapter) -> dict[str, Any]:
    """The manifest of an adapter: what it is made of, without its numbers."""
    return {
        "base_model": adapter.base_model,
        "base_hash": adapter.base_hash,
        "modules": {
            name: {"shape": pair.shape, "r": pair.rank, "alpha": pair.alpha, "rslora": pair.rslora}
            for name, pair in adapter.pairs.items()
        },
        "parameters": {name: list(tensor.shape) for name, tensor in adapter.extras.items()},
    }


def count_bytes(content: RecordDict) -> int:
    """Bytes of the records as they go on the wire: array data with its header, and the manifest."""
    arrays = sum(record.count_bytes() for record in content.array_records.values())
    configs = sum(record.count_bytes() for record in content.config_records.values())
    return (
        arrays + configs + sum(record.count_bytes() for record in content.metric_records.values())
    )


def _manifest(content: RecordDict) -> dict[str, Any]:
    record = content.config_records.get(MANIFEST)
    try:
        manifest = json.loads(str(record["json"])) if record is not None else None
    except (KeyError, ValueError, RecursionError) as error:
        raise AdapterError(f"the message's manifest cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("adapter"), dict):
        raise AdapterError("the message holds no manifest; send what florana.federation.pack makes")
    return manifest


def _template_for(manifest: dict[str, Any], template: Adapter) -> Adapter:
    """The template with the manifest's ranks and alphas; everything else must be the same."""
    came, expected = manifest["adapter"], describe(template)
    for what in ("base_model", "base_hash"):
        if came.get(what) != expected[what]:
            raise AdapterError(f"{what} is {short(came.get(what))}, expected {expected[what]!r}")
    for kind in ("modules", "parameters"):
        if not isinstance(came.get(kind), dict):
            raise AdapterError(
                f"the manifest's {kind} are {short(came.get(kind))}, expected a table"
            )
        odd = sorted(came[kind].keys() ^ expected[kind].keys())
        if odd:
            raise AdapterError(f"the {kind} differ from the server's at {', '.join(odd[:3])}")
    pairs = {
        name: _blank_pair(name, came["modules"][name], like)
        for name, like in template.pairs.items()
    }
    for name, shape in came["parameters"].items():
        if shape != expected["parameters"][name]:
            raise AdapterError(
                f"parameter {name} has shape {short(shape)}, expected {expected['parameters'][name]}"
            )
    return replace(template, pairs=pairs)


def _in_sent_order(adapter: Adapter, manifest: dict[str, Any]) -> dict[str, Tensor]:
    """The adapter's tensors in the order of the manifest, which is that of the flat tensor."""
    tensors, came = adapter.tensors(), manifest["adapter"]
    factors = [f"{module}.lora_{factor}" for module in came["modules"] for factor in "AB"]
    return {name: tensors[name] for name in [*factors, *came["parameters"]]}


def _blank_pair(name: str, said: object, like: LoraPair) -> LoraPair:
    """A pair without memory of its own, in the shape that the manifest gives one module."""
    if not isinstance(said, dict):
        raise AdapterError(f"module {name} is {short(said)} in the manifest, expected a table")
    rank: Any = said.get("r")
    alpha: Any = said.get("alpha")
    rslora: Any = said.get("rslora")
    d_out, d_in = like.shape
    if said.get("shape") != [d_out, d_in]:
        raise AdapterError(
            f"module {name} has shape {short(said.get('shape'))}, expected {[d_out, d_in]}"
        )
    if type(rank) is not int or not 1 <= rank <= min(d_out, d_in):
        raise AdapterError(
            f"module {name} has rank {short(rank)}, expected 1 to {min(d_out, d_in)}"
        )
    if type(alpha) not in (int, float) or not 0 < alpha <= sys.float_info.max:
        raise AdapterError(
            f"module {name} has alpha {short(alpha)}, expected a finite number above 0"
        )
    if type(rslora) is not bool:
        raise AdapterError(f"module {name} has rslora {short(rslora)}, expected true or false")
    A, B = like.A.new_zeros(()).expand(rank, d_in), like.B.new_zeros(()).expand(d_out, rank)
    return LoraPair(A, B, float(alpha), rslora)


def _blank_product(adapter: Adapter, name: str, width: object) -> Product:
    if name not in adapter.pairs:
        raise AdapterError(f"the residual is of module {name!r}, which the adapter has not")
    d_out, d_in = adapter.pairs[name].shape
    if type(width) is not int or not 1 <= width <= min(d_out, d_in):
        raise AdapterError(
            f"the residual of module {name} has width {short(width)}, expected 1 to {min(d_out, d_in)}"
        )
    return Product(torch.zeros(()).expand(d_out, width), torch.zeros(()).expand(width, d_in))


def _factors(residual: Mapping[str, Product]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, product in residual.items():
        named[f"{name}.B"], named[f"{name}.A"] = product
    return named


def _flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().to("cpu", torch.float32).reshape(-1) for t in tensors.values()])


def _unflatten(array: Array, like: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    sizes = [t.numel() for t in like.values()]
    if array.dtype != "float32" or tuple(array.shape) != (sum(sizes),):
        raise AdapterError(
            f"array {what!r} is {array.dtype} of shape {tuple(array.shape)}, "
            f"the manifest asks for float32 of shape ({sum(sizes)},)"
        )
    try:
        flat = torch.from_numpy(array.numpy())
    except Exception as error:  # numpy raises a different class for every way to be malformed
        raise AdapterError(f"array {what!r} cannot be read: {error}") from error
    if flat.shape != (sum(sizes),) or flat.dtype != torch.float32:
        raise AdapterError(f"array {what!r} holds other data than its header says")
    pieces = torch.split(flat, sizes)
    return {
        name: piece.view(t.shape) for (name, t), piece in zip(like.items(), pieces, strict=True)
    }
