"""Every illegal message goes to real stages: refused with a reason, and the next legal step is as if nothing
had been said."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import grpc
import grpc.aio
import mlx.core as mx
import pytest
from google.protobuf.message import DecodeError

from exo_cli.engine.core import MAX_CHUNK
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.frames import FrameData, FrameReader, FrameRefused, Part, TensorData, encode
from exo_cli.wire.hello import hello
from exo_cli.wire.stubs import stage as stage_stub
from tests.support import cluster, tiny_models
from tests.support import nodes as nodes_of_test
from tests.support.beside import PipeStream, knock
from tests.support.beside import beside as beside_
from tests.support.cluster import Driven, Shard, loaded, shards
from tests.support.mutations import mutated
from tests.support.neighbour import Neighbour, follower, neighbour, stream
from tests.support.tiny_families import HIDDEN, VOCABULARY

pytestmark = pytest.mark.process

PROMPT, MORE = [5, 6, 7], 40
STEPS = 3
"""Taken before something illegal comes: the prompt's and two more."""
CUT, LAYERS = 2, 4
RSS_BYTES = 6 << 20
"""By how much an engine may grow, whatever a header claims."""


@dataclass(frozen=True)
class Stand:
    """One node with both stages of a model, and an event loop for all tests."""

    runner: asyncio.Runner
    source: KeyringSource
    home: Path
    node: Shard
    directory: Path
    driven: Driven
    wanted: list[int]
    """The tokens of PROMPT."""

    def played(self, work: Callable[[Neighbour], Any]) -> None:
        """`work` with a neighbour that has a request in the middle of its answer; nothing is left of it."""
        stage = self.driven.stages[1]

        async def main() -> None:
            async with neighbour(self.source, self.directory, CUT, LAYERS, stage) as beside:
                await beside.open(1, PROMPT, MORE)
                for _ in range(STEPS):
                    await beside.step()
                await work(beside)
                await self.goes_on(beside)
                await beside.cancel(1)
            await cluster.settled(self.source, [self.node], cluster.is_idle, seconds=3)

        self.runner.run(asyncio.wait_for(main(), 60))

    async def goes_on(self, beside: Neighbour) -> None:
        """The stage lives, and what it holds is what it held."""
        await beside.step()
        assert beside.tokens == self.wanted[: len(beside.tokens)]
        assert beside.down.came.empty()
        assert beside.driver.came.empty()

    async def stats(self) -> pb.StageStats:
        """Of the last stage, once the figures of now are known."""
        await asyncio.sleep(1.2)  # beats come twice a second
        return next(each for each in await self.node.stages(self.source) if each.first_layer == CUT)

    def rss_bytes(self) -> int:
        """Of the last stage's engine."""
        return sum(each.memory_info().rss for each in self.node.engines)


@pytest.fixture(scope="module")
def stand_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    home = tmp_path_factory.mktemp("stand")
    mx.disable_compile()
    directory = tiny_models.build("llama", home / "llama")
    with pytest.MonkeyPatch.context() as patch, shards(home, "a") as (node,), asyncio.Runner() as runner:
        patch.setenv("HOME", str(home))
        source, stack = KeyringSource(), AsyncExitStack()

        async def begin() -> tuple[Driven, list[int]]:
            bounds = (0, CUT, LAYERS)
            driven = await stack.enter_async_context(loaded(source, directory, bounds, [node, node]))
            return driven, await driven.tokens(PROMPT, MORE)

        driven, wanted = runner.run(begin())
        yield Stand(runner, source, home, node, directory, driven, wanted)
        runner.run(stack.aclose())


@pytest.fixture
def stand(stand_: Stand, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    monkeypatch.setenv("HOME", str(stand_.home))
    engines = {each.pid for each in stand_.node.engines}
    yield stand_
    assert {each.pid for each in stand_.node.engines} == engines, "an engine died"


# -- one frame that is wrong --------------------------------------------------------------------------

Change = Callable[[pb.Frame], object]


def part(**changes: int) -> Change:
    def change(frame: pb.Frame) -> None:
        for name, value in changes.items():
            setattr(frame.parts[0], name, value)

    return change


def fields(**changes: int) -> Change:
    def change(frame: pb.Frame) -> None:
        for name, value in changes.items():
            setattr(frame, name, value)

    return change


def without(name: Literal["tokens", "tensor"]) -> Change:
    return lambda frame: frame.ClearField(name)


def both(one: Change, other: Change) -> Change:
    def change(frame: pb.Frame) -> None:
        one(frame)
        other(frame)

    return change


def shape(*dimensions: int, size: int | None = None) -> Change:
    """Another shape, with the bytes that it asks for or `size` of them."""

    def change(frame: pb.Frame) -> None:
        del frame.tensor.shape[:]
        frame.tensor.shape.extend(dimensions)
        if size is not None:
            frame.tensor.data = bytes(size)

    return change


def rows(n: int, *, each: bool = False) -> Change:
    """So many rows instead of one, of one part or of many."""

    def change(frame: pb.Frame) -> None:
        width, data, token = frame.tensor.shape[1], frame.tensor.data, frame.tokens[0]
        shape(n, width)(frame)
        frame.tensor.data = data * n
        frame.tokens.extend([token] * (n - 1))
        if each:
            frame.parts.extend([pb.Part(request=100 + at, epoch=1, n=1) for at in range(n - 1)])
        else:
            frame.parts[0].n = n

    return change


def dtype(number: int, item_bytes: int = 4) -> Change:
    def change(frame: pb.Frame) -> None:
        frame.tensor.dtype = number  # type: ignore[assignment]
        frame.tensor.data = bytes(frame.tensor.shape[1] * item_bytes)

    return change


def twice(frame: pb.Frame) -> None:
    rows(2)(frame)
    frame.parts[0].n = 1
    frame.parts.append(frame.parts[0])


WIDTH = HIDDEN


def zeros(n: int) -> TensorData:
    return TensorData("float32", (n, WIDTH), bytes(4 * n * WIDTH))


F16, BF16 = int(pb.DTYPE_FLOAT16), int(pb.DTYPE_BFLOAT16)
ILLEGAL: list[tuple[str, Change, str]] = [
    ("an old epoch", part(epoch=0), "epoch 0 of request 1, not 1"),
    ("an epoch that is not open", part(epoch=2), "epoch 2 of request 1, not 1"),
    ("an unknown request", part(request=2**64 - 1), "is not open here"),
    ("a gap", part(position=20), "comes next"),
    ("long done", part(position=0), "is done"),
    ("the largest position", part(position=2**31 - 1), "comes next"),
    ("a position beyond all", part(position=2**31), "1 tokens from position 2147483648"),
    ("minus one", part(position=2**32 - 1), "1 tokens from position 4294967295"),
    ("beyond the request's end", rows(MORE + 2), "has room up to position"),
    ("zero tokens", part(n=0), "0 tokens from position"),
    ("zero tokens and no ids", both(part(n=0), without("tokens")), "0 tokens"),
    ("fewer ids than n", part(n=2), "1 token ids for 2 rows"),
    ("more ids than n", lambda frame: frame.tokens.append(1), "2 token ids for 1 rows"),
    ("no ids", without("tokens"), "0 token ids for 1 rows"),
    ("n beyond all", part(n=2**32 - 1), "4294967295 tokens from position"),
    ("an id just out of the vocabulary", lambda f: f.tokens.__setitem__(0, VOCABULARY), "vocabulary of 96"),
    ("an id that no model has", lambda f: f.tokens.__setitem__(0, 2**32 - 1), "a token id out of range"),
    ("a request twice", twice, "two parts of one request"),
    ("a neighbour that is not open", rows(2, each=True), "is not open here"),
    ("too many parts", lambda f: f.parts.extend([pb.Part(n=1)] * 4096), "4097 parts"),
    ("no tensor", without("tensor"), "without a payload"),
    ("half precision", dtype(F16, 2), "float16 at a cut that sends"),
    ("bfloat16", dtype(BF16, 2), "bfloat16 at a cut that sends"),
    ("no dtype", dtype(0), "unknown dtype 0"),
    ("a dtype of tomorrow", dtype(99), "unknown dtype 99"),
    ("rank 0", shape(), "rank 0"),
    ("rank 1", shape(1, size=4), "at a cut that is 64 wide"),
    ("rank 3", shape(1, 1, WIDTH), "at a cut that is 64 wide"),
    ("rank 4", shape(1, 1, 1, WIDTH), "at a cut that is 64 wide"),
    ("rank 5", shape(1, 1, 1, 1, WIDTH), "rank 5"),
    ("too wide", shape(1, WIDTH + 1, size=4 * (WIDTH + 1)), "at a cut that is 64 wide"),
    ("too narrow", shape(1, 1, size=4), "at a cut that is 64 wide"),
    ("rows that are not the parts'", shape(2, WIDTH // 2), "2 rows in a frame of 1"),
    ("a dimension of zero", shape(1, 0, size=0), "a dimension of 0"),
    ("claims more than it holds", shape(1, WIDTH + 1), "260"),
    ("claims less than it holds", shape(1, WIDTH - 1), "252"),
    ("claims terabytes", shape(1, 2**24, 2**18), "more than 268435456 bytes"),
    ("claims terabytes, empty", shape(1, 2**24, 2**18, size=0), "more than 268435456 bytes"),
    ("claims more than can be counted", shape(1, *[2**24] * 3), "more than 268435456 bytes"),
    ("a dimension beyond all", shape(1, 2**32 - 1), "a dimension of 4294967295"),
    ("a late piece", fields(piece=3), "piece 3 of a frame that was not begun"),
    ("crumbs", fields(pieces=64), "64 pieces"),
    ("pieces of nothing", both(fields(pieces=2), without("tensor")), "without a tensor"),
    ("countless pieces", fields(pieces=2**32 - 1), "4294967295 pieces"),
]


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in ILLEGAL], ids=[row[0] for row in ILLEGAL])
def test_an_illegal_frame_is_refused_and_nothing_is_changed(stand: Stand, change: Change, words: str) -> None:
    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        (message,) = encode(legal)
        change(message)
        named = [(each.request, each.epoch) for each in message.parts]
        await beside.down.send(pb.Down(frame=message))
        for request, epoch in named[:1]:
            refused = await beside.down.next("refused")
            assert (refused.request, refused.epoch, refused.node) == (request, epoch, "a")
            assert words in refused.message, refused.message
            assert refused.code in ("frame-refused", "step-refused", "bad-data")
        for _ in named[1:4096]:
            await beside.down.next("refused")
        beside.again(legal)

    stand.played(work)


def test_all_of_them_compute_nothing_and_hold_nothing(stand: Stand) -> None:
    """By the stage's own figures: one request, its reservation, and as many steps as were legal."""

    async def work(beside: Neighbour) -> None:
        before = await stand.stats()
        held = stand.rss_bytes()
        legal = beside.frame()
        for _ in range(3):
            for _, change, _ in ILLEGAL:
                (message,) = encode(legal)
                change(message)
                await beside.down.send(pb.Down(frame=message))
                for _ in message.parts[:4096]:
                    await beside.down.next("refused")
        after = await stand.stats()
        assert (after.requests, after.kv_used_bytes, after.steps) == (1, before.kv_used_bytes, before.steps)
        assert before.kv_used_bytes > 0
        assert stand.rss_bytes() - held < RSS_BYTES
        beside.again(legal)

    stand.played(work)


def test_a_repeat_gets_the_kept_answer_and_computes_nothing(stand: Stand) -> None:
    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        await beside.send(legal)
        first = await beside.answer()
        before = await stand.stats()
        for _ in range(5):
            await beside.send(legal)
            assert await beside.answer() == first
        assert (await stand.stats()).steps == before.steps
        beside.take(first)

    stand.played(work)


def test_a_frame_of_two_requests_that_cannot_be_one_step_is_refused(stand: Stand) -> None:
    """One of them anew and the other again; or a chunk beside another row."""

    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        assert legal.tensor is not None
        await beside.down.send(pb.Down(open=beside.opening(2, [1, 2], MORE)))
        await beside.down.next("opened")
        await beside.send(FrameData(9, (Part(2, 1, 0, 1),), (1,), zeros(1)))
        assert not (await beside.answer()).rows
        both = TensorData("float32", (2, WIDTH), bytes(legal.tensor.data) + zeros(1).data)
        mixed = FrameData(9, (*legal.parts, Part(2, 1, 0, 1)), (*legal.tokens, 1), both)
        await beside.send(mixed)
        for _ in mixed.parts:
            assert "repeats some of its rows" in (await beside.down.next("refused")).message
        three = TensorData("float32", (3, WIDTH), bytes(legal.tensor.data) + zeros(2).data)
        await beside.send(FrameData(9, (*legal.parts, Part(2, 1, 1, 2)), (*legal.tokens, 2, 3), three))
        for _ in mixed.parts:
            assert "2 tokens at once in a frame of 2 parts" in (await beside.down.next("refused")).message
        await beside.down.send(pb.Down(cancel=pb.Cancel(request=2, epoch=1)))
        beside.again(legal)

    stand.played(work)


def test_a_chunk_longer_than_any_is_refused_before_anything_is_allocated(stand: Stand) -> None:
    async def work(beside: Neighbour) -> None:
        n = 60_000
        legal = beside.frame()
        await beside.down.send(pb.Down(open=beside.opening(2, PROMPT, n)))
        await beside.down.next("opened")
        held = stand.rss_bytes()
        long = FrameData(9, (Part(2, 1, 0, n),), (1,) * n, zeros(n))
        assert len(encode(long)) > 1
        await beside.send(long)
        refused = await beside.down.next("refused")
        assert "60000 tokens at once" in refused.message
        # The frame itself is 15 MB and has arrived: as pieces, as messages and whole. Its attention
        # alone would be 14 GB a head.
        assert stand.rss_bytes() - held < RSS_BYTES + 6 * 4 * WIDTH * n
        just = FrameData(9, (Part(2, 1, 0, MAX_CHUNK + 1),), (1,) * (MAX_CHUNK + 1), zeros(MAX_CHUNK + 1))
        await beside.send(just)
        assert "2049 tokens at once" in (await beside.down.next("refused")).message
        await beside.down.send(pb.Down(cancel=pb.Cancel(request=2, epoch=1)))
        beside.again(legal)

    stand.played(work)


def test_mutated_frames_are_refused_or_ignored(stand: Stand) -> None:
    """What is not even a message ends the stranger's stream; the rest goes down ours."""
    dice = random.Random(4)

    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        (whole,) = encode(legal)
        data = whole.SerializeToString()
        sent = {"refused": 0, "no request named": 0, "no message": 0}
        while sum(sent.values()) < 200:
            bad = mutated(data, dice)
            try:
                message = pb.Frame.FromString(bad)
            except DecodeError:
                if sent["no message"] < 20:
                    await raw(stand, bad)
                    assert "no message" in await raw_beside(stand, bad)
                    sent["no message"] += 1
                continue
            if may_run(message, legal) or not message.parts:
                continue
            await beside.down.send(pb.Down(frame=message))
            # Whatever was begun is refused with this one, which is never legal.
            await beside.down.send(pb.Down(frame=pb.Frame(parts=[pb.Part(request=424242, n=1)], tokens=[1])))
            answers = 0
            while (await beside.down.next("refused")).request != 424242:
                answers += 1
            sent["refused" if answers else "no request named"] += 1
        assert sent["refused"] > 100, sent
        beside.again(legal)

    stand.played(work)


def may_run(message: pb.Frame, legal: FrameData) -> bool:
    """Whether it is a legal frame but for its numbers, or begins one."""
    try:
        found = FrameReader().feed(message)
    except FrameRefused:
        return False
    if found is None or found.tensor is None or legal.tensor is None:
        return found is None
    (own,) = legal.parts
    # The step before is legal as well: its answer is given again.
    again = replace(own, position=own.position - 1)
    same = (found.tensor.dtype, found.tensor.shape) == (legal.tensor.dtype, legal.tensor.shape)
    return found.parts in ((own,), (again,)) and same and max(found.tokens) < VOCABULARY


async def raw(stand: Stand, data: bytes) -> grpc.StatusCode:
    """Bytes instead of a message, on a driver's flow of its own; how the stage ends it."""
    stage = stand.driven.stages[1]
    async with stream(stand.source, stage.data_port, stage.stage_id) as stranger:
        with suppress(grpc.aio.AioRpcError):  # how it ended is told to who reads
            await stranger.send(data)
        return (await stranger.end()).code()


async def raw_beside(stand: Stand, data: bytes) -> str:
    """The same on a connection of the stage before; what the stage says of it."""
    stage = stand.driven.stages[1]
    async with beside_(stand.source, stage.frame_port, stage.stage_id, pb.FlowStart.PREVIOUS) as stranger:
        await stranger.send(data)
        return await stranger.end()


# -- streams and openings -----------------------------------------------------------------------------


def test_what_is_too_large_or_no_message_ends_only_its_own_stream(stand: Stand) -> None:
    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        tensor = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1, 3_000_000], data=bytes(12_000_000))
        large = pb.Down(frame=pb.Frame(parts=[pb.Part(request=1, n=1)], tokens=[1], tensor=tensor))
        held = 0
        for turn in range(6):
            if turn == 1:  # the allocator keeps what the first of them took, once
                held = stand.rss_bytes()
            assert await raw(stand, large.SerializeToString()) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await raw_beside(stand, large.SerializeToString())
        assert await raw(stand, b"\x1a\xff\xff\xff\xff\x0f") is grpc.StatusCode.UNKNOWN
        assert "no message" in await raw_beside(stand, b"\x1a\xff\xff\xff\xff\x0f")
        # One of ten may linger in an allocator, which one is chance; none of them is kept.
        assert stand.rss_bytes() - held < RSS_BYTES + len(tensor.data)
        beside.again(legal)

    stand.played(work)


def strange(stage_id: str) -> list[tuple[pb.Down, str]]:
    """What does not belong on a driver's flow to a later stage, and what is said of it."""
    frame = pb.Frame(parts=[pb.Part(request=1, epoch=1, position=7, n=1)], tokens=[1])
    tokens = pb.Tokens(rows=[pb.TokenOut(request=1, epoch=1, position=8, id=1)])
    cancel = pb.Cancel(request=1, epoch=9)
    route = [pb.Hop(endpoint="127.0.0.1:1", stage_id=stage_id)]
    opening = pb.Open(request=1, epoch=9, prompt=[1], max_tokens=1, route=route)
    return [
        (pb.Down(frame=frame), "frame does not belong"),
        (pb.Down(tokens=tokens), "tokens does not belong"),
        (pb.Down(cancel=cancel), "cancel does not belong"),
        (pb.Down(open=opening), "open does not belong"),
        (pb.Down(start=pb.FlowStart()), "start does not belong"),
        (pb.Down(), "None does not belong"),
    ]


def test_a_strangers_flow_cannot_touch_another_drivers_request(stand: Stand) -> None:
    """A later stage listens to the stage before it and to nobody else."""
    stage = stand.driven.stages[1]

    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        for message, words in strange(stage.stage_id):
            async with stream(
                stand.source, stage.data_port, stage.stage_id, driver=b"somebody else 16"
            ) as stranger:
                await stranger.send(message)
                status = await stranger.end()
                assert status.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert words in (status.details() or "")
        beside.again(legal)

    stand.played(work)


STARTS: list[tuple[str, int, dict[str, Any], grpc.StatusCode, str]] = [
    ("a stage, where drivers come in", 1, {"role": 2}, grpc.StatusCode.INVALID_ARGUMENT, "role 2"),
    ("no role", 1, {"role": 0}, grpc.StatusCode.INVALID_ARGUMENT, "role 0"),
    ("a role of tomorrow", 0, {"role": 77}, grpc.StatusCode.INVALID_ARGUMENT, "role 77"),
    ("another stage", 1, {"stage_id": "x"}, grpc.StatusCode.NOT_FOUND, "stage x is not loaded"),
    ("another protocol", 0, {"hello": pb.Hello(protocol=9)}, grpc.StatusCode.FAILED_PRECONDITION, "9"),
    ("no greeting", 0, {}, grpc.StatusCode.INVALID_ARGUMENT, "begins with FlowStart"),
]


@pytest.mark.parametrize("row", STARTS, ids=[row[0] for row in STARTS])
def test_a_flow_that_begins_wrongly_is_ended_with_a_reason(stand: Stand, row: Any) -> None:
    _, which, changes, code, words = row
    stage = stand.driven.stages[which]
    settings = {"hello": hello(), "stage_id": stage.stage_id, "role": 1, **changes}
    said = pb.Down(start=pb.FlowStart(**settings)) if changes else pb.Down(frame=pb.Frame())

    async def work(beside: Neighbour) -> None:
        async with nodes_of_test.channel(stand.source, stage.data_port) as channel:
            call = stage_stub(channel).Flow()
            await call.write(said)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is code
            assert words in (caught.value.details() or "")

    stand.played(work)


BESIDE: list[tuple[str, int, dict[str, Any], str]] = [
    ("a first stage's neighbour", 0, {"role": 2}, "the first stage"),
    ("tokens for a later stage", 1, {"role": 3}, "not the first"),
    ("a driver, where stages come in", 1, {"role": 1}, "role 1"),
    ("no role", 1, {"role": 0}, "role 0"),
    ("another stage", 1, {"stage_id": "x"}, "stage x is not loaded"),
    ("another protocol", 0, {"hello": pb.Hello(protocol=9)}, "9"),
    ("no greeting", 0, {}, "begins with FlowStart"),
]


@pytest.mark.parametrize("row", BESIDE, ids=[row[0] for row in BESIDE])
def test_a_stage_that_comes_in_wrongly_is_told_why(stand: Stand, row: Any) -> None:
    _, which, changes, words = row
    stage = stand.driven.stages[which]
    settings = {"hello": hello(), "stage_id": stage.stage_id, "role": 2, **changes}
    said = pb.Down(start=pb.FlowStart(**settings)) if changes else pb.Down(frame=pb.Frame())

    async def work(beside: Neighbour) -> None:
        stranger = PipeStream(await knock(stand.source, stage.frame_port))
        await stranger.send(said)
        assert words in await stranger.end()
        await stranger.close()

    stand.played(work)


OPENINGS: list[tuple[str, dict[str, Any], str]] = [
    ("again, with another prompt", {"request": 1, "prompt": [1, 2]}, "is open already"),
    ("in an older epoch", {"request": 1, "epoch": 0}, "is open already"),
    ("no prompt", {"prompt": []}, "needs a prompt"),
    ("no tokens", {"n": 0}, "needs a prompt and room"),
    ("all tokens there are", {"n": 2**32 - 1}, "bytes of KV cache"),
    ("a prompt of a million", {"prompt": [1] * 1_000_000}, "bytes of KV cache"),
    ("a prompt of millions", {"prompt": [1] * 5_000_000}, "at most 4194304 tokens"),
    ("a grammar", {"sampler": pb.Sampler(grammar="root ::= 1")}, "does not constrain"),
    ("a bias for everything", {"sampler": pb.Sampler(logit_bias=dict.fromkeys(range(5000), 1.0))}, "4096"),
    ("words that the model has not", {"prompt": [VOCABULARY]}, "vocabulary of 96"),
    ("a hop that is not", {"hop": 9}, "does not lead through"),
    ("as the first stage", {"hop": 0}, "does not lead through"),
    ("a chain without a route", {"route": []}, "works in another chain"),
    ("another chain meanwhile", {"route": [pb.Hop(stage_id="x"), pb.Hop(stage_id="y")]}, "another chain"),
]


@pytest.mark.parametrize(
    ("changes", "words"), [row[1:] for row in OPENINGS], ids=[row[0] for row in OPENINGS]
)
def test_an_opening_that_cannot_be_is_refused_and_disturbs_nobody(
    stand: Stand, changes: dict[str, Any], words: str
) -> None:
    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        settings = {"request": 2, "prompt": PROMPT, "n": MORE, **changes}
        message = beside.opening(**settings)
        await beside.down.send(pb.Down(open=message))
        refused = await beside.down.next("refused")
        assert (refused.request, refused.epoch) == (message.request, message.epoch)
        assert words in refused.message, refused.message
        # And no frame of it is taken: it is not open.
        if message.request != 1:
            other = FrameData(1, (Part(2, message.epoch, 0, 1),), (1,), zeros(1))
            await beside.send(other)
            assert "is not open here" in (await beside.down.next("refused")).message
        beside.again(legal)

    stand.played(work)


WILD = [
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": -1.0},
    {"temperature": 1e-30},
    {"temperature": 1.0, "top_p": float("nan")},
    {"temperature": 1.0, "top_p": -3.0, "min_p": 9.0, "top_k": 2**32 - 1},
    {"repetition_penalty": float("nan"), "presence_penalty": float("inf"), "frequency_penalty": -1e38},
    {"repetition_penalty": -5.0, "penalty_window": 2**32 - 1},
    {"logit_bias": {2**32 - 1: 1e38, 3: float("nan"), 4: float("-inf")}},
    {"logprobs": 2**32 - 1, "seed": 2**64 - 1},
]


def test_wild_sampling_gives_a_token_of_the_model_or_a_refusal(stand: Stand) -> None:
    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        for number, wild in enumerate(WILD, start=2):
            sampler = pb.Sampler(**wild)  # type: ignore[arg-type]
            await beside.down.send(pb.Down(open=beside.opening(number, [1], MORE, sampler=sampler)))
            came = await beside.down.either("opened", "refused")
            if came == "opened":
                await beside.send(FrameData(number, (Part(number, 1, 0, 1),), (1,), zeros(1)))
                (row,) = (await beside.answer()).rows
                assert (row.request, row.position) == (number, 1)
                assert 0 <= row.id < VOCABULARY, (wild, row)
                assert len(row.top_ids) <= VOCABULARY
            await beside.down.send(pb.Down(cancel=pb.Cancel(request=number, epoch=1)))
        beside.again(legal)

    stand.played(work)


def test_a_frame_before_its_opening_and_a_newer_epoch_without_room(stand: Stand) -> None:
    """Whoever raises the epoch has given up the older one, also where the newer one is refused."""

    async def work(beside: Neighbour) -> None:
        legal = beside.frame()
        early = FrameData(1, (Part(7, 1, 0, 1),), (1,), zeros(1))
        await beside.send(early)
        assert "is not open here" in (await beside.down.next("refused")).message
        await beside.down.send(pb.Down(open=beside.opening(7, PROMPT, MORE)))
        await beside.down.next("opened")
        await beside.down.send(pb.Down(open=beside.opening(7, PROMPT, 2**32 - 1, epoch=2)))
        assert "bytes of KV cache" in (await beside.down.next("refused")).message
        await beside.send(early)
        assert "is not open here" in (await beside.down.next("refused")).message
        beside.again(legal)

    stand.played(work)


# -- the first stage ----------------------------------------------------------------------------------

LIES: list[tuple[str, dict[str, int], str | None]] = [
    ("a token out of the vocabulary", {"id": VOCABULARY}, "vocabulary of 96"),
    ("a token that no model has", {"id": 2**32 - 1}, "vocabulary of 96"),
    ("a token of an older epoch", {"epoch": 0}, None),
    ("a token far ahead", {"position": 2**31}, None),
    ("a token of another request", {"request": 5}, None),
]


@pytest.mark.parametrize(("changes", "words"), [row[1:] for row in LIES], ids=[row[0] for row in LIES])
def test_a_last_stage_that_lies_does_not_end_the_first(
    stand: Stand, changes: dict[str, int], words: str | None
) -> None:
    stage = stand.driven.stages[0]

    async def main() -> None:
        async with follower(stand.source, stage) as behind:
            await behind.open(1, PROMPT, MORE)
            step, parts = await behind.next_parts()
            assert parts == [(1, 1, 0, len(PROMPT))]
            true = {"request": 1, "epoch": 1, "position": len(PROMPT), "id": 3}
            await behind.bring(step, **{**true, **changes})
            if words is None:
                # Nobody waits for it; the true one is taken.
                await behind.bring(step, **true)
                assert (await behind.next_parts())[1] == [(1, 1, len(PROMPT), 1)]
            else:
                refused = await behind.driver.next("refused")
                assert (refused.request, refused.epoch) == (1, 1)
                assert words in refused.message
        await cluster.settled(stand.source, [stand.node], cluster.is_idle, seconds=3)
        assert await stand.driven.tokens(PROMPT, 3) == stand.wanted[:3]

    stand.runner.run(main())


def test_a_stage_of_an_earlier_chain_may_go_while_a_later_one_works(stand: Stand) -> None:
    stage = stand.driven.stages[0]

    async def main() -> None:
        async with AsyncExitStack() as earlier:
            behind = await earlier.enter_async_context(follower(stand.source, stage))
            await behind.open(1, PROMPT, MORE)
            await behind.driver.send(pb.Down(cancel=pb.Cancel(request=1, epoch=1)))
            await cluster.settled(stand.source, [stand.node], cluster.is_idle, seconds=3)
            async with aclosing(stand.driven.generation(PROMPT, 5000).tokens()) as tokens:
                found = [(await anext(tokens)).id for _ in range(MORE)]
                await earlier.aclose()
                # What its end set off has been done by then.
                until_s = asyncio.get_running_loop().time() + 0.5
                while asyncio.get_running_loop().time() < until_s:
                    await anext(tokens)
            assert found == stand.wanted

    stand.runner.run(asyncio.wait_for(main(), 60))
