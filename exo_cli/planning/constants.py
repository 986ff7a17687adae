"""The few numbers in the cost model that no node measures, each with where it comes from.

Knows nothing of what they are used for.
"""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Constants:
    """Seconds and shares; a benchmark that fits them to another program's runs makes its own."""

    hop_s: float = 0.0001
    """Encoding, encryption and two wake-ups, beside what the link itself takes: benchmarks/results/chain.json
    has 205 us a hop on one host, of which half is what a link's round trip already shows."""
    pass_s: float = 0.00018
    """A forward pass costs 120 to 250 us whatever is in it (benchmarks/LOG.md)."""
    layer_s: float = 0.0
    """A layer's launches; what a node measures with the real kernels has them in."""
    decode_share: float = 0.7
    """Of a maker's bandwidth, what an engine reaches where nothing was measured."""
    prefill_share: float = 0.5
    """Of a maker's arithmetic."""
    chunk_tokens: int = 256
    """A prompt goes down the chain in pieces; engines pick their own length, about this one."""
    answer_tokens: int = 256
    """How long an answer is, where a whole request is weighed (balanced)."""
    beside_share: float = 0.8
    """Of its speed, what an engine has beside another busy one on the same processor, on cores of its own.
    Both wait for the same memory: two threads read 1.56 times what one does (benchmarks/LOG.md)."""
    reduce_s: float = 0.00005
    """What an exchange inside a tensor-parallel group costs beside the link."""


DEFAULT = Constants()

BASE_BYTES = {"cpu": 84 * MIB, "metal": 200 * MIB, "cuda": 512 * MIB}
"""An engine with next to nothing in it. cpu: benchmarks/results/memory.json has 82 MiB; metal and cuda are
not measured yet."""
OTHER_BASE_BYTES = 512 * MIB
FAST_BASE_BYTES = 176 * MIB
"""A CPU's engine that computes `fast`: numba and LLVM stay in memory."""
ALLOCATOR_SHARE = 0.045
"""What MLX's allocations take above their tensors: the slope over five stages of that benchmark."""
ACTIVATION_ITEMS = 4
"""Numbers for each position of a chunk and each of the width, at the most in memory at once."""

LOOPBACK_RTT_S = 0.0001
LOOPBACK_BYTES_PER_S = 2e9
UNKNOWN_RTT_S = 0.001
UNKNOWN_BYTES_PER_S = 110e6
"""A gigabit line, for links that nobody measured."""


def base_bytes(backend: str, *, fast: bool) -> int:
    """Of an engine there, whatever it holds; `fast`: it may be asked to compute so."""
    return FAST_BASE_BYTES if fast else BASE_BYTES.get(backend, OTHER_BASE_BYTES)
