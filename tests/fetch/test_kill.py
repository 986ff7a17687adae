import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from exo_cli.fetch.partial import Partial
from exo_cli.fetch.pieces import missing
from exo_cli.fetch.stores import Stores
from exo_cli.trust.keyring import KeyringSource
from tests.support.weights import Peer, serving, write_model

KILLS = 5


@pytest.mark.process
def test_killed_and_taken_up_again(tmp_path: Path) -> None:
    """Kill -9 at any moment: the map stays right, and what it says is not asked for again."""
    theirs = Stores(tmp_path / "theirs", hub=tmp_path / "hub")
    model = write_model(tmp_path / "model", tensor_bytes=6_000_000)
    directory = theirs.open(model)
    ours = tmp_path / "ours"
    chance = random.Random(3)
    files = {header.file: (model / header.file).read_bytes() for header in directory.files}
    headers = {header.file: header.data_start for header in directory.files}
    spans: dict[str, list[tuple[int, int]]] = {}

    def there() -> dict[str, list[tuple[int, int]]]:
        """The map, checked against the bytes of the files."""
        store = Partial.read(ours / directory.digest)
        if store is None:
            return {}
        for file in store.map.files:
            if file.path in files and file.ranges:
                data = (store.path / file.path).read_bytes()
                for low, high in file.ranges:
                    assert data[low:high] == files[file.path][low:high]
        return {file.path: list(file.ranges) for file in store.map.files}

    async def attempt(port: int, kill_after: int | None) -> bool:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.support.puller", str(port), directory.digest, str(ours)),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert process.stdout is not None
        lines = 0
        last = b""
        while line := await process.stdout.readline():
            lines, last = lines + 1, line
            if lines == kill_after:
                await asyncio.sleep(chance.random() * 0.02)
                process.kill()
        code = await process.wait()
        assert code in (0, -9)
        return last == b"done\n"

    async def main() -> None:
        nonlocal spans
        peer = Peer(theirs)
        async with serving(peer, KeyringSource()) as port:
            killed = 0
            for _ in range(KILLS):
                peer.asked.clear()
                if await attempt(port, chance.randrange(1, 4)):
                    break
                killed += 1
                _nothing_twice(peer, spans)
                spans = there()
            assert killed > 1
            peer.asked.clear()
            assert await attempt(port, None)
            _nothing_twice(peer, spans)

    def _nothing_twice(peer: Peer, before: dict[str, list[tuple[int, int]]]) -> None:
        for name, start, end in peer.asked:
            # Headers are compared each time.
            if name in files and end > headers[name]:
                assert missing(before.get(name, []), start, end) == [(start, end)]

    asyncio.run(main())
    there()
    assert theirs.find(directory.digest) == model
    assert Stores(ours, hub=tmp_path / "hub").find(directory.digest) == ours / directory.digest
    for name, data in files.items():
        assert (ours / directory.digest / name).read_bytes() == data
