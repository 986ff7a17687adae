"""How stages come together: a stage goes to the next one, and lets in the one before.

Both greet each other before the connection is given to the engine's thread. Lives on the event loop's
thread. Knows nothing of requests, nor of what is said after the greeting.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from exo_cli.cluster.pairs import UNIX, is_unix, split_endpoint
from exo_cli.errors import BadData, ExoError
from exo_cli.shard import translate
from exo_cli.shard.ring import Address
from exo_cli.trust.authority import Leaf
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import check_hello
from exo_cli.wire.pipe import Pipe, PipeEnded, secured, tuned
from exo_cli.wire.tls import client_context, server_context

GREETING_S: Final = 10.0
STRANGERS: Final = 32
"""Connections that may be on their way through the greeting; with one more the oldest is closed."""


async def go_to(to: Address, role: int, us: pb.Hello, leaf: Leaf, way: bytes = b"") -> Pipe:
    """A greeted connection to another stage; raises Unavailable or what it refuses us with."""
    endpoint, stage_id = to
    pipe: Pipe | None = None
    try:
        async with asyncio.timeout(GREETING_S):
            sock = await _connected(endpoint)
            try:
                pipe = await secured(sock, client_context(leaf), name=leaf.name)
            except BaseException:
                sock.close()
                raise
            start = pb.FlowStart(hello=us, stage_id=stage_id, role=pb.FlowStart.Role.Name(role), way=way)
            pipe.send(pb.Down(start=start).SerializeToString())
            _welcomed(pb.Up.FromString(await pipe.next()))
            return pipe
    except asyncio.CancelledError:
        if pipe is not None:
            pipe.close()
        raise
    except TimeoutError:
        problem: ExoError = PipeEnded(f"it did not greet within {GREETING_S:g} s")
    except OSError as error:
        problem = PipeEnded(f"cannot connect: {error.strerror or error}")
    except DecodeError:
        problem = BadData("it greeted with what is no message")
    except ExoError as error:
        problem = error
    if pipe is not None:
        pipe.close()
    raise problem


def _welcomed(answer: pb.Up) -> None:
    kind = answer.WhichOneof("kind")
    if kind == "refused":
        raise BadData(answer.refused.message)
    if kind != "ready":
        raise BadData("it began its stream with something else than a greeting")
    check_hello(answer.ready.hello, "the next stage")


async def _connected(endpoint: str) -> socket.socket:
    host, port = split_endpoint(endpoint)
    where: tuple[str, int] | str = (host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if is_unix(host):
        where, family = f"{host.removeprefix(UNIX)}:{port}", socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        await asyncio.get_running_loop().sock_connect(tuned(sock), where)
    except BaseException:
        sock.close()
        raise
    return sock


class Door:
    """Where other stages come in."""

    def __init__(
        self,
        leaves: Sequence[Leaf],
        node_name: str,
        greet: Callable[[pb.FlowStart], pb.FlowReady],
        admit: Callable[[Pipe, pb.FlowStart], None],
    ) -> None:
        self._context = server_context(leaves)
        self._node_name = node_name
        self._greet = greet
        self._admit = admit
        self._listening: list[socket.socket] = []
        self._strangers: dict[asyncio.Task[bool], None] = {}
        """Whose greeting is under way, the oldest first."""
        self._later: asyncio.TimerHandle | None = None

    def listen(self, hosts: Sequence[str], port: int) -> None:
        """On all of these; raises OSError and listens on none."""
        opened: list[socket.socket] = []
        try:
            for host in hosts:
                opened.append(_listening(host, port))
        except OSError:
            for each in opened:
                each.close()
            raise
        self._listening = opened
        self._open()

    def _open(self) -> None:
        for each in self._listening:
            asyncio.get_running_loop().add_reader(each.fileno(), self._accept, each)

    async def close(self) -> None:
        if self._later is not None:
            self._later.cancel()
        listening, self._listening = self._listening, []
        for each in listening:
            asyncio.get_running_loop().remove_reader(each.fileno())
            if each.family == socket.AF_UNIX:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(each.getsockname())
            each.close()
        greeting = list(self._strangers)
        for task in greeting:
            task.cancel()
        await asyncio.gather(*greeting, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except BlockingIOError:
            return  # it went away again
        except OSError:
            # Out of descriptors, most likely: what runs goes on, and the next one may be let in.
            loop = asyncio.get_running_loop()
            for each in self._listening:
                loop.remove_reader(each.fileno())
            self._later = loop.call_later(1, self._open)
            return
        if len(self._strangers) >= STRANGERS:
            # Not the new one: who only sits there would keep us out for as long as it likes.
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._let_in(sock))
        self._strangers[task] = None

        def done(task: "asyncio.Task[bool]") -> None:
            self._strangers.pop(task, None)
            # Here, for a task that is cancelled early never begins.
            if task.cancelled() or not task.result():
                sock.close()

        task.add_done_callback(done)

    async def _let_in(self, sock: socket.socket) -> bool:
        pipe: Pipe | None = None
        try:
            async with asyncio.timeout(GREETING_S):
                pipe = await secured(tuned(sock), self._context)
                said = pb.Down.FromString(await pipe.next())
                if said.WhichOneof("kind") != "start":
                    raise BadData("a flow begins with FlowStart")
                ready = self._greet(said.start)
            pipe.send(pb.Up(ready=ready).SerializeToString())
            self._admit(pipe, said.start)
            return True
        except ExoError as error:
            if pipe is not None:
                refused = translate.refused(0, 0, error, self._node_name)
                pipe.send(pb.Up(refused=refused).SerializeToString())
        except (TimeoutError, OSError, DecodeError):
            pass  # a stranger, or one of us that went away
        return False


def _listening(host: str, port: int) -> socket.socket:
    if is_unix(host):
        path = f"{host.removeprefix(UNIX)}:{port}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(path)
            sock.listen()
        except BaseException:
            sock.close()
            raise
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        sock = socket.create_server((host, port), family=family, dualstack_ipv6=both)
    sock.setblocking(False)
    return sock
