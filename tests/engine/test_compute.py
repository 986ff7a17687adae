"""What a stage's arithmetic refuses, with nothing computed and no cache touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from exo_cli.engine import stage as stages
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.compute import MlxCompute, Request
from exo_cli.engine.core import Closed, Open, StageCore
from exo_cli.engine.loading import load_stage, look
from exo_cli.engine.scheduler import Scheduler
from exo_cli.engine.tensors import to_wire
from exo_cli.errors import BadData
from exo_cli.models.directory import ModelDirectory
from exo_cli.schemas.sampling import Sampling
from exo_cli.wire.frames import FrameData, Part, TensorData


@pytest.fixture
def tail(tiny: Callable[..., Path]) -> StageCore[Request]:
    """The second half of a llama with one request open."""
    directory = ModelDirectory.open(tiny("llama"))
    skeleton = look(directory)
    compute, *_ = stages.warm(load_stage(skeleton, 2, 4), directory.config["vocab_size"])
    compute.set_prefixes(Prefixes(0))
    core: StageCore[Any] = StageCore(compute, 1 << 30, first=False, last=True, scheduler=Scheduler(1, 8))
    core.open(Open(1, 1, (3, 4, 5), Sampling(), max_tokens=4))
    return core


def tensor(rows: int, width: int, dtype: mx.Dtype = mx.float32) -> TensorData:
    return to_wire(mx.full((rows, width), 0.1, dtype=dtype))


@pytest.mark.process
@pytest.mark.parametrize("wrong", ["none", "width", "dtype", "token"])
def test_what_is_not_sent_at_this_cut_is_refused_and_touches_no_cache(
    tail: StageCore[Request], wrong: str
) -> None:
    assert isinstance(tail.compute, MlxCompute)
    receives = tail.compute.stage.receives
    assert receives is not None
    sent = {
        "none": None,
        "width": tensor(3, receives.width + 1),
        "dtype": tensor(3, receives.width, mx.bfloat16),
        "token": tensor(3, receives.width),
    }[wrong]
    tokens = (3, 4, 1 << 20) if wrong == "token" else (3, 4, 5)
    with pytest.raises(BadData):
        tail.frame(FrameData(1, (Part(1, 1, 0, 3),), tokens, sent), 0.0)
    entry = tail.ledger.entries[1]
    assert entry.next == 0
    assert [cache.offset for cache in entry.held.caches.caches] == [0, 0]
    # The right one is taken all the same.
    effects = tail.frame(FrameData(1, (Part(1, 1, 0, 3),), (3, 4, 5), tensor(3, receives.width)), 0.0)
    assert effects


@pytest.mark.process
def test_a_prompt_beyond_the_vocabulary_is_refused_when_it_is_opened(tail: StageCore[Request]) -> None:
    refused, closed = tail.open(Open(2, 1, (3, 1 << 20), Sampling(), max_tokens=4))
    assert "vocabulary" in str(getattr(refused, "error", ""))
    assert closed == Closed(2, 1)
    assert 2 not in tail.ledger.entries
