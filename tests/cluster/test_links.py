import asyncio
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.cluster import links
from exo_cli.cluster.interfaces import Choice, Interface, list_interfaces
from exo_cli.cluster.links import NEARLY, Kept, LinkMeter, Way, best, way_out
from exo_cli.cluster.measure import Busy, Sample, Turnstile
from exo_cli.errors import ExoError, NotFound, Unavailable
from exo_cli.trust.keyring import KeyringSource
from tests.support.loopback import bound_socket
from tests.support.nodes import Here, eventually, serving


def way(address: str, bytes_per_s: float, rtt_us: float = 100.0) -> Way:
    return Way(address, "eth0", "ethernet", Sample(rtt_us, rtt_us, bytes_per_s))


WAYS = st.builds(way, st.sampled_from(["10.0.0.1", "10.0.0.2", "::1"]), st.floats(1, 1e11), st.floats(1, 1e6))


@given(st.lists(WAYS, min_size=1))
def test_the_best_way_is_nearly_the_fastest_and_of_those_the_quickest(ways: list[Way]) -> None:
    found = best(ways)
    fastest = max(each.sample.bytes_per_s for each in ways)
    near = [each for each in ways if each.sample.bytes_per_s >= fastest * NEARLY]
    assert found in near
    assert found.sample.rtt_us_p50 == min(each.sample.rtt_us_p50 for each in near)
    # The order in which they were tried does not matter.
    assert best(ways[::-1]) == found


def test_a_little_slower_and_much_sooner_is_better_and_much_slower_is_not() -> None:
    cable, air, old = way("a", 100, 500), way("b", 92, 80), way("c", 80, 10)
    assert best([cable, air, old]) is air
    assert best([cable, old]) is cable


def test_the_way_out_is_what_the_routing_table_says() -> None:
    (lo,) = [each for each in list_interfaces(Choice(), loopback=True) if "127.0.0.1" in each.ips]
    assert way_out("127.0.0.1", [lo]) is lo
    assert way_out("127.0.0.1", []) is None
    # A scope says it by itself.
    other = Interface("eth7", "ethernet", 7, (), ("fe80::1%eth7",), True)
    assert way_out("fe80::2%eth7", [lo, other]) is other
    assert way_out("fe80::2%eth8", [lo, other]) is None


def dead_port() -> tuple[socket.socket, int]:
    held = bound_socket()
    return held, int(held.getsockname()[1])


def test_a_figure_is_kept_for_as_long_as_the_asker_allows() -> None:
    async def scene() -> list[Kept]:
        source = KeyringSource()
        meter = LinkMeter(source, Turnstile(), "me")
        async with serving(source, "a") as node:

            async def ask(max_age_s: float) -> Kept:
                return await meter.way_to(node.id, [("127.0.0.1", node.port)], [], max_age_s=max_age_s)

            first = await ask(600)
            return [first, await ask(600), await ask(0), await ask(600)]

    first, same, fresh, last = asyncio.run(scene())
    assert same is first
    assert fresh is not first
    assert last is fresh
    assert (first.way.address, first.way.kind, first.way.interface) == ("127.0.0.1", "loopback", None)


def test_of_several_addresses_the_dead_ones_are_passed_over() -> None:
    async def scene() -> Kept:
        source = KeyringSource()
        held, port = dead_port()
        with held:
            async with serving(source, "a") as node, serving(source, "other") as other:
                meter = LinkMeter(source, Turnstile(), "me")
                addresses = [("127.0.0.1", port), ("127.0.0.1", other.port), ("127.0.0.1", node.port)]
                return await meter.way_to(node.id, addresses, [], max_age_s=0)

    assert asyncio.run(scene()).way.sample.bytes_per_s > 0


def fails_with(kind: type[ExoError], *which: str) -> str:
    """The sentence where every address fails, in that order."""

    async def scene() -> None:
        source = KeyringSource()
        held, port = dead_port()
        with held:
            async with serving(source, "other") as other:
                ports = {"dead": port, "other": other.port}
                turnstile = Turnstile()
                meter = LinkMeter(source, turnstile, "me")
                addresses = [("127.0.0.1", ports[each]) for each in which]
                try:
                    await meter.way_to("f" * 32, addresses, [], max_age_s=600)
                finally:
                    # Failed or not, the next one gets its turn, here and there.
                    for each in (turnstile, other.turnstile):
                        with each() as free:
                            assert free

    with pytest.raises(kind) as caught:
        asyncio.run(scene())
    return caught.value.message


def test_who_answers_wrongly_tells_more_than_who_does_not_answer() -> None:
    assert "another node" in fails_with(NotFound, "dead", "other")
    assert "nothing listens" in fails_with(Unavailable, "dead", "dead")
    assert "no address" in fails_with(Unavailable)


def test_while_this_node_measures_or_works_it_says_that_it_is_busy() -> None:
    async def scene() -> None:
        source = KeyringSource()
        turnstile = Turnstile()
        meter = LinkMeter(source, turnstile, "me")
        async with serving(source, "a") as node:
            address = [("127.0.0.1", node.port)]
            with turnstile(), pytest.raises(Busy):
                await meter.way_to(node.id, address, [], max_age_s=600)
            kept = await meter.way_to(node.id, address, [], max_age_s=600)
            # What is known is said even then; and so it is while the other one is busy.
            with turnstile(), node.turnstile():
                assert await meter.way_to(node.id, address, [], max_age_s=600) is kept
            with node.turnstile(), pytest.raises(Busy):
                await meter.way_to(node.id, address, [], max_age_s=0)

    asyncio.run(scene())


def test_three_ways_are_measured_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    async def counted(channel: Any, **_: Any) -> Sample:
        measured.append(1)
        return Sample(1.0, 1.0, 1e9)

    monkeypatch.setattr(links, "measure", counted)

    async def scene() -> None:
        source = KeyringSource()
        async with serving(source, "a") as node:
            meter = LinkMeter(source, Turnstile(), "me")
            await meter.way_to(node.id, [("127.0.0.1", node.port)] * 6, [], max_age_s=0)

    asyncio.run(scene())
    assert len(measured) == links.MEASURED_ADDRESSES


def claimed(node: Here) -> bool:
    with node.turnstile() as free:
        return not free


def test_who_gives_up_leaves_nothing_behind() -> None:
    async def scene() -> None:
        source = KeyringSource()
        turnstile = Turnstile()
        meter = LinkMeter(source, turnstile, "me")
        async with serving(source, "a") as node:
            asking = asyncio.create_task(meter.way_to(node.id, [("127.0.0.1", node.port)], [], max_age_s=0))
            await eventually(lambda: claimed(node))
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            with turnstile() as free:
                assert free
            # The other side notices, too.
            await eventually(lambda: not claimed(node))

    asyncio.run(scene())
