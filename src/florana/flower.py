"""For Flower projects that have their own clients: a strategy that takes FedAvg's place, and nothing else changes.

Clients send what PEFT gives them, ``ArrayRecord(get_peft_model_state_dict(model))``, with ``num-examples`` in a
``MetricRecord``, and get arrays under the same names back, for ``set_peft_model_state_dict``. With clients of
florana's own, which send one flat tensor and can leave parts out, use :class:`florana.federation.LoraStrategy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from typing import Any, NamedTuple, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore import log
from torch import Tensor

from florana.adapter import EVERYTHING, Adapter, ClientUpdate
from florana.aggregators import (
    Aggregate,
    GlobalState,
    aggregate,
    build,
    card,
    cards,
    check_base_weights,
    check_compatible,
    check_finite,
    check_server,
    first_state,
    plan_of,
)
from florana.config import ServerConfig
from florana.errors import AdapterError, ConfigError, FederationError
from florana.federation.replies import MAX_EXAMPLES, check_step
from florana.federation.views import arrays_in, metrics_in
from florana.peft_io import adapter_from_state_dict, adapter_to_state_dict

__all__ = ["LoraStrategy", "fits_plain_clients"]


class PeftConfig(Protocol):
    """What PEFT's ``LoraConfig`` and ``HiraConfig`` have."""

    def to_dict(self) -> dict[str, Any]:
        """The settings."""


class _Used(NamedTuple):
    update: ClientUpdate
    content: RecordDict


class LoraStrategy(FedAvg):
    """FedAvg with the aggregation of LoRA factors done right, for clients that send PEFT's state dicts.

    Takes all of FedAvg's arguments; sampling, configuration and metrics are FedAvg's. A reply that cannot be used
    (an error, other modules or shapes, NaN, no number of examples) is left out by name in the log.

    Args:
        fraction_train: as FedAvg's.
        peft_config: ``model.peft_config["default"]``, or its ``to_dict()``: says alpha, rsLoRA and patterns, which
            the arrays do not.
        method: a name from ``florana methods`` whose clients train and send everything and get it back in the same
            shapes; see :func:`fits_plain_clients`.
        options: the method's options.
        server: add-ons to the method's target; none by default.
        base_weights: module -> frozen weight W (d_out, d_in), for DoRA and HiRA.
        max_norm: largest ‖ΔW − ΔW_start‖_F, over all modules, that a client's training may make.
        fedavg: FedAvg's other arguments.

    Raises:
        ConfigError: if the method is not known or needs clients of florana's own.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> config = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "peft_type": "LORA"}
        >>> strategy = LoraStrategy(fraction_train=0.5, peft_config=config)
        >>> isinstance(strategy, FedAvg)
        True
    """

    def __init__(
        self,
        fraction_train: float = 1.0,
        *,
        peft_config: PeftConfig | Mapping[str, Any],
        method: str = "florana-blend",
        options: Mapping[str, Any] | None = None,
        server: ServerConfig | None = None,
        base_weights: Mapping[str, Tensor] | None = None,
        max_norm: float | None = None,
        **fedavg: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(fraction_train, **fedavg)
        self._built = build(method, options or {})
        if not fits_plain_clients(method):
            able = ", ".join(name for name in cards() if fits_plain_clients(name))
            raise ConfigError(
                f"{method} needs clients that do more than train and send everything; with clients that send PEFT's "
                f"state dicts use one of {able}, or florana.federation.LoraStrategy with florana's clients"
            )
        self._method, self._options = method, dict(options or {})
        given = peft_config if isinstance(peft_config, Mapping) else peft_config.to_dict()
        self._peft_config: dict[str, Any] = dict(given)
        self._server, self._base_weights = server or ServerConfig(), base_weights
        self._max_norm = max_norm
        self._state: GlobalState | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg; the first round's arrays are the adapter that the run starts from."""
        if self._state is None:
            adapter = self._adapter(arrays)
            check_server(self._server, self._method, adapter.variant)
            check_base_weights(adapter, self._base_weights)
            self._state = first_state(adapter, self._built, self._base_weights)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Aggregate the adapters of the usable replies.

        Returns:
            The global adapter under the names that came, and FedAvg's mean of the clients' metrics with
            ``aggregation-error`` beside them, relative to the ideal update.

        Raises:
            FederationError: if no reply can be used; FedAvg would go on with nothing.
        """
        if self._state is None:
            raise FederationError("aggregate_train came before configure_train")
        used, reasons = self._sort_out(server_round, replies, self._state.adapter)
        if not used:
            raise FederationError(
                "".join([f"round {server_round}: no usable reply", *(f"\n  {r}" for r in reasons)])
            )
        result = aggregate(
            [each.update for each in used],
            self._method,
            state=self._state,
            server=self._server,
            base_weights=self._base_weights,
            **self._options,
        )
        self._state = self._state.after(result)
        metrics = self.train_metrics_aggr_fn([each.content for each in used], self.weighted_by_key)
        return self._arrays(result), _with_error(metrics, server_round, result)

    def _sort_out(
        self, server_round: int, replies: Iterable[Message], start: Adapter
    ) -> tuple[list[_Used], list[str]]:
        """The usable replies in the order of their nodes, and why the others are not."""
        used: dict[int, _Used] = {}
        reasons: list[str] = []
        for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = reply.metadata.src_node_id
            try:
                if reply.has_error():
                    raise AdapterError(f"it failed: {reply.error.reason}")
                if node in used:
                    raise AdapterError("it replied twice")
                update = self._read(str(node), reply.content, start)
                used[node] = _Used(update, reply.content)
            except AdapterError as error:
                reasons.append(f"node {node}: {error}")
                log(WARNING, "round %s: node %s left out: %s", server_round, node, error)
        return list(used.values()), reasons

    def _read(self, client: str, content: RecordDict, start: Adapter) -> ClientUpdate:
        if len(arrays_in(content)) != 1:
            raise AdapterError(
                f"its reply has {len(arrays_in(content))} ArrayRecords, expected one: "
                "ArrayRecord(get_peft_model_state_dict(model))"
            )
        adapter = self._adapter(next(iter(arrays_in(content).values())))
        check_compatible(adapter, start)
        check_finite(adapter)
        check_step(adapter, start, self._max_norm)
        key, records = self.weighted_by_key, list(metrics_in(content).values())
        found = [record[key] for record in records if key in record]
        count = found[0] if found else None
        if not isinstance(count, int | float) or not 0 < count <= MAX_EXAMPLES:
            raise AdapterError(
                f"its metric {key!r} is {count!r}, expected its number of training examples"
            )
        return ClientUpdate(client, count, adapter)

    def _adapter(self, arrays: ArrayRecord) -> Adapter:
        try:
            state = arrays.to_torch_state_dict()
        except Exception as error:  # numpy raises a different class for every way to be malformed
            raise AdapterError(f"its arrays cannot be read: {error}") from error
        return adapter_from_state_dict(state, self._peft_config)

    def _arrays(self, result: Aggregate) -> ArrayRecord:
        return ArrayRecord(adapter_to_state_dict(result.trained))


def fits_plain_clients(method: str) -> bool:
    """Whether a method's clients only train everything and send everything, in shapes that stay.

    Example:
        >>> fits_plain_clients("florana"), fits_plain_clients("fedsa-lora"), fits_plain_clients("flora")
        (True, False, False)
    """
    plans = [plan_of(build(method, {}), server_round) for server_round in (1, 2)]
    plain = all(plan.sent == EVERYTHING and not plan.pooled for plan in plans)
    return plain and not card(method).keeps_residual


def _with_error(metrics: MetricRecord, server_round: int, result: Aggregate) -> MetricRecord:
    error = result.error
    if error is None:
        return metrics
    log(
        INFO,
        "round %s: aggregation error %.3f, of plain averaging %.3f, of the optimum %.3f",
        *(server_round, error.used, error.average, error.optimum),
    )
    metrics["aggregation-error"] = error.used
    return metrics
