"""The numbers of random tensors, a piece at a time: the same for a seed and a name on every machine.

Each tensor has a stream of its own, drawn from its name and the seed, so that it does not matter which
others are made, where, or in what order. Only sums, products and roundings that IEEE 754 fixes are used.
Pieces are unsigned integers as wide as the tensor's items: the bytes that stand in a file. Knows nothing of
what tensors are for.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, Final, assert_never

import numpy as np
import numpy.typing as npt

from exo_cli.models.random_tensors import VERSION, Bits, Exponents, Offsets, RandomTensor, Uniform

STORED: Final[dict[str, type[np.unsignedinteger[Any]]]] = {
    "U8": np.uint8,
    "U32": np.uint32,
    "BF16": np.uint16,
    "F16": np.uint16,
    "F32": np.uint32,
}
"""As what an item of a dtype lies in memory."""

Items = npt.NDArray[np.unsignedinteger[Any]]
_Fractions = npt.NDArray[np.float32]

_WORDS: Final = 1 << 12
"""Of 64 bits, in a piece: its arrays stay in a core's cache, and malloc takes no new pages for them."""


def pieces(tensor: RandomTensor, seed: int) -> Iterator[Items]:
    """The tensor's items in their order."""
    recipe, stored = tensor.recipe, STORED[tensor.dtype]
    count = int(np.prod(tensor.shape, dtype=np.int64))
    name = recipe.scales if isinstance(recipe, Offsets) else tensor.name
    for raw in _drawn(name, seed, count, stored):
        match recipe:
            case Bits():
                yield raw
            case Exponents(low, share):
                yield (raw < share).astype(np.uint8) + np.uint8(low)
            case Uniform():
                yield _rounded(_between(raw, recipe), tensor.dtype)
            case Offsets(_, drawn, factor):
                scales = _fractions(_rounded(_between(raw, drawn), tensor.dtype), tensor.dtype)
                yield _rounded(scales * np.float32(factor), tensor.dtype)
            case _:
                assert_never(recipe)


def _drawn(name: str, seed: int, count: int, stored: type[np.unsignedinteger[Any]]) -> Iterator[Items]:
    said = hashlib.sha256(f"exo.random/{VERSION}\n{seed}\n{name}".encode()).digest()
    source = np.random.SFC64(int.from_bytes(said))
    a_word = 8 // np.dtype(stored).itemsize
    for start in range(0, count, _WORDS * a_word):
        left = min(count - start, _WORDS * a_word)
        words: npt.NDArray[np.uint64] = source.random_raw(-(-left // a_word))
        yield words.astype("<u8", copy=False).view(stored)[:left]


def _between(raw: Items, bounds: Uniform) -> _Fractions:
    # float32 holds 24 bits: of 32 only so many count.
    bits, kept = (24, raw >> np.uint32(8)) if raw.dtype == np.uint32 else (16, raw)
    step = (bounds.high - bounds.low) / 2**bits
    fractions = kept.astype(np.float32)
    fractions *= np.float32(step)
    fractions += np.float32(bounds.low + step / 2)
    return fractions


def _rounded(fractions: _Fractions, dtype: str) -> Items:
    """To the nearest that the dtype has; of two that are as near, the even one."""
    if dtype == "F32":
        return fractions.view(np.uint32)
    if dtype == "F16":
        return fractions.astype(np.float16).view(np.uint16)
    whole = fractions.view(np.uint32)
    whole = whole + (np.uint32(0x7FFF) + (whole >> np.uint32(16) & np.uint32(1)))
    return (whole >> np.uint32(16)).astype(np.uint16)


def _fractions(items: Items, dtype: str) -> _Fractions:
    if dtype == "F32":
        return items.view(np.float32)
    if dtype == "F16":
        return items.view(np.float16).astype(np.float32)
    return (items.astype(np.uint32) << np.uint32(16)).view(np.float32)
