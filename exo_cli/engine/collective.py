"""A throw-away process that says which collectives MLX has here, or measures one with its peers.

Run as `python -m exo_cli.engine.collective backends`, or `... measure BACKEND SECONDS` with the variables
that MLX itself reads (MLX_RANK, MLX_HOSTFILE, ...). MLX has no timeouts and holds the interpreter while it
waits for a peer, so the process gives itself an alarm that ends it. Knows nothing of models.
"""

import ctypes
import json
import signal
import sys
import time
from importlib import metadata
from statistics import median
from typing import Any, Final

SMALL_BYTES: Final = 4
LARGE_BYTES: Final = 16 << 20
WARM_ROUNDS: Final = 3
EACH_S: Final = 1.0
"""So long latency and bandwidth are measured, each, where a round is shorter than that."""
ROUNDS: Final = {SMALL_BYTES: (5, 500), LARGE_BYTES: (2, 50)}
BACKENDS: Final = ("jaccl", "mpi", "nccl", "ring")


def backends() -> dict[str, Any]:
    """The text `mlx` of a capture."""
    librdma = None
    if sys.platform == "darwin":
        try:
            ctypes.CDLL("librdma.dylib")
            librdma = True
        except OSError:
            librdma = False
    said: dict[str, Any] = {"mlx": _version("mlx"), "mlx_lm": _version("mlx-lm")}
    try:
        import mlx.core as mx
    except (ImportError, OSError):
        return {**said, "mlx": None, "backends": {}, "librdma": librdma}
    available = {name: mx.distributed.is_available(name) for name in BACKENDS}
    return {**said, "backends": available, "librdma": librdma}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def measure(backend: str) -> dict[str, Any]:
    """Latency and bandwidth of an all-sum with every other rank; raises what MLX raises."""
    import mlx.core as mx

    group = mx.distributed.init(strict=True, backend=backend)
    # NCCL computes where the buffers are; the others' collectives run on the CPU.
    stream = mx.default_stream(mx.default_device()) if backend == "nccl" else mx.default_stream(mx.cpu)

    def summed(array: mx.array) -> mx.array:
        total = mx.distributed.all_sum(array, group=group, stream=stream)
        mx.eval(total)
        return total

    def times_s(array: mx.array) -> list[float]:
        """How long each round took. All ranks have to do the same number: the first one says how many."""
        for _ in range(WARM_ROUNDS):
            began = time.perf_counter()
            summed(array)
            once_s = time.perf_counter() - began
        least, most = ROUNDS[array.nbytes]
        wished = max(least, min(most, int(EACH_S / max(once_s, 1e-6))))
        rounds = _number(summed(mx.array([wished if group.rank() == 0 else 0], dtype=mx.float32)))
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            summed(array)
            taken.append(time.perf_counter() - began)
        return taken

    small = mx.ones(SMALL_BYTES // 4, dtype=mx.float32)
    large = mx.ones(LARGE_BYTES // 4, dtype=mx.float32)
    mx.eval(small, large)
    total = _number(summed(small))
    if total != group.size():
        raise RuntimeError(f"the sum over {group.size()} ranks is {total}")
    latencies_us = sorted(1e6 * taken for taken in times_s(small))
    large_s = median(times_s(large))
    return {
        "backend": backend,
        "rank": group.rank(),
        "ranks": group.size(),
        "latency_us_p50": latencies_us[len(latencies_us) // 2],
        "latency_us_p99": latencies_us[int(len(latencies_us) * 0.99)],
        "bytes_per_s": LARGE_BYTES / large_s,
        "message_bytes": LARGE_BYTES,
        "rounds": len(latencies_us),
    }


def _number(array: Any) -> int:
    """What an array of one element holds."""
    return round(float(array.item()))


def main(words: list[str]) -> int:
    if words[0] == "backends":
        sys.stdout.write(json.dumps(backends()) + "\n")
        return 0
    _, backend, seconds = words
    # The default action of this signal ends the process whatever thread holds the interpreter.
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
    try:
        sys.stdout.write(json.dumps(measure(backend)) + "\n")
    except (RuntimeError, ValueError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
