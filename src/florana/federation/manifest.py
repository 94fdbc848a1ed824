"""The manifest of a message: what an adapter on the wire is made of, without its numbers.

Whoever reads a manifest trusts nothing in it: it may come from anybody.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from reprlib import repr as short
from typing import Any

import torch
from flwr.app import RecordDict
from torch import Tensor

from florana.adapter import OF_A_PAIR, PARTS, Adapter, LoraPair, Part
from florana.config import Codec
from florana.errors import AdapterError
from florana.federation.codec import CODECS
from florana.federation.views import configs_in
from florana.lowrank import Product

MANIFEST = "manifest"


def describe(adapter: Adapter) -> dict[str, Any]:
    """The manifest of an adapter: what it is made of, without its numbers."""
    return {
        "base_model": adapter.base_model,
        "base_hash": adapter.base_hash,
        "modules": {name: _describe(pair) for name, pair in adapter.pairs.items()},
        "parameters": {name: list(tensor.shape) for name, tensor in adapter.extras.items()},
    }


def _describe(pair: LoraPair) -> dict[str, Any]:
    said = {"shape": pair.shape, "r": pair.rank, "alpha": pair.alpha, "rslora": pair.rslora}
    if pair.variant != "lora":
        said["variant"] = pair.variant
    return said if pair.basis is None else {**said, "basis": pair.basis.shape[1]}


def new_manifest(
    adapter: Adapter,
    residual: Mapping[str, Product] | None,
    parts: Collection[Part],
    increment: bool,
) -> dict[str, Any]:
    """The manifest of a message that holds these parts, and a residual or an increment of one."""
    manifest: dict[str, Any] = {
        "adapter": describe(adapter),
        "parts": [p for p in PARTS if p in parts],
    }
    if residual or increment:
        manifest["residual"] = {name: product.width for name, product in (residual or {}).items()}
        manifest["increment"] = increment
    return manifest


def read_manifest(content: RecordDict) -> dict[str, Any]:
    """The manifest of a message, as far as every message has one.

    Raises:
        AdapterError: if it is missing or cannot be read.
    """
    record = configs_in(content).get(MANIFEST)
    try:
        manifest = json.loads(str(record["json"])) if record is not None else None
    except (KeyError, ValueError, RecursionError) as error:
        raise AdapterError(f"the message's manifest cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("adapter"), dict):
        raise AdapterError("the message holds no manifest; send what florana.federation.pack makes")
    return manifest


def sent_parts(content: RecordDict) -> frozenset[Part]:
    """The parts that a message holds.

    Raises:
        AdapterError: if its manifest does not say so.
    """
    parts = read_manifest(content).get("parts", list(PARTS))
    if not isinstance(parts, list) or not set(map(str, parts)) <= set(PARTS):
        raise AdapterError(
            f"the manifest's parts are {short(parts)}, expected some of {', '.join(PARTS)}"
        )
    return frozenset(parts)


def read_codec(manifest: Mapping[str, Any]) -> Codec:
    """What stands for numbers in the message.

    Raises:
        AdapterError: if the codec is not known.
    """
    codec = manifest.get("codec", "float32")
    if codec not in CODECS:
        raise AdapterError(f"the manifest's codec is {short(codec)}, expected one of {CODECS}")
    return codec  # type: ignore[no-any-return]


def blank_adapter(manifest: dict[str, Any], template: Adapter) -> Adapter:
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
            raise AdapterError(
                f"the {kind} differ from the server's at {', '.join(map(_shown, odd[:3]))}"
            )
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


def in_sent_order(
    adapter: Adapter, parts: frozenset[Part], manifest: dict[str, Any]
) -> dict[str, Tensor]:
    """The tensors that were sent, in the order of the manifest, which is that of the flat tensor."""
    tensors, came = adapter.tensors(parts), manifest["adapter"]
    factors = [f"{module}.lora_{part}" for module in came["modules"] for part in OF_A_PAIR]
    return {name: tensors[name] for name in [*factors, *came["parameters"]] if name in tensors}


def _blank_pair(name: str, said: object, like: LoraPair) -> LoraPair:
    """A pair without memory of its own, in the shape that the manifest gives one module."""
    if not isinstance(said, dict):
        raise AdapterError(f"module {name} is {short(said)} in the manifest, expected a table")
    rank: Any = said.get("r")
    alpha: Any = said.get("alpha")
    rslora: Any = said.get("rslora")
    width: Any = said.get("basis")
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
    if width is not None and (type(width) is not int or not 1 <= width <= d_out):
        raise AdapterError(f"module {name} has basis {short(width)}, expected 1 to {d_out}")
    if said.get("variant", "lora") != like.variant:
        raise AdapterError(
            f"module {name} has variant {short(said.get('variant', 'lora'))}, expected {like.variant!r}"
        )
    zero_A, zero_B = like.A.new_zeros(()), like.B.new_zeros(())
    magnitude = None if like.magnitude is None else zero_B.expand(d_out)
    return LoraPair(
        zero_A.expand(rank, d_in),
        zero_B.expand(d_out if width is None else width, rank),
        float(alpha),
        rslora,
        None if width is None else zero_B.expand(d_out, width),
        magnitude,
        like.hadamard,
    )


def blank_product(adapter: Adapter, name: str, width: object) -> Product:
    """A product without memory of its own, of the width that the manifest gives one module's residual.

    Raises:
        AdapterError: if the module or the width cannot be.
    """
    if name not in adapter.pairs:
        raise AdapterError(f"the residual is of module {_shown(name)}, which the adapter has not")
    d_out, d_in = adapter.pairs[name].shape
    if type(width) is not int or not 1 <= width <= min(d_out, d_in):
        raise AdapterError(
            f"the residual of module {name} has width {short(width)}, expected 1 to {min(d_out, d_in)}"
        )
    return Product(torch.zeros(()).expand(d_out, width), torch.zeros(()).expand(width, d_in))


def _shown(name: str) -> str:
    """A name that came over the wire, so that a message about it can be printed anywhere."""
    return name if name.isprintable() and len(name) <= 200 else short(name)
