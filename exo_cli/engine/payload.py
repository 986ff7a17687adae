"""What crosses a cut, as tensors: a layer's whole output, taken apart and put together again.

Most layers give one tensor; some give several, nested in tuples. Each live one has a batch axis, a
token axis and the rest; `pack` lays the rests end to end on one last axis, so that a frame's single
tensor [rows, width] holds them all, and `unpack` knows from the cut alone where each begins. Outputs
that nothing after the cut reads are not sent: a placeholder stands for them. Knows nothing of models,
stages or frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from exo_cli.errors import BadData


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor's place."""

    index: int


@dataclass(frozen=True, slots=True)
class Const:
    """A value that is no tensor: given again as it was, or `opaque` if that cannot be known."""

    value: Any
    opaque: bool = False


@dataclass(frozen=True, slots=True)
class Nest:
    """A tuple, list or dict of more."""

    kind: type
    items: tuple["Template", ...]
    keys: tuple[str, ...] = ()


Template = Leaf | Const | Nest


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor that is sent: which axes are the sequences and the tokens, the rest's shape, its dtype."""

    batch_axis: int
    token_axis: int
    rest: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def width(self) -> int:
        return math.prod(self.rest)


@dataclass(frozen=True, slots=True)
class Payload:
    """The form of what crosses one cut: the nesting, and per tensor how it is sent (None: it is not)."""

    template: Template
    slots: tuple[Slot | None, ...]

    @property
    def sent(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot is not None)

    @property
    def width(self) -> int:
        """Numbers a token and cut: the last axis of the packed tensor."""
        return sum(slot.width for slot in self.sent)

    @property
    def dtype(self) -> mx.Dtype:
        """The smallest dtype that holds every tensor without loss."""
        dtypes = {slot.dtype for slot in self.sent}
        return dtypes.pop() if len(dtypes) == 1 else mx.float32

    def take(self, output: Any) -> tuple[mx.array, ...]:
        """The tensors to send, out of what the layer before the cut gave."""
        leaves, template = flatten(output)
        if template != self.template:
            raise BadData("a layer gave something of another form than it did when it was looked at")
        return tuple(leaf for leaf, slot in zip(leaves, self.slots, strict=True) if slot is not None)

    def give(self, tensors: Sequence[mx.array]) -> Any:
        """What the layer before the cut gave, for the layer after it."""
        at = iter(tensors)
        return unflatten(self.template, [None if slot is None else next(at) for slot in self.slots])

    def check(self, tensors: Sequence[mx.array], batch: int, tokens: int) -> None:
        """Refuses tensors of another number, shape or dtype than this cut has."""
        if len(tensors) != len(self.sent):
            raise BadData(f"{len(tensors)} tensors at a cut that sends {len(self.sent)}")
        for tensor, slot in zip(tensors, self.sent, strict=True):
            shape = list(slot.rest)
            for axis, size in sorted([(slot.batch_axis, batch), (slot.token_axis, tokens)]):
                shape.insert(axis, size)
            if tuple(shape) != tensor.shape or tensor.dtype != slot.dtype:
                raise BadData(
                    f"a tensor of {tensor.dtype} {tensor.shape} where {slot.dtype} {tuple(shape)} is due"
                )

    def pack(self, tensors: Sequence[mx.array]) -> mx.array:
        """One tensor [batch, tokens, width] out of those that are sent, in their order."""
        parts = []
        for tensor, slot in zip(tensors, self.sent, strict=True):
            rows = _reordered(tensor, _rows_first(slot))
            parts.append(rows.reshape(*rows.shape[:2], slot.width).astype(self.dtype))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)

    def unpack(self, packed: mx.array) -> tuple[mx.array, ...]:
        """The tensors out of [batch, tokens, width]."""
        if packed.ndim != 3 or packed.shape[-1] != self.width:
            raise BadData(f"a tensor of shape {packed.shape} at a cut that is {self.width} wide")
        tensors, at = [], 0
        for slot in self.sent:
            rows = packed[..., at : at + slot.width].astype(slot.dtype)
            rows = rows.reshape(*packed.shape[:2], *slot.rest)
            order = _rows_first(slot)
            tensors.append(_reordered(rows, [order.index(axis) for axis in range(len(order))]))
            at += slot.width
        return tuple(tensors)


def flatten(value: Any) -> tuple[list[mx.array], Template]:
    """The tensors in a nest, and the nest without them."""
    leaves: list[mx.array] = []
    return leaves, _flatten(value, leaves)


def unflatten(template: Template, leaves: Sequence[mx.array | None]) -> Any:
    """The nest with tensors in it."""
    if isinstance(template, Leaf):
        return leaves[template.index]
    if isinstance(template, Const):
        return template.value
    items = [unflatten(item, leaves) for item in template.items]
    if template.kind is dict:
        return dict(zip(template.keys, items, strict=True))
    if template.kind in (list, tuple):
        return template.kind(items)
    return template.kind(*items)


def _flatten(value: Any, leaves: list[mx.array]) -> Template:
    if isinstance(value, mx.array):
        leaves.append(value)
        return Leaf(len(leaves) - 1)
    if type(value) is dict:
        return Nest(dict, tuple(_flatten(item, leaves) for item in value.values()), tuple(map(str, value)))
    if type(value) in (list, tuple) or hasattr(value, "_fields"):
        return Nest(type(value), tuple(_flatten(item, leaves) for item in value))
    known = value is None or isinstance(value, bool | int | float | str)
    return Const(value, opaque=not known)


def _rows_first(slot: Slot) -> list[int]:
    rows = [slot.batch_axis, slot.token_axis]
    return [*rows, *(axis for axis in range(len(slot.rest) + 2) if axis not in rows)]


def _reordered(tensor: mx.array, order: list[int]) -> mx.array:
    return tensor if order == sorted(order) else mx.transpose(tensor, order)
