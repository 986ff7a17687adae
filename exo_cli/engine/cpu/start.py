"""From a loaded stage to one that computes with our kernels: convert the weights, compile, try, measure.

Raises NotNative where a stage is not for the kernels, with nothing changed. Knows nothing of processes.
"""

import ctypes
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Literal

from exo_cli.engine import on_disk
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.compute import Request
from exo_cli.engine.core import MAX_CHUNK
from exo_cli.engine.cpu import expand, recognise
from exo_cli.engine.cpu.compute import NativeCompute
from exo_cli.engine.cpu.expand import NotNative
from exo_cli.engine.cpu.jit import HERE, is_compiled, ready
from exo_cli.engine.cpu.large_pages import PIECES
from exo_cli.engine.cpu.pack8 import GROUP
from exo_cli.engine.cpu.pool import default_threads
from exo_cli.engine.loading import FILES, Opened
from exo_cli.engine.pace import TARGET_S
from exo_cli.engine.scheduler import Row
from exo_cli.engine.tensors import WIRE_DTYPES
from exo_cli.wire.frames import TensorData

TRIAL_TOKENS: Final = 32
Report = Callable[[str, int, int], None]


def native(
    opened: Opened,
    vocabulary: int | None,
    wire_dtype: str,
    progress: Report,
    kv_bits: Literal[8] | None = None,
) -> tuple[NativeCompute, int, float]:
    """What computes, the chunk that fits the time, and how long a step with it takes.

    The thread that calls this has to run it. Weights go from their file into our layout where they can, else
    through MLX, whose copy is gone afterwards. Where NotNative is raised, nothing was read.
    """
    stage = opened.stage
    threads = default_threads()
    try:
        if HERE.missing:
            raise NotNative(f"a processor without {HERE.missing}")
        recognise.check(stage)
        expand.check(stage.model)
        if kv_bits is not None and recognise.head_width(stage) % GROUP:
            raise NotNative(f"{kv_bits}-bit caches of heads of {recognise.head_width(stage)}")
        if not is_compiled():
            progress("compile kernels", 0, 1)
        doing = "read" if opened.skeleton.origin is FILES else "make"
        opened.read(lambda done, total: progress(doing, done, total), but=on_disk.attach(opened))
        decoder = recognise.decoder(stage, lambda done, total: progress("pack", done, total), threads)
    finally:
        on_disk.detach(opened)
        PIECES.settle()
    if kv_bits is not None:
        decoder = replace(decoder, kv_bits=kv_bits)
    _give_back()
    wire = WIRE_DTYPES[wire_dtype] if wire_dtype else None
    compute = NativeCompute(stage, decoder, Prefixes(0), vocabulary=vocabulary, wire=wire, threads=threads)
    held = compute.request(TRIAL_TOKENS + 1)
    progress("warm-up", 0, 1)
    _try(compute, Row(1, 0, 1), held)
    began_s = time.monotonic()
    _try(compute, Row(1, held.position, TRIAL_TOKENS), held)
    a_token_s = (time.monotonic() - began_s) / TRIAL_TOKENS
    chunk = max(1, min(MAX_CHUNK, int(TARGET_S / max(a_token_s, 1e-9))))
    return compute, chunk, chunk * a_token_s


def ahead() -> None:
    """All that can be done before there is a stage."""
    ready()


def _give_back() -> None:
    """Memory that was freed here and there goes back to the system, where the C library does that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _try(compute: NativeCompute, row: Row, held: Request) -> None:
    """One step over made-up rows."""
    tokens = [1 + i % 7 for i in range(row.n)]
    tensor = None
    if compute.stage.receives is not None:
        width = compute.decoder.shape.width
        dtype = compute.wire_name
        size = 4 if dtype == "float32" else 2
        tensor = TensorData(dtype, (row.n, width), bytes(row.n * width * size))
    if compute.stage.sends is not None:
        compute.run([(held, row)], tokens, tensor)
    else:
        # As a request does, greedily: what chooses the token is compiled with the rest.
        compute.run_last([(held, row)], tokens, tensor, [True])
