"""What the server sends: of the global model, the parts that a node lacks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from flwr.app import Array, ArrayRecord, RecordDict

from florana.adapter import EVERYTHING
from florana.aggregators import (
    Aggregate,
    GlobalState,
    Method,
    add_increment,
    card,
    narrowed,
    plan_of,
)
from florana.config import Codec
from florana.federation.client_app import LEFT_OUT
from florana.federation.manifest import MANIFEST, describe
from florana.federation.outcome import Known
from florana.federation.records import ARRAYS, pack, pack_lossy
from florana.federation.views import arrays_in


@dataclass(frozen=True, slots=True, eq=False)
class Outbox:
    """Messages of one round.

    Args:
        method: name of the aggregation method.
        built: the method with its options.
        state: what the clients shall have.
        downlink: number format of messages to clients that hold the last global model.
        memory: with a lossy downlink the coded message of the last round, as :func:`broadcast` made it.
    """

    method: str
    built: Method
    state: GlobalState
    downlink: Codec
    memory: RecordDict

    @property
    def incremental(self) -> bool:
        """Whether clients have to remember parts, since some round leaves them unchanged."""
        plans = [plan_of(self.built, server_round) for server_round in (1, 2)]
        if self.downlink != "float32":
            return True
        return card(self.method).keeps_residual or any(p.sent != EVERYTHING for p in plans)

    def builds_on(self, known: Known | None) -> int:
        """The round whose global model a message adds to, or -1 for one that is whole."""
        return -1 if known is None or not self.incremental else known.server_round

    def content_for(self, known: Known | None) -> RecordDict:
        """The global model, less what a client that is ``known`` holds already."""
        state = self.state
        if known is None:
            return pack(state.adapter, state.residual)
        if not self.incremental:
            return pack(narrowed(state.adapter, self.method, known.ranks))
        # What a client remembers has the global rank; it takes its own share itself.
        parts = {part for part, changed in state.changed.items() if changed > known.server_round}
        if known.server_round == state.server_round - 1 and ARRAYS in self.memory:
            return RecordDict({key: self.memory[key] for key in (ARRAYS, MANIFEST)})
        if known.server_round == state.server_round - 1:
            return pack(state.adapter, state.increment, parts, increment=True)
        return pack(state.adapter, state.residual, parts)


def broadcast(
    before: GlobalState, state: GlobalState, result: Aggregate, codec: Codec, memory: RecordDict
) -> tuple[GlobalState, RecordDict]:
    """Code what a round changed, and take for the global model what the clients will have.

    Args:
        before: the state that the round began with.
        state: the state after it.
        result: what the round made.
        codec: number format of the message.
        memory: what the last round's message left out.

    Returns:
        The state that the clients will have, and the coded message with what it leaves out, which is
        carried into the next.
    """
    carried = arrays_in(memory).get(LEFT_OUT)
    if describe(state.adapter) != describe(before.adapter):
        return state, RecordDict()  # another form, as after Fed-SB's first round, is sent whole
    lossy = pack_lossy(
        state.adapter,
        codec,
        {part for part, changed in state.changed.items() if changed == state.server_round},
        reference=before.adapter,
        carried=torch.from_numpy(carried[LEFT_OUT].numpy().copy()) if carried else None,
        increment=result.increment,
    )
    made = RecordDict({key: lossy.content[key] for key in (ARRAYS, MANIFEST)})
    if lossy.carried is not None:
        made[LEFT_OUT] = ArrayRecord({LEFT_OUT: Array(lossy.carried.numpy())})
    arrives = replace(
        state,
        adapter=lossy.arrives.adapter,
        increment=lossy.arrives.residual,
        residual=add_increment(before.residual, lossy.arrives.residual),
    )
    return arrives, made
