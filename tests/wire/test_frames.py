"""The frame codec: round trips, a boundary table for each rule, mutated bytes, and bounded memory."""

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exo_cli.errors import BadData, Exit
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.frames import (
    ITEM_BYTES,
    MAX_DIMENSION,
    MAX_MESSAGE_BYTES,
    MAX_PARTS,
    MAX_ROWS,
    DType,
    FrameData,
    FrameReader,
    FrameRefused,
    Part,
    TensorData,
    encode,
    size_bytes,
)
from tests.support.mutations import mutated

SMALL = 4096
"""A message bound that makes pieces out of little data."""


def _frame(
    rows: int = 3, *, dtype: DType = "float32", inner: tuple[int, ...] = (5,), step: int = 9
) -> FrameData:
    shape = (rows, *inner)
    data = random.Random(rows).randbytes(size_bytes(dtype, shape))
    return FrameData(step, (Part(1, 0, 7, rows),), tuple(range(rows)), TensorData(dtype, shape, data))


def _through(
    frame: FrameData, *, message_bytes: int = MAX_MESSAGE_BYTES, reader: FrameReader | None = None
) -> Any:
    reader = reader or FrameReader(message_bytes=message_bytes)
    *first, last = encode(frame, message_bytes=message_bytes)
    for message in first:
        assert message.ByteSize() <= message_bytes
        assert reader.feed(pb.Frame.FromString(message.SerializeToString())) is None
    assert last.ByteSize() <= message_bytes
    return reader.feed(pb.Frame.FromString(last.SerializeToString()))


@st.composite
def _frames(draw: st.DrawFn) -> FrameData:
    requests = draw(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=5))
    parts = tuple(
        Part(
            request, draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**31 - 9)), draw(st.integers(1, 9))
        )
        for request in requests
    )
    rows = sum(part.n for part in parts)
    tokens = tuple(draw(st.lists(st.integers(0, 2**31 - 1), min_size=rows, max_size=rows)))
    tensor = None
    if rows and draw(st.booleans()):
        dtype: DType = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
        inner = draw(st.lists(st.integers(1, 12), max_size=3))
        shape = (rows, *inner)
        data = random.Random(rows).randbytes(size_bytes(dtype, shape))
        tensor = TensorData(dtype, shape, data)
    return FrameData(draw(st.integers(0, 2**64 - 1)), parts, tokens, tensor)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(_frames(), st.sampled_from([SMALL, 2 * SMALL, MAX_MESSAGE_BYTES]))
def test_a_frame_comes_back_as_it_went(frame: FrameData, message_bytes: int) -> None:
    assert _through(frame, message_bytes=message_bytes) == frame


@given(st.integers(1, 60_000), st.sampled_from([SMALL, 5000, 9999]))
def test_every_size_is_cut_so_that_the_reader_agrees(columns: int, message_bytes: int) -> None:
    frame = _frame(1, dtype="float16", inner=(columns,))
    assert _through(frame, message_bytes=message_bytes) == frame


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_frame_over_the_real_message_bound_travels_in_pieces(dtype: DType) -> None:
    frame = _frame(1024, dtype=dtype, inner=(4096,))
    messages = encode(frame)
    assert len(messages) > 1
    assert all(message.ByteSize() < MAX_MESSAGE_BYTES - 500 for message in messages)
    assert [message.piece for message in messages] == list(range(len(messages)))
    assert [len(message.tokens) for message in messages] == [1024] + [0] * (len(messages) - 1)
    assert _through(frame) == frame


def test_a_frame_with_everything_at_its_bound_fits() -> None:
    each = MAX_ROWS // MAX_PARTS
    parts = tuple(Part(2**64 - 1 - number, 2**32 - 1, 2**31 - each, each) for number in range(MAX_PARTS))
    tokens = (2**31 - 1,) * MAX_ROWS
    frame = FrameData(2**64 - 1, parts, tokens, TensorData("float16", (MAX_ROWS, 64), bytes(MAX_ROWS * 128)))
    assert _through(frame) == frame


def test_a_frame_of_some_of_its_parts() -> None:
    parts = tuple(Part(number, 1, 7, n) for number, n in enumerate((1, 3, 2)))
    rows = TensorData("float16", (6, 2), bytes(range(24)))
    frame = FrameData(5, parts, tuple(range(10, 16)), rows)
    assert frame.only([True] * 3) == frame
    left = frame.only([True, False, True])
    assert (left.step, left.parts, left.tokens) == (5, (parts[0], parts[2]), (10, 14, 15))
    assert left.tensor == TensorData("float16", (3, 2), bytes([0, 1, 2, 3, *range(16, 24)]))
    assert encode(left)
    assert frame.only([False] * 3).parts == ()
    assert replace(frame, tensor=None).only([False, True, False]) == FrameData(
        5, parts[1:2], (11, 12, 13), None
    )


def test_a_view_is_taken_as_well_as_bytes() -> None:
    whole = _frame()
    assert whole.tensor is not None
    view: Any = memoryview(bytearray(whole.tensor.data)).cast("f")
    assert _through(FrameData(9, whole.parts, whole.tokens, TensorData("float32", (3, 5), view))) == whole


def test_a_frame_without_rows() -> None:
    assert _through(FrameData(4, (), (), None)) == FrameData(4, (), (), None)


def test_frames_follow_each_other_through_one_reader() -> None:
    reader = FrameReader(message_bytes=SMALL)
    for rows in (1, 700, 3, 900, 900, 2):
        frame = _frame(rows, step=rows)
        if rows == 700 or rows == 900:
            frame = FrameData(
                rows, (Part(1, 0, 0, 1),), (5,), TensorData("float32", (1, 40 * rows), bytes(160 * rows))
            )
        assert _through(frame, message_bytes=SMALL, reader=reader) == frame


# -- the size of a tensor -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("float32", (1,), 4),
        ("bfloat16", (3, 5), 30),
        ("float16", (2, 3, 4, 5), 240),
        ("float16", (MAX_DIMENSION,), 2 * MAX_DIMENSION),
        ("float32", (MAX_DIMENSION, 2**14), 2**40),
    ],
)
def test_sizes(dtype: str, shape: tuple[int, ...], size: int) -> None:
    assert size_bytes(dtype, shape) == size


@pytest.mark.parametrize(
    ("dtype", "shape", "reason"),
    [
        ("float64", (1,), "dtype"),
        ("", (1,), "dtype"),
        ("float32", (), "shape"),
        ("float32", (1, 1, 1, 1, 1), "shape"),
        ("float32", (3, 0), "shape"),
        ("float32", (-1, -4), "shape"),
        ("float32", (MAX_DIMENSION + 1,), "shape"),
        ("float32", (2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1), "shape"),
        # Products that are small, or nothing, modulo 2**32 and 2**64.
        ("float32", (2**16, 2**14), None),
        ("float32", (2**24, 2**24, 2**14), "limit"),
        ("float32", (2**24, 2**24, 2**8, 2**8), "limit"),
        ("float16", (2**24, 2**16), "limit"),
    ],
)
def test_sizes_at_the_bounds(dtype: str, shape: tuple[int, ...], reason: str | None) -> None:
    if reason is None:
        assert size_bytes(dtype, shape) == 2**32
        return
    with pytest.raises(FrameRefused) as caught:
        size_bytes(dtype, shape)
    assert caught.value.reason == reason


def test_the_closed_set_of_types() -> None:
    assert ITEM_BYTES == {"float32": 4, "bfloat16": 2, "float16": 2}


# -- rules, one by one --------------------------------------------------------------------------------


def _edit(change: Callable[[pb.Frame], object]) -> pb.Frame:
    """A good frame of two parts and five rows, then changed."""
    frame = FrameData(
        9,
        (Part(1, 0, 7, 3), Part(2, 4, 0, 2)),
        (1, 2, 3, 4, 5),
        TensorData("float32", (5, 4), bytes(80)),
    )
    (message,) = encode(frame)
    change(message)
    return pb.Frame.FromString(message.SerializeToString())


def _set(**fields: Any) -> Callable[[pb.Frame], object]:
    """A change of the tensor's fields."""

    def change(message: pb.Frame) -> None:
        for name, value in fields.items():
            if name == "shape":
                message.tensor.shape[:] = value
            else:
                setattr(message.tensor, name, value)

    return change


def _clear(*names: str, **counts: int) -> Callable[[pb.Frame], object]:
    """A change that takes fields away and sets `piece` or `pieces`."""

    def change(message: pb.Frame) -> None:
        for name in names:
            message.ClearField(name)
        for name, value in counts.items():
            setattr(message, name, value)

    return change


def _parts_of(count: int) -> Callable[[pb.Frame], object]:
    def change(message: pb.Frame) -> None:
        message.ClearField("parts")
        message.ClearField("tensor")
        message.parts.extend(pb.Part(request=number, n=1) for number in range(count))
        message.tokens[:] = [0] * count

    return change


def _one_part(position: int, n: int) -> Callable[[pb.Frame], object]:
    def change(message: pb.Frame) -> None:
        message.ClearField("parts")
        message.ClearField("tensor")
        message.parts.add(request=1, position=position, n=n)
        message.tokens[:] = [0] * min(n, MAX_ROWS)

    return change


RULES: list[tuple[str, Callable[[pb.Frame], object], str | None]] = [
    ("as it is", lambda message: None, None),
    ("most parts", _parts_of(MAX_PARTS), None),
    ("one part too many", _parts_of(MAX_PARTS + 1), "parts"),
    ("one request twice", lambda message: setattr(message.parts[1], "request", 1), "duplicate"),
    ("no rows in a part", lambda message: setattr(message.parts[0], "n", 0), "part"),
    ("last position", _one_part(2**31 - 1, 1), None),
    ("position overflows", _one_part(2**31, 1), "part"),
    ("position and n overflow", _one_part(2**31 - 1, 2), "part"),
    ("position wraps at 32 bits", _one_part(2**32 - 1, 2), "part"),
    ("most rows", _one_part(0, MAX_ROWS), None),
    ("one row too many", _one_part(0, MAX_ROWS + 1), "rows"),
    ("rows wrap at 32 bits", _one_part(0, 2**31), "rows"),
    ("n overflows", _one_part(0, 2**32 - 1), "part"),
    ("a token id missing", lambda message: message.tokens.pop(), "tokens"),
    ("a token id too many", lambda message: message.tokens.append(1), "tokens"),
    ("no token ids", lambda message: message.ClearField("tokens"), "tokens"),
    ("largest token id", lambda message: message.tokens.__setitem__(0, 2**31 - 1), None),
    ("token id too large", lambda message: message.tokens.__setitem__(0, 2**31), "tokens"),
    ("far too many token ids", lambda message: message.tokens.extend([1] * MAX_ROWS), "rows"),
    ("tokens without parts", lambda message: message.ClearField("parts"), "tokens"),
    ("a tensor without rows", _clear("parts", "tokens"), "rows"),
    ("no dtype", _set(dtype=0), "dtype"),
    ("dtype of tomorrow", _set(dtype=4), "dtype"),
    ("negative dtype", _set(dtype=-1), "dtype"),
    ("no shape", _set(shape=[]), "shape"),
    ("rank 1", _set(shape=[5], data=bytes(20)), None),
    ("rank 4", _set(shape=[5, 2, 1, 2]), None),
    ("rank 5", _set(shape=[5, 2, 1, 2, 1]), "shape"),
    ("rank 100,000", _set(shape=[1] * 100_000), "shape"),
    ("zero dimension", _set(shape=[5, 0], data=b""), "shape"),
    ("huge dimension", _set(shape=[5, 2**32 - 1]), "shape"),
    ("other rows", _set(shape=[4, 5]), "rows"),
    ("rows split over two dimensions", _set(shape=[1, 5, 4]), "rows"),
    ("a byte missing", _set(data=bytes(79)), "size"),
    ("a byte too many", _set(data=bytes(81)), "size"),
    ("no data", _set(data=b""), "size"),
    ("half precision with the bytes of single", _set(dtype=pb.DTYPE_FLOAT16), "size"),
    ("claims 2 GB", _set(shape=[5, 2**23, 12]), "limit"),
    ("claims more than 64 bits", _set(shape=[5, 2**24, 2**24, 2**24]), "limit"),
    ("one piece", lambda message: setattr(message, "pieces", 1), None),
    ("two pieces of 40 bytes", lambda message: setattr(message, "pieces", 2), "pieces"),
    ("4 billion pieces", lambda message: setattr(message, "pieces", 2**32 - 1), "pieces"),
    ("pieces without a tensor", _clear("tensor", pieces=2), "pieces"),
    ("a later piece first", _clear(piece=1, pieces=2), "order"),
    ("a piece beyond one", lambda message: setattr(message, "piece", 1), "order"),
]


@pytest.mark.parametrize(("change", "reason"), [row[1:] for row in RULES], ids=[row[0] for row in RULES])
def test_rules_for_a_message(change: Callable[[pb.Frame], object], reason: str | None) -> None:
    reader = FrameReader()
    message = _edit(change)
    if reason is None:
        assert reader.feed(message) is not None
        return
    with pytest.raises(FrameRefused) as caught:
        reader.feed(message)
    assert caught.value.reason == reason
    assert isinstance(caught.value, BadData)
    assert caught.value.exit == Exit.BAD_DATA
    assert caught.value.message.isprintable()
    assert _through(_frame(), reader=reader) == _frame()


def test_the_readers_own_bound() -> None:
    exactly = FrameReader(max_frame_bytes=60)
    assert _through(_frame(3, inner=(5,)), reader=exactly) is not None
    with pytest.raises(FrameRefused) as caught:
        _through(_frame(4, inner=(5,)), reader=exactly)
    assert caught.value.reason == "limit"


def test_a_whole_frame_over_the_message_bound_is_refused() -> None:
    (message,) = encode(_frame(1, inner=(2 * SMALL,)))
    with pytest.raises(FrameRefused) as caught:
        FrameReader(message_bytes=SMALL).feed(message)
    assert caught.value.reason == "pieces"


BAD_FRAMES: list[tuple[str, FrameData, str]] = [
    ("negative request", FrameData(0, (Part(-1, 0, 0, 1),), (0,), None), "part"),
    ("request of 2**64", FrameData(0, (Part(2**64, 0, 0, 1),), (0,), None), "part"),
    ("epoch of 2**32", FrameData(0, (Part(0, 2**32, 0, 1),), (0,), None), "part"),
    ("negative position", FrameData(0, (Part(0, 0, -1, 1),), (0,), None), "part"),
    ("step of 2**64", FrameData(2**64, (), (), None), "part"),
    ("negative token", FrameData(0, (Part(0, 0, 0, 1),), (-1,), None), "tokens"),
    ("too many parts", FrameData(0, (Part(0, 0, 0, 1),) * (MAX_PARTS + 1), (0,), None), "parts"),
    ("wrong size", FrameData(0, (Part(0, 0, 0, 1),), (0,), TensorData("float32", (1, 2), b"")), "size"),
    ("wrong rows", FrameData(0, (Part(0, 0, 0, 1),), (0,), TensorData("float32", (2,), bytes(8))), "rows"),
]


@pytest.mark.parametrize(
    ("frame", "reason"), [row[1:] for row in BAD_FRAMES], ids=[row[0] for row in BAD_FRAMES]
)
def test_a_bad_frame_is_not_sent(frame: FrameData, reason: str) -> None:
    with pytest.raises(FrameRefused) as caught:
        encode(frame)
    assert caught.value.reason == reason


def test_a_header_that_leaves_no_room_is_not_sent() -> None:
    with pytest.raises(FrameRefused, match="no room"):
        encode(_frame(500, inner=(100,)), message_bytes=SMALL)
    with pytest.raises(FrameRefused, match="do not fit"):
        encode(FrameData(0, (Part(0, 0, 0, 900),), (0,) * 900, None), message_bytes=SMALL)


# -- pieces -------------------------------------------------------------------------------------------


def _pieces() -> list[pb.Frame]:
    """A good frame in five pieces."""
    frame = FrameData(9, (Part(1, 0, 7, 2),), (1, 2), TensorData("float32", (2, 1800), bytes(14_400)))
    messages = encode(frame, message_bytes=SMALL)
    assert len(messages) == 5
    return messages


def _changed(number: int, change: Callable[[pb.Frame], object]) -> list[pb.Frame]:
    messages = _pieces()
    change(messages[number])
    return messages


def _reordered(*order: int) -> list[pb.Frame]:
    messages = _pieces()
    return [messages[number] for number in order]


PIECES: list[tuple[str, list[pb.Frame], str]] = [
    ("one twice", _reordered(0, 1, 1), "order"),
    ("one missing", _reordered(0, 2), "order"),
    ("begun again", _reordered(0, 1, 0), "order"),
    ("a whole frame in between", [*_reordered(0, 1), *encode(_frame())], "order"),
    ("another step", _changed(1, lambda m: setattr(m, "step", 10)), "pieces"),
    ("another position", _changed(2, lambda m: setattr(m.parts[0], "position", 8)), "pieces"),
    ("another part", _changed(2, lambda m: m.parts.add(request=5, n=1)), "pieces"),
    ("too many parts", _changed(2, lambda m: m.parts.extend([pb.Part()] * MAX_PARTS)), "parts"),
    ("no parts", _changed(2, lambda m: m.ClearField("parts")), "pieces"),
    ("another dtype", _changed(3, lambda m: setattr(m.tensor, "dtype", pb.DTYPE_FLOAT16)), "pieces"),
    ("another shape", _changed(3, lambda m: m.tensor.shape.append(1)), "pieces"),
    ("unknown dtype", _changed(3, lambda m: setattr(m.tensor, "dtype", 77)), "dtype"),
    ("endless shape", _changed(3, lambda m: m.tensor.shape.extend([1] * 9999)), "shape"),
    ("another count", _changed(1, lambda m: setattr(m, "pieces", 6)), "pieces"),
    ("token ids again", _changed(1, lambda m: m.tokens.extend([1, 2])), "tokens"),
    ("no tensor", _changed(1, lambda m: m.ClearField("tensor")), "pieces"),
    ("short", _changed(1, lambda m: setattr(m.tensor, "data", m.tensor.data[:-1])), "size"),
    ("long", _changed(1, lambda m: setattr(m.tensor, "data", m.tensor.data + b"x")), "size"),
    ("last one long", _changed(4, lambda m: setattr(m.tensor, "data", m.tensor.data + b"x")), "size"),
    ("first one short", _changed(0, lambda m: setattr(m.tensor, "data", b"")), "size"),
    ("crumbs", _changed(0, lambda m: setattr(m, "pieces", 40)), "pieces"),
]


@pytest.mark.parametrize(("messages", "reason"), [row[1:] for row in PIECES], ids=[row[0] for row in PIECES])
def test_rules_for_pieces(messages: list[pb.Frame], reason: str) -> None:
    reader = FrameReader(message_bytes=SMALL)
    with pytest.raises(FrameRefused) as caught:
        _ = [reader.feed(message) for message in messages]
    assert caught.value.reason == reason
    # What was begun is dropped, later pieces of it are refused, and the next frame passes.
    for message in _pieces()[1:]:
        with pytest.raises(FrameRefused, match="not begun"):
            reader.feed(message)
    assert [reader.feed(message) for message in _pieces()][-1] is not None


# -- bytes from a stranger ----------------------------------------------------------------------------


def test_mutated_bytes_are_refused_or_are_a_frame() -> None:
    dice = random.Random(20_000)
    small = FrameData(
        3, (Part(7, 1, 2, 2), Part(8, 0, 0, 1)), (5, 6, 7), TensorData("float16", (3, 4), bytes(24))
    )
    seeds = [
        message.SerializeToString()
        for frame in (small, FrameData(3, small.parts, small.tokens, None), FrameData(0, (), (), None))
        for message in encode(frame)
    ] + [message.SerializeToString() for message in _pieces()]
    reader = FrameReader(message_bytes=SMALL)
    outcomes = {"undecodable": 0, "refused": 0, "piece": 0, "frame": 0}
    reasons = set()
    for number in range(40_000):
        data = mutated(dice.choice(seeds), dice) if number % 4 else dice.choice(seeds)
        try:
            found = reader.feed(pb.Frame.FromString(data))
        except DecodeError:
            outcomes["undecodable"] += 1
        except FrameRefused as error:
            outcomes["refused"] += 1
            reasons.add(error.reason)
        else:
            outcomes["piece" if found is None else "frame"] += 1
            if found is not None and found.tensor is not None:
                assert len(found.tensor.data) == size_bytes(found.tensor.dtype, found.tensor.shape)
                assert found.tensor.shape[0] == len(found.tokens) == sum(part.n for part in found.parts)
    assert sum(outcomes.values()) == 40_000
    assert min(outcomes.values()) > 100, outcomes
    assert len(reasons) >= 8, reasons


# -- memory -------------------------------------------------------------------------------------------


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_claim_of_2_gb_costs_nothing() -> None:
    message = pb.Frame(parts=[pb.Part(n=1)], tokens=[1], pieces=300)
    message.tensor.CopyFrom(pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1, 2**15, 2**14], data=bytes(1000)))

    def refused() -> None:
        with pytest.raises(FrameRefused):
            FrameReader().feed(message)

    assert _peak_bytes(refused) < 1_000_000


def test_memory_follows_what_arrives_even_where_2_gb_are_allowed() -> None:
    size, pieces = 2**31, 512
    first = pb.Frame(parts=[pb.Part(n=1)], tokens=[1], pieces=pieces)
    data = bytes(size // pieces)
    first.tensor.CopyFrom(pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1, 2**15, 2**14], data=data))
    reader = FrameReader(max_frame_bytes=2**31)
    assert _peak_bytes(lambda: reader.feed(first)) < 10_000_000


def test_a_message_of_nothing_but_token_ids_is_not_unpacked() -> None:
    message = pb.Frame(tokens=[2**20] * 1_000_000)

    def refused() -> None:
        with pytest.raises(FrameRefused):
            FrameReader().feed(message)

    assert _peak_bytes(refused) < 1_000_000
