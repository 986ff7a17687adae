"""Small model directories written by hand, and a peer that serves them as it likes."""

import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from exo_cli.fetch.serve_weights import Shelf, WeightsServicer
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import SERVER_OPTIONS, dial, server_credentials
from exo_cli.wire.stubs import add_control

CONFIG = {"model_type": "llama", "num_hidden_layers": 4, "tie_word_embeddings": False}


def tensor_names(layers: int) -> list[str]:
    inner = [f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in ("attn", "mlp")]
    return ["model.embed_tokens.weight", *inner, "model.norm.weight", "lm_head.weight"]


def write_safetensors(path: Path, sizes: Mapping[str, int], seed: int = 0) -> None:
    """Tensors of bytes, in this order, filled from the seed."""
    header: dict[str, Any] = {}
    at = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    body = random.Random(f"{seed}{path.name}").randbytes(at)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def write_model(
    path: Path,
    *,
    layers: int = 4,
    tensor_bytes: int = 5000,
    files: int = 2,
    seed: int = 0,
    config: Mapping[str, Any] = CONFIG,
    names: Iterable[str] | None = None,
) -> Path:
    """A directory that looks like any other, tokenizer files included."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps({"seed": seed}))
    (path / "generation_config.json").write_text("{}")
    (path / "run_me.py").write_text("raise SystemExit('never')")
    all_names = list(names if names is not None else tensor_names(layers))
    share = -(-len(all_names) // files)
    index: dict[str, str] = {}
    for number in range(files):
        mine = all_names[number * share : (number + 1) * share]
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        write_safetensors(path / file, dict.fromkeys(mine, tensor_bytes), seed)
        index |= dict.fromkeys(mine, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


class Peer(WeightsServicer):
    """The real service; `listing` and `piece` may twist what it says, `asked` is what it was asked for."""

    def __init__(
        self,
        shelf: Shelf,
        listing: Callable[[pb.HaveReply], object] = lambda reply: None,
        piece: Callable[[pb.WeightsRequest, pb.WeightsPiece], bool] = lambda request, piece: True,
    ) -> None:
        self.shelf = shelf
        self._listing = listing
        self._piece = piece
        self.asked: list[tuple[str, int, int]] = []

    async def Have(self, request: pb.HaveRequest, context: Any) -> pb.HaveReply:
        reply = await super().Have(request, context)
        self._listing(reply)
        return reply

    async def Weights(self, request: pb.WeightsRequest, context: Any) -> None:
        """Each message goes by `piece`, which returns False to end the stream there."""
        self.asked.append((request.path, request.offset, request.offset + request.size))
        with suppress(_EndedError):
            await super().Weights(request, _Twisted(context, lambda message: self._piece(request, message)))


class _EndedError(Exception):
    pass


class _Twisted:
    """A call's context that lets somebody look at what is written."""

    def __init__(self, context: Any, look: Callable[[pb.WeightsPiece], bool]) -> None:
        self._context = context
        self._look = look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: pb.WeightsPiece) -> None:
        if not self._look(message):
            raise _EndedError
        await self._context.write(message)


@asynccontextmanager
async def serving(service: WeightsServicer, source: KeyringSource) -> AsyncIterator[int]:
    """The service on loopback; gives the port."""
    server = grpc.aio.server(options=list(SERVER_OPTIONS))
    add_control(service, server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(source))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def connected(service: WeightsServicer) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the service, over mutual TLS under this test's own key."""
    source = KeyringSource()
    async with serving(service, source) as port:
        channel = await dial("127.0.0.1", port, source.current(), timeout_s=10)
        async with channel:
            yield channel
