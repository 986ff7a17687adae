"""From a model directory to a stage core that is ready to serve: load, measure, warm up, budget.

Runs on the engine thread. Knows nothing of processes, pipes or streams.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import mlx.core as mx
import psutil

from exo_cli.engine import caches
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.compute import MlxCompute, Request
from exo_cli.engine.core import MAX_CHUNK, StageCore
from exo_cli.engine.loading import FILES, Loaded, Opened, Origin, Skeleton, look, open_stage
from exo_cli.engine.pace import TARGET_S
from exo_cli.engine.random_weights import unpacked
from exo_cli.engine.rows import attend_by_row
from exo_cli.engine.scheduler import Row, Scheduler
from exo_cli.engine.tensors import WIRE_DTYPES, to_wire
from exo_cli.errors import BadData, DoesNotFit, NotFound
from exo_cli.models.directory import ModelDirectory
from exo_cli.models.random_model import RandomModel

TRIAL_TOKENS: Final = 8
KEPT_SHARE: Final = 0.25
"""Of the KV budget, what caches of ended turns may take."""
CPU_CACHE_BYTES: Final = 8 << 20
GPU_CACHE_BYTES: Final = 64 << 20
"""What MLX may keep of freed memory; on a CPU the system gives it again as quickly."""

Report = Callable[[str, int, int], None]
Covers = Callable[[str, int, int], bool]
"""Whether these bytes of a file may be read."""


def on_cpu() -> bool:
    """Whether MLX computes on the processor."""
    return bool(mx.default_device().type == mx.cpu)


def load(
    model_dir: str,
    *,
    layers: tuple[int, int],
    layers_in_model: int,
    memory_bytes: int,
    wire_dtype: str = "",
    context: int = 0,
    concurrency: int = 0,
    alone: bool = False,
    progress: Report,
    covers: Covers = lambda file, start, end: True,
    random: RandomModel | None = None,
    numerics: Literal["exact", "fast"] = "exact",
    kv_bits: Literal[8] | None = None,
) -> tuple[StageCore[Any], dict[str, Any]]:
    """The core, and what the engine says when it is ready.

    `context` and `concurrency` are a promise: there is room for so many requests of that length, or the
    load is refused. More requests are let in where there is room; a longer one never is. `alone`: the
    process is this stage's, so that all it takes counts as its base. `random`: the model whose weights are
    made, and then nothing is in `model_dir`. `fast` computes with our own kernels where they know the model
    and MLX is on a CPU, else as `exact` does; what it came to is said. `kv_bits`: of a number in the caches;
    a model that cannot have it is refused.
    """
    before = 0 if alone else _resident()
    here = on_cpu()
    mx.set_cache_limit(CPU_CACHE_BYTES if here else GPU_CACHE_BYTES)
    with _opened(model_dir, random) as (directory, origin):
        # What a compiled function is made from cannot be seen, so the model is looked at uncompiled. On a
        # CPU it stays so: MLX would start a C++ compiler, and what is computed is the same.
        mx.disable_compile()
        skeleton = look(directory, origin=origin)
        if not here:
            mx.enable_compile()
        _check_layers(skeleton, layers, layers_in_model)
        _check_here(skeleton, layers, memory_bytes, covers if random is None else None)
        doing = "read" if random is None else "make"
        opened = open_stage(skeleton, *layers)
        vocabulary = _vocabulary(directory.config)
        made, why = None, ""
        if numerics == "fast":
            why = "MLX has a GPU"
            if here:
                made, why = _native(opened, vocabulary, wire_dtype, progress, kv_bits)
        numerics = "exact" if made is None else "fast"
        if made is None:
            loaded = opened.read(lambda done, total: progress(doing, done, total))
            progress("warm-up", 0, 1)
            made = *warm(loaded, vocabulary, wire_dtype, kv_bits), loaded.weights_bytes
    compute, chunk, step_s, weights_bytes = made
    mx.clear_cache()
    base = max(0, _resident() - before - weights_bytes)
    kv_bytes = memory_bytes - weights_bytes - base
    if kv_bytes <= 0:
        raise _no_room(weights_bytes + base, memory_bytes)
    promised = max(1, concurrency) * compute.kv_bytes(context) if context else 0
    if promised > kv_bytes:
        raise _no_kv(context, max(1, concurrency), promised, kv_bytes, memory_bytes)
    kept = min(int(kv_bytes * KEPT_SHARE), kv_bytes - promised)
    compute.set_prefixes(Prefixes(kept))
    progress("warm-up", 1, 1)
    core: StageCore[Any] = StageCore(
        compute,
        kv_bytes - kept,
        first=layers[0] == 0,
        last=layers[1] == layers_in_model,
        # How many stages the chain has is known with its first request.
        scheduler=Scheduler(stages=1, chunk_tokens=chunk),
        context=context,
        step_s=step_s,
        clock=time.monotonic,
    )
    return core, {
        "weights_bytes": weights_bytes,
        "kv_budget_bytes": kv_bytes - kept,
        "base_bytes": base,
        "allowed_cuts": list(skeleton.anatomy.allowed),
        "shares_steps": compute.shares,
        "numerics": numerics,
        "numerics_reason": why,
    }


def kernels_ahead() -> None:
    """Import our own kernels and what compiles them; raises ImportError where they cannot be had."""
    from exo_cli.engine.cpu import start

    start.ahead()


def _native(
    opened: Opened,
    vocabulary: int | None,
    wire_dtype: str,
    progress: Report,
    kv_bits: Literal[8] | None,
) -> tuple[tuple[MlxCompute, int, float, int] | None, str]:
    """The stage computed by our own kernels; where they do not know the model, None and why."""
    from exo_cli.engine.cpu.expand import NotNative
    from exo_cli.engine.cpu.start import native

    try:
        compute, chunk, step_s = native(opened, vocabulary, wire_dtype, progress, kv_bits)
    except NotNative as refused:
        return None, str(refused)
    return (compute, chunk, step_s, compute.decoder.nbytes), ""


@contextmanager
def _opened(model_dir: str, random: RandomModel | None) -> Iterator[tuple[ModelDirectory, Origin]]:
    """The model's table of tensors, and where they come from."""
    if random is None:
        yield ModelDirectory.open(Path(model_dir)), FILES
    else:
        with unpacked(random) as made:
            yield made


def _check_here(
    skeleton: Skeleton, layers: tuple[int, int], memory_bytes: int, covers: Covers | None
) -> None:
    """Refuses what cannot be read or has no room, before anything is read."""
    tensors = skeleton.tensors(*layers)
    if covers is not None:
        missing = next((info for info in tensors if not covers(info.file, info.start, info.end)), None)
        if missing is not None:
            raise NotFound(
                f"the weights of {missing.name} are not on this machine", hint="Load the stage again."
            )
    # Sixteen-bit numbers become float32 while they are read.
    needed = sum(info.nbytes * (2 if info.dtype in ("F16", "BF16") else 1) for info in tensors)
    if needed > memory_bytes:
        raise _no_room(needed, memory_bytes)


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


def _no_kv(context: int, concurrency: int, promised: int, free: int, memory: int) -> DoesNotFit:
    requests = "a request" if concurrency == 1 else f"{concurrency} requests"
    error = DoesNotFit(
        f"{requests} of {context} tokens need {promised} bytes of KV cache on this stage, and of the "
        f"{memory} bytes that it may use {free} are left for it",
        hint="Plan with a smaller context or concurrency, give this node fewer layers, or more --memory.",
    )
    error.needed_bytes, error.free_bytes = memory - free + promised, memory  # type: ignore[attr-defined]
    return error


def warm(
    loaded: Loaded, vocabulary: int | None = None, wire_dtype: str = "", kv_bits: Literal[8] | None = None
) -> tuple[MlxCompute, int, float]:
    """Run what will be run: a chunk, a token, two requests together.

    Returns the chunk that fits the time as well, and how long a step with it takes.
    """
    stage = loaded.stage
    for part in stage.model.modules():
        attend_by_row(type(part).__module__)
    trial = MlxCompute(stage, (), Prefixes(0), shares=False)
    stage.kv_bits = kv_bits
    first, second = Request(stage.make_caches()), Request(stage.make_caches())
    try:
        _run(trial, [(first, Row(1, 0, TRIAL_TOKENS))])
    except (TypeError, AttributeError, ValueError) as error:
        if kv_bits is None:
            raise
        # Its attention does something with keys and values that cannot be done with packed ones.
        raise caches.not_in_bytes(kv_bits, str(error)) from error
    _run(trial, [(second, Row(2, 0, TRIAL_TOKENS))])
    began_s = time.monotonic()
    _run(trial, [(first, Row(1, TRIAL_TOKENS, TRIAL_TOKENS))])
    a_token_s = (time.monotonic() - began_s) / TRIAL_TOKENS
    chunk = max(1, min(MAX_CHUNK, int(TARGET_S / max(a_token_s, 1e-9))))
    each = caches.costs(first.caches)
    shares = _shares(trial)
    wire = WIRE_DTYPES[wire_dtype] if wire_dtype else None
    made = MlxCompute(stage, each, Prefixes(0), shares=shares, vocabulary=vocabulary, wire=wire)
    return made, chunk, chunk * a_token_s


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
