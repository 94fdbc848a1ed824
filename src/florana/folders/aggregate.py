"""Adapter folders in, one adapter folder out: module by module, so that memory is bounded by the largest module."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from florana.aggregators import build
from florana.config import ServerConfig
from florana.errors import AggregationError
from florana.folders._threads import one_thread
from florana.folders.agreement import Agreed, Wanted, agree
from florana.folders.base import BaseWeights, open_base
from florana.folders.card import model_card
from florana.folders.clients import Client, PathLike, open_clients
from florana.folders.job import Job, check_job, command_of, dtype_of
from florana.folders.missing import Missing
from florana.folders.result import FolderResult
from florana.folders.writing import Watch, settings_of, write_extras, write_modules
from florana.peft_io.folder_writer import FolderWriter
from florana.peft_io.limits import Limits


def aggregate_folders(
    paths: Sequence[PathLike],
    out: PathLike,
    method: str = "florana-opt",
    weights: Sequence[float] | None = None,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    dtype: str | torch.dtype | None = None,
    base: PathLike | None = None,
    base_name: str | None = None,
    missing: Missing = "refuse",
    server: ServerConfig | None = None,
    streaming: bool | None = None,
    overwrite: bool = False,
    limits: Limits | None = None,
    watch: Watch | None = None,
    **options: object,
) -> FolderResult:
    r"""Make one PEFT adapter of several, as :func:`florana.aggregate` does with adapters in memory.

    For every adapted module the ideal is :math:`T = \sum_u w_u s_u B_u A_u`, with w_u the ``weights``, made to sum
    to 1. What else the adapters hold (heads, biases, token rows) is averaged as it is, in float64. Nothing is trained.

    All that headers tell is checked first, for all adapters together. Then one module at a time is read from every
    adapter, combined and written, so that memory is that of the largest module. The folder ``out`` is written aside
    and renamed: whatever happens, there is the whole result or what was there before.

    Args:
        paths: adapter folders that PEFT wrote.
        out: the folder to make; ``PeftModel.from_pretrained`` loads it. A model card is in it.
        method: a name from ``florana methods`` that merges finished adapters.
        weights: one number of examples, or share, per adapter; equal by default, since a folder does not say.
        rank: rank of the result; by default the largest of the adapters, module by module.
        alpha: alpha of the result; by default that of the adapter with the largest rank.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default that of the adapters, if they have one.
        base: folder of the base model, whose frozen weights DoRA and HiRA need; not read for plain LoRA.
        base_name: the base model's name in the result, and the word that all adapters are for that one model, whatever
            they call it; by default they have to agree.
        missing: what to do about a module that some adapters lack: ``"refuse"``; ``"zero"``, they change nothing there;
            ``"mean"``, over those that have it, with their weights made to sum to 1. Heads have no zero.
        server: add-ons to the target, such as shrinkage; none by default.
        streaming: read modules in passes, in memory that does not grow with the number of adapters; errors are then
            estimates with a bound. By default where Σ r_u exceeds min(d_out, d_in, 1024) and 256, if the method can.
        overwrite: replace the adapter that is at ``out``.
        limits: how large an adapter's files may be.
        watch: is told of progress.
        options: the method's own options, such as ``gauge=``.

    Returns:
        What was made, and for every module how far it is from T.

    Raises:
        ConfigError: if the method or an option is not known, or the method needs clients that train by its plan.
        AdapterError: if a folder cannot be used; see :func:`florana.load_adapter`.
        AggregationError: if the adapters do not fit together, with a line for every reason.
        ModelError: if the base model's weights cannot be read.
        RunError: if ``out`` cannot be written, or is there and may not be replaced.

    Example:
        >>> import tempfile, florana
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a", "b"):
        ...         pair = florana.LoraPair(torch.randn(2, 6), torch.randn(5, 2), alpha=4)
        ...         _ = florana.save_adapter(florana.Adapter({"layer": pair}), f"{folder}/{name}")
        ...     made = aggregate_folders([f"{folder}/a", f"{folder}/b"], f"{folder}/out", rank=4)
        ...     error = made.error
        ...     florana.load_adapter(made.out).pairs["layer"].rank
        4
        >>> error.used < 1e-6 < error.average
        True
    """
    begun = time.monotonic()
    job = Job(
        method,
        build(method, options),
        options,
        server or ServerConfig(),
        rank,
        alpha,
        dtype_of(dtype),
        missing,
        streaming,
    )
    check_job(job)
    _check_apart(paths, out)
    with one_thread(), open_clients(paths, weights, limits or Limits()) as clients:
        agreed = agree(clients, Wanted(method, rank, job.dtype, missing, base_name))
        _check_variant(agreed, base, streaming)
        room = 2**12 + 400 * (3 * len(agreed.modules) + len(agreed.extras))
        with (
            _opened_base(base, agreed) as frozen,
            FolderWriter(out, overwrite=overwrite, expected_header_bytes=room) as writer,
        ):
            reports, scales = write_modules(job, clients, agreed, frozen, writer, watch)
            dtypes = write_extras(job, clients, agreed, scales, writer, watch)
            result = FolderResult(
                out=Path(out).resolve(),
                method=method,
                options=job.settings,
                weights=_shares(clients),
                equal=weights is None,
                base_model=agreed.base_model,
                modules=tuple(reports),
                absent=agreed.absent,
                missing=missing,
                dtypes=tuple(sorted(dtypes)),
                rank=rank,
                alpha=alpha,
                parameters=tuple(agreed.extras),
                variant=agreed.variant,
                task_type=str(agreed.peft_config.get("task_type") or ""),
                command=command_of(
                    job,
                    [client.name for client in clients],
                    weights,
                    Path(out).resolve().name,
                    None if frozen is None else frozen.folder.name,
                    base_name,
                ),
                seconds=time.monotonic() - begun,
            )
            writer.finish(settings_of(agreed, scales), model_card(result))
    return result


def _check_apart(paths: Sequence[PathLike], out: PathLike) -> None:
    for path in paths:
        if Path(path).resolve() == Path(out).resolve():
            raise AggregationError(
                f"{path} is an input and the output; choose another folder for the result"
            )


def _shares(clients: Sequence[Client]) -> dict[str, float]:
    total = sum(client.num_examples for client in clients)
    return {client.name: client.num_examples / total for client in clients}


def _check_variant(agreed: Agreed, base: PathLike | None, streaming: bool | None) -> None:
    if agreed.variant == "lora":
        return
    if streaming:
        raise AggregationError(
            f"these are {agreed.variant} adapters, whose mean follows from all factors and the frozen weights "
            "together; leave out --streaming (streaming=True), which is for plain LoRA"
        )
    if base is None:
        raise AggregationError(
            f"these are {agreed.variant} adapters, whose mean follows from the frozen weights; give the folder of "
            f"the base model {agreed.base_model!r} with --base (base= from Python)"
        )


@contextmanager
def _opened_base(base: PathLike | None, agreed: Agreed) -> Iterator[BaseWeights | None]:
    if base is None or agreed.variant == "lora":
        yield None
        return
    with open_base(base, list(agreed.modules.values())) as frozen:
        yield frozen
