"""Our kernels in real engines over real connections: the same tokens through one stage and through three."""

import asyncio
from pathlib import Path

import pytest

from exo_cli.engine.cpu import jit
from exo_cli.trust.keyring import KeyringSource
from tests.support import parity
from tests.support.cluster import loaded, shards
from tests.support.tiny_models import Tiny

pytestmark = pytest.mark.process


def test_one_stage_and_three_say_the_same(tiny: Tiny, clean_environment: Path) -> None:
    directory = tiny("llama", bits=4)
    # Each engine would compile the kernels again.
    kernels = clean_environment / ".cache" / "exo"
    kernels.mkdir(parents=True)
    (kernels / "kernels").symlink_to(jit.DIRECTORY.parent)
    source = KeyringSource()

    async def main() -> None:
        with shards(clean_environment, "a", "b", "c") as nodes:
            async with loaded(source, directory, (0, 4), nodes[:1], numerics="fast") as whole:
                expected = [await whole.tokens(prompt, 8) for prompt in parity.ASKED]
            async with loaded(source, directory, (0, 1, 3, 4), nodes, numerics="fast") as split:
                alone = [await split.tokens(prompt, 8) for prompt in parity.ASKED]
                together = await asyncio.gather(*(split.tokens(prompt, 8) for prompt in parity.ASKED))
            assert alone == expected
            assert list(together) == expected

    asyncio.run(main())
