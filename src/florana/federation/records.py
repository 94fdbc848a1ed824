"""Adapters on the wire: one flat tensor with a manifest that both sides check.

Flower moves every array as an object of its own, on every hop, so an adapter of 400 tensors takes
many times as long as one tensor of the same size. An adapter is therefore flattened into one tensor; the
manifest says which names, shapes, ranks, alphas and base model it is made of, and which of its
parts are there. A part that the receiver holds already is left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from reprlib import repr as short
from typing import Any, NamedTuple

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from florana.adapter import EVERYTHING, Adapter, Part
from florana.aggregators import add_increment
from florana.config import Codec
from florana.errors import AdapterError
from florana.federation.codec import SCALES, VALUES, Encoded, encode, feed, restore
from florana.federation.manifest import (
    MANIFEST,
    blank_adapter,
    blank_product,
    in_sent_order,
    new_manifest,
    read_codec,
    read_manifest,
    sent_parts,
)
from florana.federation.views import arrays_in, configs_in, metrics_in
from florana.lowrank import Product

ARRAYS = "arrays"
ADAPTER = "adapter"
RESIDUAL = "residual"


@dataclass(frozen=True, eq=False)
class Held:
    """A global model as it stands on one side of the wire: an adapter, and F beside it."""

    adapter: Adapter
    residual: Mapping[str, Product] = field(default_factory=dict)


def pack(
    adapter: Adapter,
    residual: Mapping[str, Product] | None = None,
    parts: Collection[Part] = EVERYTHING,
    *,
    increment: bool = False,
) -> RecordDict:
    """Put an adapter, and the residual beside it if there is one, into Flower records.

    Args:
        adapter: what to send.
        residual: module -> F, or what is to be added to it.
        parts: the parts to send; the receiver must hold the others.
        increment: whether ``residual`` is to be added to the F that the receiver holds.
    """
    flat = {
        ADAPTER: encode(_flatten(adapter.tensors(parts)), "float32"),
        RESIDUAL: encode(_flatten(_factors(residual or {})), "float32"),
    }
    return _records(flat, new_manifest(adapter, residual, parts, increment))


class Lossy(NamedTuple):
    """A message in fewer bits: what goes on the wire, what arrives, and what is left out.

    Args:
        content: the records.
        arrives: what the receiver has after :func:`unpack`, to the last bit; its residual is the increment.
        carried: (n,) what the codec left out of the adapter, for this sender's next message.
    """

    content: RecordDict
    arrives: Held
    carried: Tensor | None


def pack_lossy(
    adapter: Adapter,
    codec: Codec,
    parts: Collection[Part] = EVERYTHING,
    *,
    reference: Adapter | None = None,
    carried: Tensor | None = None,
    increment: Mapping[str, Product] | None = None,
) -> Lossy:
    """Like :func:`pack`, with what the receiver lacks in fewer bits, and error feedback for the rest.

    What is coded is the difference to ``reference``, see :func:`florana.federation.codec.feed`. An
    increment of the residual is coded as it is, and nothing of it is carried.

    Args:
        adapter: what the receiver shall have.
        codec: what stands for a number.
        parts: the parts to send; the receiver must hold the others.
        reference: what the receiver holds, to the last bit, in the shapes of ``adapter``; None for nothing.
        carried: what the sender's last message left out; forgotten if it is of another length.
        increment: module -> what is to be added to the receiver's F.

    Raises:
        AdapterError: if a number does not fit into the codec.
    """
    sent = adapter.tensors(parts)
    held = None if reference is None else _flatten(reference.tensors(parts))
    values = _flatten(sent)
    if carried is not None and carried.shape != values.shape:
        carried = None
    adapter_fed = feed(values, held, carried, codec)
    residual_fed = feed(_flatten(_factors(increment or {})), None, None, codec)
    manifest = new_manifest(adapter, increment, parts, increment is not None)
    manifest |= {"codec": codec, "difference": reference is not None}
    content = _records({ADAPTER: adapter_fed.encoded, RESIDUAL: residual_fed.encoded}, manifest)
    arrived = _products(_cut(residual_fed.values, _factors(increment or {})))
    arrives = Held(adapter.with_tensors(_cut(adapter_fed.values, sent)), arrived)
    return Lossy(content, arrives, adapter_fed.carried)


def _records(flat: Mapping[str, Encoded], manifest: Mapping[str, Any]) -> RecordDict:
    """One array for the adapter, one for the residual; with int8 one more each for the scales."""
    arrays = {
        name if kind == VALUES else f"{name}-{kind}": Array(array)
        for name, encoded in flat.items()
        for kind, array in encoded.arrays.items()
        if array.size
    }
    record = ConfigRecord({"json": json.dumps(manifest)})
    return RecordDict({ARRAYS: ArrayRecord(arrays), MANIFEST: record})


def unpack(content: RecordDict, template: Adapter, held: Held | None = None) -> Held:
    """Take an adapter and its residual out of Flower records.

    Args:
        content: as :func:`pack` made it.
        template: an adapter of the same base and modules; ranks and alphas may differ.
        held: what the receiver holds, for the parts that were left out.

    Raises:
        AdapterError: if the manifest is missing, does not fit the template, or does not fit the arrays,
            or if it leaves out what the receiver does not hold.
    """
    manifest = read_manifest(content)
    blank = blank_adapter(manifest, template)
    parts = sent_parts(content)
    arrays = arrays_in(content).get(ARRAYS, ArrayRecord())
    named = _held_tensors(blank, EVERYTHING - parts, held)
    wanted = in_sent_order(blank, parts, manifest)
    reference = None
    if manifest.get("difference"):
        held_parts = _held_tensors(blank, parts, held)
        reference = _flatten({name: held_parts[name] for name in wanted})
    named |= _unflatten(arrays, ADAPTER, wanted, read_codec(manifest), reference)
    return Held(blank.with_tensors(named), _residual(manifest, arrays, blank, held))


def count_bytes(content: RecordDict) -> int:
    """Bytes of the records as they go on the wire: array data with its header, and the manifest."""
    arrays = sum(record.count_bytes() for record in arrays_in(content).values())
    configs = sum(record.count_bytes() for record in configs_in(content).values())
    return arrays + configs + sum(record.count_bytes() for record in metrics_in(content).values())


def _held_tensors(blank: Adapter, parts: frozenset[Part], held: Held | None) -> dict[str, Tensor]:
    """The tensors of these parts that the receiver holds, where the message needs them."""
    wanted = blank.tensors(parts)
    own = held.adapter.tensors(parts) if held else {}
    for name, like in wanted.items():
        if name not in own or own[name].shape != like.shape:
            raise AdapterError(
                f"the message builds on {name}, which is not held here in that shape; it must be sent whole"
            )
    return {name: own[name] for name in wanted}


def _residual(
    manifest: dict[str, Any], arrays: ArrayRecord, adapter: Adapter, held: Held | None
) -> dict[str, Product]:
    """F as it stands after this message: as sent, or what is held with the increment added."""
    widths, increment = manifest.get("residual", {}), manifest.get("increment", False)
    if not isinstance(widths, dict):
        raise AdapterError(
            f"the manifest's residual is {short(widths)}, expected a width per module"
        )
    if type(increment) is not bool:
        raise AdapterError(
            f"the manifest's increment is {short(increment)}, expected true or false"
        )
    if increment and held is None:
        raise AdapterError(
            "the message adds to a residual that is not held here; it must be sent whole"
        )
    blank = {name: blank_product(adapter, name, width) for name, width in widths.items()}
    came = _products(_unflatten(arrays, RESIDUAL, _factors(blank), read_codec(manifest)))
    return add_increment(held.residual, came) if increment and held else came


def _factors(residual: Mapping[str, Product]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for name, product in residual.items():
        named[f"{name}.B"], named[f"{name}.A"] = product
    return named


def _products(factors: Mapping[str, Tensor]) -> dict[str, Product]:
    names = [name.removesuffix(".B") for name in factors if name.endswith(".B")]
    return {name: Product(factors[f"{name}.B"], factors[f"{name}.A"]) for name in names}


def _flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    pieces = [t.detach().to("cpu", torch.float32).reshape(-1) for t in tensors.values()]
    return torch.cat(pieces) if pieces else torch.zeros(0)


def _cut(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not like:
        return {}
    pieces = torch.split(flat, [t.numel() for t in like.values()])
    return {
        name: piece.view(t.shape) for (name, t), piece in zip(like.items(), pieces, strict=True)
    }


def _unflatten(
    arrays: ArrayRecord,
    what: str,
    like: Mapping[str, Tensor],
    codec: Codec,
    reference: Tensor | None = None,
) -> dict[str, Tensor]:
    """Cut an array of the message into tensors of the shapes of ``like``."""
    if not like:
        return {}
    size = sum(t.numel() for t in like.values())
    named = {
        kind: _numpy(arrays[name], name)
        for kind, name in ((VALUES, what), (SCALES, f"{what}-{SCALES}"))
        if name in arrays
    }
    if not named:
        raise AdapterError(f"the message lacks the array {what!r}, which its manifest announces")
    try:
        flat = restore(named, codec, size, reference)
    except AdapterError as error:
        raise AdapterError(f"array {what!r}: {error}") from error
    return _cut(flat, like)


def _numpy(array: Array, what: str) -> NDArray[Any]:
    try:
        numbers: NDArray[Any] = array.numpy()
    except Exception as error:  # numpy raises a different class for every way to be malformed
        raise AdapterError(f"array {what!r} cannot be read: {error}") from error
    if (str(numbers.dtype), numbers.shape) != (array.dtype, tuple(array.shape)):
        raise AdapterError(f"array {what!r} holds other data than its header says")
    return numbers
