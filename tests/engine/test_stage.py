"""A whole stage as an engine loads it: what it promises, what travels, and what is refused with figures."""

from itertools import pairwise
from typing import Any

import pytest

from exo_cli.engine import stage as stages
from exo_cli.engine.core import StageCore
from exo_cli.engine.payload import Payload
from exo_cli.errors import BadData, DoesNotFit
from exo_cli.wire.frames import FrameData
from tests.support import parity, tiny_models
from tests.support.chain import Chain
from tests.support.tiny_models import Tiny

MEMORY = 1 << 30
LAYERS = 4
A_LAYER = 2 * 2 * 16 * 4
"""Bytes of KV cache a token and layer of the tiny llama."""


def loaded(directory: Any, first: int, last: int, **options: Any) -> tuple[StageCore[Any], dict[str, Any]]:
    settings = {"memory_bytes": MEMORY, "progress": lambda *_: None, **options}
    return stages.load(str(directory), layers=(first, last), layers_in_model=LAYERS, **settings)


def chain(directory: Any, bounds: tuple[int, ...], **options: Any) -> tuple[Chain, list[FrameData]]:
    """The stages as one chain, and every frame that goes between them."""
    seen: list[FrameData] = []

    def watch(frame: FrameData) -> list[FrameData]:
        seen.append(frame)
        return [frame]

    computes = [loaded(directory, *ends, **options)[0].compute for ends in pairwise(bounds)]
    return Chain(computes, budget=MEMORY, meddle=watch), seen


@pytest.mark.parametrize(("dtype", "width"), [("", 4), ("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_a_payload_travels_as_the_plan_says(dtype: str, width: int, tiny: Tiny) -> None:
    directory = tiny("llama", bits=4)
    made, frames = chain(directory, (0, 1, 3, 4), wire_dtype=dtype)
    driven = made.open(1, parity.PROMPT, 6)
    made.run()
    assert len(driven.tokens) == 6
    assert frames
    for frame in frames:
        assert frame.tensor is not None
        assert frame.tensor.dtype == (dtype or "float32")
        rows, columns = frame.tensor.shape
        assert len(frame.tensor.data) == rows * columns * width
    expected = parity.greedy(tiny_models.reference(directory), parity.PROMPT, 6)
    if width == 4:
        assert driven.tokens == expected
    else:
        # Rounded on the way, not garbled: the first choice is not a near tie in this model.
        assert driven.tokens[0] == expected[0]


def test_stages_that_were_loaded_for_different_types_do_not_compute_together(tiny: Tiny) -> None:
    directory = tiny("llama")
    first = loaded(directory, 0, 2, wire_dtype="bfloat16")[0].compute
    last = loaded(directory, 2, 4, wire_dtype="float32")[0].compute
    made = Chain([first, last], budget=MEMORY)
    made.open(1, parity.PROMPT, 3)
    with pytest.raises(BadData, match=r"bfloat16 at a cut that sends .*float32"):
        made.run()


def test_numbers_that_float16_cannot_hold_end_the_request_with_the_reason(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, frames = chain(tiny("llama"), (0, 2, 4), wire_dtype="float16")
    pack = Payload.pack
    monkeypatch.setattr(Payload, "pack", lambda self, tensors: pack(self, tensors) * 1e6)
    driven = made.open(1, parity.PROMPT, 3)
    made.run()
    assert driven.refused.exit == 65
    assert "float16 cannot hold" in driven.refused.message
    assert not frames
    assert all(not core.ledger.entries for core in made.cores)
    monkeypatch.undo()
    again = made.open(2, parity.PROMPT, 3)
    made.run()
    assert len(again.tokens) == 3


def test_a_request_beyond_the_context_is_refused_with_the_numbers(tiny: Tiny) -> None:
    core, _ = loaded(tiny("llama"), 0, 4, context=20)
    made = Chain([core.compute])
    made.cores[0] = core
    made.open(1, parity.PROMPT, 10)
    made.run()
    refused = made.driver[1].refused
    assert (refused.exit, refused.code) == (65, "too-long")
    assert "11 tokens and up to 10 more" in refused.message
    assert "20 in all" in refused.message
    assert "--max-tokens" in refused.hint
    assert core.ledger.reserved_bytes == 0
    made.open(2, parity.PROMPT, 9)
    made.run()
    assert len(made.driver[2].tokens) == 9


@pytest.mark.parametrize("concurrency", [0, 1, 3])
def test_what_is_promised_is_there_or_the_load_is_refused(concurrency: int, tiny: Tiny) -> None:
    directory = tiny("llama")
    _, free = loaded(directory, 1, 3)
    context = 256 * 1024
    each = 2 * A_LAYER * context
    needed = max(1, concurrency) * each
    assert needed < free["kv_budget_bytes"]
    _, ready = loaded(directory, 1, 3, context=context, concurrency=concurrency)
    assert ready["kv_budget_bytes"] >= needed
    with pytest.raises(DoesNotFit, match=rf"of {context} tokens need {needed} bytes") as error:
        loaded(directory, 1, 3, context=context, concurrency=concurrency, memory_bytes=needed)
    assert error.value.needed_bytes > needed  # type: ignore[attr-defined]
    assert error.value.free_bytes == needed  # type: ignore[attr-defined]


def test_the_caches_of_ended_turns_take_nothing_of_what_is_promised(tiny: Tiny) -> None:
    _, free = loaded(tiny("llama"), 0, 1)
    # All but a little is promised: a quarter of it is not kept for prefixes then.
    context = int(free["kv_budget_bytes"] * 1.2) // A_LAYER // 256 * 256
    _, ready = loaded(tiny("llama"), 0, 1, context=context, concurrency=1)
    assert ready["kv_budget_bytes"] >= context * A_LAYER > free["kv_budget_bytes"]
