"""The frame codec: a step's payload to and from protobuf, with every bound checked first.

A frame is parts (request, epoch, position, n), the token ids of all rows, and at most one tensor.
Rows are the parts' tokens laid end to end: the sum of all n. The tensor's first dimension is the
rows, whatever the others mean. A frame that would not fit in one message travels in pieces: piece 0
carries the token ids, every piece repeats the step, the parts, the dtype and the shape and carries
an equal share of the tensor's bytes (the last one what is left). Deals in bytes; knows nothing of
arrays, streams, or what a request is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from exo_cli.errors import BadData
from exo_cli.wire import exo_pb2 as pb

MAX_MESSAGE_BYTES: Final = 8_000_000
"""No message on the wire is larger; both ends hold to the same figure."""
MAX_FRAME_BYTES: Final = 256 * 1024 * 1024
"""The usual bound for one tensor: 2,048 rows of 32,768 float32."""
MAX_PARTS: Final = 4096
MAX_ROWS: Final = 65_536
MAX_RANK: Final = 4
MAX_DIMENSION: Final = 2**24
MAX_TENSOR_BYTES: Final = 2**40
"""Where `size_bytes` stops counting, whatever a reader's own bound is."""
_POSITIONS: Final = 2**31
_TOKEN_IDS: Final = 2**31
_MARGIN_BYTES: Final = 1024
_PART_BYTES: Final = 32
_TOKEN_BYTES: Final = 5

DType = Literal["float32", "bfloat16", "float16"]
Reason = Literal[
    "parts", "part", "duplicate", "rows", "tokens", "dtype", "shape", "size", "limit", "pieces", "order"
]

ITEM_BYTES: Final[dict[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}
_TO_WIRE: Final[dict[DType, pb.DType]] = {
    "float32": pb.DTYPE_FLOAT32,
    "bfloat16": pb.DTYPE_BFLOAT16,
    "float16": pb.DTYPE_FLOAT16,
}
_FROM_WIRE: Final[dict[int, DType]] = {int(number): name for name, number in _TO_WIRE.items()}


class FrameRefused(BadData):
    """A frame broke a rule; `reason` says which, for counters and tests."""

    code = "frame-refused"

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(
            f"frame refused: {message}", hint="Install the same version of exo on every machine."
        )
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Part:
    """`n` tokens of a request, from `position` on."""

    request: int
    epoch: int
    position: int
    n: int


@dataclass(frozen=True, slots=True)
class TensorData:
    """The bytes of one tensor, row-major and little-endian; shape[0] is the frame's rows."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class FrameData:
    """One step's payload. A frame without parts has no tokens and no tensor."""

    step: int
    parts: tuple[Part, ...]
    tokens: tuple[int, ...]
    tensor: TensorData | None

    def only(self, wanted: Sequence[bool]) -> "FrameData":
        """The same step with those parts alone that are wanted."""
        ends = [sum(part.n for part in self.parts[: at + 1]) for at in range(len(self.parts))]
        rows = [
            slice(end - part.n, end) for part, end, want in zip(self.parts, ends, wanted, strict=True) if want
        ]
        parts = tuple(part for part, want in zip(self.parts, wanted, strict=True) if want)
        tokens = tuple(token for each in rows for token in self.tokens[each])
        if self.tensor is None:
            return FrameData(self.step, parts, tokens, None)
        data, shape = memoryview(self.tensor.data).cast("B"), self.tensor.shape
        size = data.nbytes // shape[0]
        left = b"".join(data[each.start * size : each.stop * size] for each in rows)
        tensor = TensorData(self.tensor.dtype, (len(tokens), *shape[1:]), left)
        return FrameData(self.step, parts, tokens, tensor)


def size_bytes(dtype: str, shape: Sequence[int], *, limit: int = MAX_TENSOR_BYTES) -> int:
    """The size of a tensor; refuses what is not a tensor of ours or is larger than `limit`."""
    item = ITEM_BYTES.get(dtype)
    if item is None:
        raise FrameRefused("dtype", f"unknown dtype {dtype[:20]!r}")
    if not 1 <= len(shape) <= MAX_RANK:
        raise FrameRefused("shape", f"a tensor of rank {len(shape)}; 1 to {MAX_RANK} are allowed")
    size: int = item
    for dimension in shape:
        if not 1 <= dimension <= MAX_DIMENSION:
            raise FrameRefused("shape", f"a dimension of {dimension}; 1 to {MAX_DIMENSION} are allowed")
        size *= dimension
        if size > limit:
            raise FrameRefused("limit", f"a tensor of more than {limit} bytes")
    return size


def encode(frame: FrameData, *, message_bytes: int = MAX_MESSAGE_BYTES) -> list[pb.Frame]:
    """The frame as messages of at most `message_bytes`, in the order in which they must go."""
    _check_rows(frame.step, frame.parts, frame.tokens)
    parts = [
        pb.Part(request=part.request, epoch=part.epoch, position=part.position, n=part.n)
        for part in frame.parts
    ]
    tensor = frame.tensor
    room = message_bytes - _MARGIN_BYTES - _PART_BYTES * len(parts) - _TOKEN_BYTES * len(frame.tokens)
    if tensor is None:
        if room < 0:
            raise FrameRefused("limit", f"{len(frame.tokens)} token ids do not fit in one message")
        return [pb.Frame(step=frame.step, parts=parts, tokens=frame.tokens)]
    size = size_bytes(tensor.dtype, tensor.shape)
    _check_leading(tensor.shape, len(frame.tokens))
    data = memoryview(tensor.data).cast("B")
    if data.nbytes != size:
        raise FrameRefused("size", f"{data.nbytes} bytes of tensor; its shape needs {size}")
    dtype = _TO_WIRE[tensor.dtype]
    if size <= room:
        return [
            pb.Frame(
                step=frame.step,
                parts=parts,
                tokens=frame.tokens,
                tensor=pb.Tensor(dtype=dtype, shape=tensor.shape, data=bytes(tensor.data)),
            )
        ]
    if room < 2 * _least_piece(message_bytes):
        raise FrameRefused("limit", "the parts and token ids leave no room for a piece of the tensor")
    piece_bytes = _piece_bytes(size, _pieces_of(size, room))
    pieces = _pieces_of(size, piece_bytes)
    return [
        pb.Frame(
            step=frame.step,
            parts=parts,
            tokens=frame.tokens if piece == 0 else (),
            tensor=pb.Tensor(
                dtype=dtype,
                shape=tensor.shape,
                data=bytes(data[piece * piece_bytes : (piece + 1) * piece_bytes]),
            ),
            piece=piece,
            pieces=pieces,
        )
        for piece in range(pieces)
    ]


class FrameReader:
    """Frames out of one stream's messages. After a refusal what was begun is dropped, and it goes on."""

    def __init__(
        self, *, max_frame_bytes: int = MAX_FRAME_BYTES, message_bytes: int = MAX_MESSAGE_BYTES
    ) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._message_bytes = message_bytes
        self._begun: _Begun | None = None

    def feed(self, message: pb.Frame) -> FrameData | None:
        """The frame, when `message` is or completes one; None while pieces are missing."""
        begun, self._begun = self._begun, None
        if begun is not None:
            return self._go_on(begun, message)
        if message.piece:
            raise FrameRefused("order", f"piece {message.piece} of a frame that was not begun")
        parts = _parts(message)
        if len(message.tokens) > MAX_ROWS:
            raise FrameRefused("rows", f"{len(message.tokens)} token ids; at most {MAX_ROWS} are allowed")
        tokens = tuple(message.tokens)
        _check_rows(message.step, parts, tokens)
        pieces = message.pieces or 1
        if not message.HasField("tensor"):
            if pieces != 1:
                raise FrameRefused("pieces", "a frame without a tensor in pieces")
            return FrameData(message.step, parts, tokens, None)
        dtype, shape = _header(message.tensor)
        size = size_bytes(dtype, shape, limit=self._max_frame_bytes)
        _check_leading(shape, len(tokens))
        piece_bytes = self._check_pieces(size, pieces)
        data = message.tensor.data
        if len(data) != piece_bytes:
            raise FrameRefused("size", f"{len(data)} bytes of tensor; its shape needs {piece_bytes}")
        if pieces == 1:
            return FrameData(message.step, parts, tokens, TensorData(dtype, shape, data))
        # Grows as pieces come: memory follows what has arrived, never what was claimed.
        header = _Header(message.step, parts, dtype, shape, pieces)
        self._begun = _Begun(header, tokens, size, piece_bytes, bytearray(data), 1)
        return None

    def _go_on(self, begun: "_Begun", message: pb.Frame) -> FrameData | None:
        if message.piece != begun.next_piece:
            raise FrameRefused("order", f"piece {message.piece} where {begun.next_piece} was due")
        if message.tokens:
            raise FrameRefused("tokens", "token ids in a piece that is not the first")
        if not message.HasField("tensor"):
            raise FrameRefused("pieces", f"piece {message.piece} has no tensor")
        header = _Header(message.step, _parts(message), *_header(message.tensor), message.pieces)
        if header != begun.header:
            raise FrameRefused("pieces", f"piece {message.piece} belongs to another frame")
        due = min(begun.piece_bytes, begun.size - len(begun.data))
        data = message.tensor.data
        if len(data) != due:
            raise FrameRefused("size", f"{len(data)} bytes in piece {message.piece}; {due} were due")
        begun.data += data
        begun.next_piece += 1
        if begun.next_piece < header.pieces:
            self._begun = begun
            return None
        whole = memoryview(begun.data).toreadonly()
        return FrameData(
            header.step, header.parts, begun.tokens, TensorData(header.dtype, header.shape, whole)
        )

    def _check_pieces(self, size: int, pieces: int) -> int:
        """The bytes that each piece but the last must have."""
        piece_bytes = _piece_bytes(size, pieces)
        least = 0 if pieces == 1 else _least_piece(self._message_bytes)
        if not least <= piece_bytes <= self._message_bytes or _pieces_of(size, piece_bytes) != pieces:
            raise FrameRefused("pieces", f"{size} bytes of tensor in {pieces} pieces")
        return piece_bytes


@dataclass(frozen=True, slots=True)
class _Header:
    """What every piece of a frame repeats."""

    step: int
    parts: tuple[Part, ...]
    dtype: DType
    shape: tuple[int, ...]
    pieces: int


@dataclass(slots=True)
class _Begun:
    """A frame of which pieces are still to come."""

    header: _Header
    tokens: tuple[int, ...]
    size: int
    piece_bytes: int
    data: bytearray
    next_piece: int


def _parts(message: pb.Frame) -> tuple[Part, ...]:
    if len(message.parts) > MAX_PARTS:
        raise FrameRefused("parts", f"{len(message.parts)} parts; at most {MAX_PARTS} are allowed")
    return tuple(Part(part.request, part.epoch, part.position, part.n) for part in message.parts)


def _header(tensor: pb.Tensor) -> tuple[DType, tuple[int, ...]]:
    dtype = _FROM_WIRE.get(tensor.dtype)
    if dtype is None:
        raise FrameRefused("dtype", f"unknown dtype {int(tensor.dtype)}")
    if len(tensor.shape) > MAX_RANK:
        raise FrameRefused("shape", f"a tensor of rank {len(tensor.shape)}; 1 to {MAX_RANK} are allowed")
    return dtype, tuple(tensor.shape)


def _check_rows(step: int, parts: Sequence[Part], tokens: Sequence[int]) -> None:
    if len(parts) > MAX_PARTS:
        raise FrameRefused("parts", f"{len(parts)} parts; at most {MAX_PARTS} are allowed")
    if not 0 <= step < 2**64:
        raise FrameRefused("part", f"step {step}")
    rows = 0
    for part in parts:
        if part.n < 1 or part.position < 0 or part.position + part.n > _POSITIONS:
            raise FrameRefused("part", f"{part.n} tokens from position {part.position}")
        if not (0 <= part.request < 2**64 and 0 <= part.epoch < 2**32):
            raise FrameRefused("part", f"request {part.request} in epoch {part.epoch}")
        rows += part.n
    if rows > MAX_ROWS:
        raise FrameRefused("rows", f"{rows} rows; at most {MAX_ROWS} are allowed")
    if len(parts) > 1 and len({part.request for part in parts}) != len(parts):
        raise FrameRefused("duplicate", "two parts of one request")
    if len(tokens) != rows:
        raise FrameRefused("tokens", f"{len(tokens)} token ids for {rows} rows")
    if tokens and not (min(tokens) >= 0 and max(tokens) < _TOKEN_IDS):
        raise FrameRefused("tokens", "a token id out of range")


def _check_leading(shape: Sequence[int], rows: int) -> None:
    if shape[0] != rows:
        raise FrameRefused("rows", f"a tensor of {shape[0]} rows in a frame of {rows}")


def _pieces_of(size: int, piece_bytes: int) -> int:
    return -(-size // piece_bytes)


def _piece_bytes(size: int, pieces: int) -> int:
    return -(-size // pieces)


def _least_piece(message_bytes: int) -> int:
    """A sender fills its messages, more or less; a frame in crumbs is refused."""
    return message_bytes // 8
