"""A plan's stages as the Load requests that ask for them.

Drivers send them to nodes, and a node that was started with a plan makes its own, which is how the two
know a stage for the same one. Knows nothing of who is asked, nor of why the plan is as it is.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from exo_cli.errors import BadData
from exo_cli.schemas.plan import Plan, PlannedStage, RankMemory
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import hello

_DTYPES: Final = {
    "float32": pb.DTYPE_FLOAT32,
    "bfloat16": pb.DTYPE_BFLOAT16,
    "float16": pb.DTYPE_FLOAT16,
}
GRACE_BYTES: Final = 256 * 2**20
"""What an engine takes beside weights and caches is known to a few per cent; where a node has room, it
gets this much more than was planned."""
_HINT: Final = "Mend the plan, or leave --plan out."


def check_stages(plan: Plan, stages: Sequence[PlannedStage], layers: int) -> None:
    """Refuse a chain that is not the whole model, each layer once, one node a stage."""
    if not stages:
        raise BadData("the plan has no stages", hint=_HINT)
    at = 0
    for stage in stages:
        if stage.layers[0] != at or stage.layers[1] <= at:
            raise BadData(f"the plan's stages do not follow each other at layer {at}", hint=_HINT)
        at = stage.layers[1]
        if len(stage.ranks) != 1:
            raise BadData(
                "the plan splits a stage over several nodes, which this version of exo cannot do", hint=_HINT
            )
    if at != layers:
        raise BadData(f"the plan is for {at} layers; {plan.model.name} has {layers}", hint=_HINT)


def load_id(plan: Plan, layers: tuple[int, int], layers_in_model: int, numerics: str = "exact") -> str:
    """Names a load by everything that decides what is loaded."""
    caches = plan.context, plan.concurrency, plan.kv_bits
    said = (plan.model.digest, *layers, layers_in_model, plan.dtype, numerics, *caches)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def load_request(
    plan: Plan,
    stage: PlannedStage,
    layers_in_model: int,
    *,
    weights_from: str = "",
    numerics: str = "exact",
) -> pb.LoadRequest:
    """Ask for one stage; for how long it is kept is the node's own rule."""
    memory = stage.ranks[0].memory
    return pb.LoadRequest(
        hello=hello(),
        load_id=load_id(plan, stage.layers, layers_in_model, numerics),
        model=pb.ModelRef(name=plan.model.name, revision=plan.model.revision or "", digest=plan.model.digest),
        first_layer=stage.layers[0],
        last_layer=stage.layers[1],
        layers_in_model=layers_in_model,
        wire_dtype=_DTYPES[plan.dtype],
        numerics=numerics,
        context=plan.context,
        concurrency=_concurrency(plan, stage),
        kv_bits=plan.kv_bits or 0,
        memory_bytes=_granted_bytes(memory),
        weights_from=weights_from,
        evict_idle=True,
    )


def _concurrency(plan: Plan, stage: PlannedStage) -> int:
    """How many requests the stage's own chain serves at once."""
    mine = next((replica for replica in plan.replicas if stage in replica.stages), None)
    return plan.concurrency if mine is None or mine.concurrency is None else mine.concurrency


def _granted_bytes(memory: RankMemory) -> int:
    planned = memory.weights_bytes + memory.kv_bytes + memory.buffers_bytes + memory.base_bytes
    return max(planned, min(memory.limit_bytes, planned + GRACE_BYTES))
