"""Rings and meshes of any size, from who is cabled to whom."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.rdma.cables import Wiring, _ring, pair
from exo_cli.rdma.capture import read
from exo_cli.rdma.diagnose import diagnose
from tests.support.captures import CAPTURES

NAMES = tuple("abcdefgh")


def around(circle: tuple[str, ...]) -> set[tuple[str, str]]:
    return {pair(a, b) for a, b in zip(circle, (*circle[1:], circle[0]), strict=True)}


@given(st.integers(2, 5), st.data())
def test_a_ring_is_found_or_the_fewest_cables_for_one(count: int, data: st.DataObject) -> None:
    nodes = NAMES[:count]
    joined = {two for two in combinations(nodes, 2) if data.draw(st.booleans())}
    ring, lacking = _ring(nodes, joined)
    if ring is not None:
        assert sorted(ring) == list(nodes)
        assert around(ring) <= joined
        assert not lacking
    else:
        assert lacking
        assert not set(lacking) & joined
        again, nothing = _ring(nodes, joined | set(lacking))
        assert again is not None
        assert not nothing
        for left_out in lacking:
            assert _ring(nodes, joined | set(lacking) - {left_out})[0] is None


def test_two_macs_are_a_ring_with_one_cable() -> None:
    assert _ring(("a", "b"), {("a", "b")}) == (("a", "b"), ())
    assert _ring(("a", "b"), set()) == (None, (("a", "b"),))
    assert _ring(("a",), set()) == (None, ())


def test_more_macs_than_can_be_tried_are_told_all_that_is_missing() -> None:
    nodes = tuple(f"m{number:02}" for number in range(9))
    ring, lacking = _ring(nodes, set())
    assert ring is None
    assert len(lacking) == 36


@pytest.mark.parametrize(
    ("name", "mesh", "ring"),
    [
        ("mac-four-healthy", True, True),
        ("mac-missing-cable-four", False, True),
        ("mac-missing-cable-line", False, False),
        ("mac-two-healthy", True, True),
        ("mac-hub", False, False),
        ("mac-disabled", None, None),
    ],
)
def test_the_shape(name: str, mesh: bool | None, ring: bool | None) -> None:
    found = diagnose(read(CAPTURES / name))
    assert (found.mesh, found.ring) == (mesh, ring)


def test_a_doubled_pair_is_named_once() -> None:
    found = diagnose(read(CAPTURES / "mac-two-cables"))
    wiring = Wiring(("mac-1", "mac-2"), found.cables, (), None, ())
    assert wiring.doubled() == (("mac-1", "mac-2"),)


def test_what_cannot_be_seen_is_not_called_missing() -> None:
    one, two, three = read(CAPTURES / "mac-missing-cable-three")
    blind = type(two)("darwin", two.node, {**two.texts, "thunderbolt": type(two.texts["mlx"])(0, b"?\n")})
    found = diagnose([one, blind, three])
    assert {each.id for each in found.findings if each.level == "failure"} == {"unreadable"}
