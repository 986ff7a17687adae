"""A node for the rotation test: serves, and calls its neighbour without a pause.

`python -m tests.support.peer`: prints its port, reads the neighbour's, opens one stream that stays
open, and from then on dials, calls and hangs up in a loop. Each line on standard input is answered by
what happened so far; the end of input stops it.
"""

import asyncio
import json
import sys
from typing import Any

from exo_cli.errors import ExoError
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire.channels import SERVER_OPTIONS, dial
from tests.support.loopback import echo, serving, stream, with_option

BOUND_S = 10.0


class Traffic:
    """Calls to one neighbour, counted."""

    def __init__(self, source: KeyringSource, port: int) -> None:
        self.source = source
        self.port = port
        self.calls = 0
        self.ticks = 0
        self.failures: list[str] = []
        self.hushed = False

    async def new_calls(self) -> None:
        while not self.hushed:
            try:
                channel = await dial("127.0.0.1", self.port, self.source.current(), timeout_s=BOUND_S)
                try:
                    await echo(channel, timeout_s=BOUND_S)
                finally:
                    await channel.close()
                self.calls += 1
            except ExoError as error:
                self.failures.append(error.message)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is what the test looks for
                self.failures.append(repr(error))

    async def one_stream(self, call: Any) -> None:
        try:
            while not self.hushed:
                async with asyncio.timeout(BOUND_S):
                    await call.write(b"tick")
                    if await call.read() != b"tick":
                        raise ConnectionError("the stream ended")
                self.ticks += 1
            await call.done_writing()
            await call.code()
        except Exception as error:  # noqa: BLE001
            self.failures.append(f"stream: {error!r}")

    def report(self) -> str:
        said = {"calls": self.calls, "ticks": self.ticks, "failures": self.failures[:5]}
        return json.dumps({**said, "fingerprints": self.source.current().fingerprints})


async def main() -> None:
    source = KeyringSource()
    # Connections that age fast: the stream must outlive what is done to the connection under it.
    options = with_option(SERVER_OPTIONS, "grpc.max_connection_age_ms", 200)
    async with serving(source, options=options) as port:
        print(port, flush=True)
        neighbour = int(await asyncio.to_thread(sys.stdin.readline))
        traffic = Traffic(source, neighbour)
        held = await dial("127.0.0.1", neighbour, source.current(), timeout_s=BOUND_S)
        tasks = [
            asyncio.create_task(traffic.one_stream(stream(held))),
            asyncio.create_task(traffic.new_calls()),
        ]
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line == "hush\n":
                traffic.hushed = True
                await asyncio.gather(*tasks)
                await held.close()
            print(traffic.report(), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
