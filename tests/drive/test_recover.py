"""Who is to blame for a broken chain, as its nodes say themselves."""

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from exo_cli.drive import recover as recover_module
from exo_cli.drive.load import LoadedStage, load
from exo_cli.drive.recover import Lost, blame, who
from exo_cli.drive.size import ModelSize
from exo_cli.drive.split import Need, plan_of
from exo_cli.schemas.plan import ModelRef
from exo_cli.schemas.topology import Node
from exo_cli.trust.keyring import KeyringSource
from tests.support.fake_stage import fake_node
from tests.support.records import node as record

NEED = Need(
    ModelRef(name="toy", revision=None, digest="d" * 64), ModelSize((1000,) * 4, 10, 10, 8, 4096), 512
)


def test_who_is_gone_whose_engine_ended_and_who_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recover_module, "ANSWER_S", 10.0)
    monkeypatch.setattr(recover_module, "BLAME_S", 0.2)

    async def main() -> None:
        source = KeyringSource()
        async with fake_node(source, "a") as a, fake_node(source, "b") as b:
            records = [a.record, b.record]
            plan = plan_of(NEED, [(records[0], (0, 2)), (records[1], (2, 4))], "a test")
            stages = await load(plan, {each.id: each for each in records}, 4, source)

            async def blamed(stages: Sequence[LoadedStage], *models: str) -> list[tuple[str, bool]]:
                return [(each.node.name, each.gone) for each in await blame(stages, models, source)]

            assert await blamed(stages, "another name", "d" * 64) == []
            await b.service.lose_engines()
            assert await blamed(stages, "d" * 64) == [("b", False)]
            # Somebody else's address, or nobody's.
            moved = msgspec.structs.replace(records[0], endpoint=records[1].endpoint)
            other = LoadedStage(moved, (0, 2), "s", 1, 2, 0, 0, True)
            assert await blamed([other], "d" * 64) == [("a", True)]
            silent = msgspec.structs.replace(records[0], endpoint="127.0.0.1:1")
            other = LoadedStage(silent, (0, 2), "s", 1, 2, 0, 0, True)
            assert await blamed([other, other, stages[1]], "d" * 64) == [("a", True), ("b", False)]

    asyncio.run(main())


def test_what_is_said() -> None:
    studio, mini, here = record("studio"), record("mini"), record("laptop", host="here")
    assert Lost(studio, gone=True).said(None) == "studio stopped answering"
    assert Lost(studio, gone=False).said(mini) == "the engine on studio ended"
    assert Lost(here, gone=True).said(here) == "this machine's own node stopped answering"

    def told(*nodes: Node) -> str:
        chain = [(node, (at, at + 1)) for at, node in enumerate(nodes)]
        return who(plan_of(NEED, chain, "a test"), {node.id: node for node in nodes}, "here")

    assert told(mini, here) == "mini and this machine"
    assert told(here) == "this machine"
    # Two nodes of one machine have names to tell them apart.
    assert told(here, record("second", host="here"), mini) == "laptop, second and mini"
