"""A process that pulls a whole model from a port of loopback; its parent kills it now and then.

    python -m tests.support.puller PORT DIGEST STORE

Prints a line for every piece that is kept, and `done`.
"""

import asyncio
import sys
from pathlib import Path

from exo_cli.fetch.pull import pull_stage
from exo_cli.models.directory import ModelDirectory
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.channels import dial


def whole(directory: ModelDirectory) -> list[tuple[str, int, int]]:
    return [(header.file, 0, header.size) for header in directory.files]


def said(done: int, total: int) -> None:
    print(done, total, flush=True)


async def main() -> None:
    port, digest, store = sys.argv[1:]
    channel = await dial("127.0.0.1", int(port), KeyringSource().current(), timeout_s=10)
    async with channel:
        await pull_stage(channel, pb.ModelRef(digest=digest), whole, Path(store), who="parent", progress=said)
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
