"""From a model directory to a stage core that is ready to serve: load, measure, warm up, budget.

Runs on the engine thread. Knows nothing of processes, pipes or streams.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import psutil

from exo_cli.engine import caches
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.compute import MlxCompute, Request
from exo_cli.engine.core import StageCore
from exo_cli.engine.loading import Loaded, Skeleton, load_stage, look
from exo_cli.engine.rows import attend_by_row
from exo_cli.engine.scheduler import Row, Scheduler
from exo_cli.engine.tensors import to_wire
from exo_cli.errors import BadData, DoesNotFit, NotFound
from exo_cli.models.directory import ModelDirectory

STEP_TARGET_S: Final = 0.35
"""A chunk is as long as fits into this; the bound on a step is 0.5 s."""
TRIAL_TOKENS: Final = 8
MIN_CHUNK, MAX_CHUNK = 4, 2048
KEPT_SHARE: Final = 0.25
"""Of the KV budget, what caches of ended turns may take."""
MLX_CACHE_BYTES: Final = 64 << 20

Report = Callable[[str, int, int], None]


def load(
    model_dir: str,
    *,
    layers: tuple[int, int],
    layers_in_model: int,
    memory_bytes: int,
    progress: Report,
    covers: Callable[[str, int, int], bool] = lambda file, start, end: True,
) -> tuple[StageCore[Any], dict[str, Any]]:
    """The core, and what the engine says when it is ready."""
    before = _resident()
    mx.set_cache_limit(MLX_CACHE_BYTES)
    directory = ModelDirectory.open(Path(model_dir))
    # What a compiled function is made from cannot be seen, so the model is looked at uncompiled. On a
    # CPU it stays so: MLX would start a C++ compiler, and what is computed is the same.
    mx.disable_compile()
    skeleton = look(directory)
    if mx.default_device().type != mx.cpu:
        mx.enable_compile()
    _check_layers(skeleton, layers, layers_in_model)
    tensors = skeleton.tensors(*layers)
    missing = next((info for info in tensors if not covers(info.file, info.start, info.end)), None)
    if missing is not None:
        raise NotFound(f"the weights of {missing.name} are not on this machine", hint="Load the stage again.")
    # Sixteen-bit numbers become float32 while they are read.
    needed = sum(info.nbytes * (2 if info.dtype in ("F16", "BF16") else 1) for info in tensors)
    if needed > memory_bytes:
        raise _no_room(needed, memory_bytes)
    loaded = load_stage(skeleton, *layers, progress=lambda done, total: progress("read", done, total))
    progress("warm-up", 0, 1)
    compute, chunk = warm(loaded, _vocabulary(directory.config))
    base = max(0, _resident() - before - loaded.weights_bytes)
    kv_bytes = memory_bytes - loaded.weights_bytes - base
    if kv_bytes <= 0:
        raise _no_room(loaded.weights_bytes + base, memory_bytes)
    kept = int(kv_bytes * KEPT_SHARE)
    compute.set_prefixes(Prefixes(kept))
    progress("warm-up", 1, 1)
    core: StageCore[Any] = StageCore(
        compute,
        kv_bytes - kept,
        first=layers[0] == 0,
        last=layers[1] == layers_in_model,
        # How many stages the chain has is known with its first request.
        scheduler=Scheduler(stages=1, chunk_tokens=chunk),
    )
    return core, {
        "weights_bytes": loaded.weights_bytes,
        "kv_budget_bytes": kv_bytes - kept,
        "base_bytes": base,
        "allowed_cuts": list(skeleton.anatomy.allowed),
        "shares_steps": compute.shares,
    }


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    """How many rows the embedding has; models with pictures keep it one level down."""
    for settings in (config, config.get("text_config")):
        size = settings.get("vocab_size") if isinstance(settings, Mapping) else None
        if isinstance(size, int) and size > 0:
            return size
    return None


def _check_layers(skeleton: Skeleton, layers: tuple[int, int], layers_in_model: int) -> None:
    n = skeleton.anatomy.n_layers
    if n != layers_in_model:
        raise BadData(
            f"the model has {n} layers, not {layers_in_model}",
            hint="Make the plan from this model's config.json.",
        )
    skeleton.anatomy.check_range(*layers)


def _no_room(needed: int, free: int) -> DoesNotFit:
    error = DoesNotFit(
        f"the stage needs {needed} bytes for its weights alone and may use {free}",
        hint="Give this node fewer layers, or more --memory.",
    )
    error.needed_bytes, error.free_bytes = needed, free  # type: ignore[attr-defined]
    return error


def warm(loaded: Loaded, vocabulary: int | None = None) -> tuple[MlxCompute, int]:
    """Run what will be run: a chunk, a token, two requests together. Returns the chunk that fits the time."""
    stage = loaded.stage
    for part in stage.model.modules():
        attend_by_row(type(part).__module__)
    trial = MlxCompute(stage, (), Prefixes(0), shares=False)
    first, second = Request(stage.make_caches()), Request(stage.make_caches())
    _run(trial, [(first, Row(1, 0, TRIAL_TOKENS))])
    _run(trial, [(second, Row(2, 0, TRIAL_TOKENS))])
    began_s = time.monotonic()
    _run(trial, [(first, Row(1, TRIAL_TOKENS, TRIAL_TOKENS))])
    a_token_s = (time.monotonic() - began_s) / TRIAL_TOKENS
    chunk = max(MIN_CHUNK, min(MAX_CHUNK, int(STEP_TARGET_S / max(a_token_s, 1e-9))))
    each = caches.costs(first.caches)
    shares = _shares(trial)
    return MlxCompute(stage, each, Prefixes(0), shares=shares, vocabulary=vocabulary), chunk


def _shares(trial: MlxCompute) -> bool:
    """Whether requests of this family can go through one pass: tried, and compared number by number."""
    stage = trial.stage
    alone, shared = ([Request(stage.make_caches()) for _ in range(2)] for _ in range(2))
    for pair in (alone, shared):
        for number, held in enumerate(pair):
            _run(trial, [(held, Row(number, 0, TRIAL_TOKENS - number))])
    rows = [(Row(number, TRIAL_TOKENS - number, 1)) for number in range(2)]
    apart = [_run(trial, [(held, row)]) for held, row in zip(alone, rows, strict=True)]
    trial.shares = True
    try:
        both = _run(trial, list(zip(shared, rows, strict=True)))
    except (TypeError, AttributeError, ValueError, IndexError):
        return False  # the family does something with its caches that a shared view cannot do
    return both == b"".join(apart)


def _run(compute: MlxCompute, rows: list[tuple[Request, Row]]) -> bytes:
    """One step over made-up rows; what came out, as bytes."""
    stage = compute.stage

    tokens = [1 + (row.request + i) % 7 for _, row in rows for i in range(row.n)]
    tensor = None
    if stage.receives is not None:
        width, dtype = stage.receives.width, stage.receives.dtype
        ones = mx.concatenate([mx.full((row.n, width), 0.01 * (1 + row.request)) for _, row in rows])
        ones = ones.astype(dtype)
        mx.eval(ones)
        tensor = to_wire(ones)
    if stage.sends is not None:
        return bytes(compute.run(rows, tokens, tensor).data)
    out = compute.logits(rows, tokens, tensor)
    return b"".join(bytes(to_wire(each.astype(mx.float32)[None]).data) for each in out)


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
