"""The picture: valid XML, nothing outside, nothing on top of each other."""

import re
from collections.abc import Callable
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from exo_cli.schemas.topology import Topology
from exo_cli.views.topology_svg import Box, place, svg
from tests.support import topologies as make
from tests.support.topologies import EXAMPLES, NOW_UNIX_MS, any_topology

NS = "{http://www.w3.org/2000/svg}"


def parsed(topology: Topology) -> ElementTree.Element:
    return ElementTree.fromstring(svg(topology, now_unix_ms=NOW_UNIX_MS))


def boxes(root: ElementTree.Element, tag: str, kind: str) -> list[Box]:
    found = []
    for element in root.iter(NS + tag):
        if element.get("class") in kind.split():
            x, y, w, h = (float(element.get(name, "0")) for name in ("x", "y", "width", "height"))
            found.append(Box(x + w / 2, y + h / 2, w, h))
    return found


def mesh(count: int) -> Topology:
    nodes = [make.node(f"node-{index}") for index in range(count)]
    links = [make.link(a, b, 1 + nodes.index(a) / 10) for a in nodes for b in nodes if a is not b]
    return Topology(nodes=tuple(nodes), links=tuple(links))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 16, 40])
def test_cards_have_room_and_stay_on_the_page(count: int) -> None:
    cards, width, height = place(count)
    assert len(cards) == count
    assert not any(a.touches(b, 20, 20) for a, b in combinations(cards, 2))
    for card in cards:
        assert card.w / 2 <= card.x <= width - card.w / 2
        assert card.h / 2 <= card.y <= height - card.h / 2


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_figures_cover_neither_cards_nor_each_other(count: int) -> None:
    root = parsed(mesh(count))
    cards = boxes(root, "svg", "node dead")
    pills = boxes(root, "rect", "pill")
    assert len(cards) == count
    assert len(pills) >= min(count * (count - 1) // 2, 8)
    assert not any(a.touches(b) for a, b in combinations([*cards, *pills], 2))


def test_a_small_cluster_shows_every_figure() -> None:
    words = " ".join(text.text or "" for text in parsed(make.four_macs()).iter(NS + "text"))
    assert "0.52 ms · 0.36 GB/s to 2.20 GB/s" in words
    assert "231.5 free of 256.0 GiB (limit 192.0)" in words
    assert "llama-3.3-70b 48–63" in words


def test_thicker_is_faster_and_dashed_is_closed_or_unmeasured() -> None:
    a, b, c, d = (make.node(name) for name in "abcd")
    links = (
        make.link(a, b, 2.0),
        make.link(a, c, 0.1),
        make.blocked(a, d, "refused"),
        make.link(b, c, None, None),
    )
    lines = list(parsed(Topology(nodes=(a, b, c, d), links=links)).iter(NS + "line"))
    widths = {line.get("class"): float(line.get("stroke-width", "0")) for line in lines}
    assert widths["link fast"] > widths["link slow"]
    assert sorted(str(line.get("class")) for line in lines) == [
        "link closed", "link fast", "link none", "link none", "link none", "link slow",
    ]  # fmt: skip


def test_nobody_gets_the_next_step() -> None:
    assert "exo serve-shard" in svg(Topology(), now_unix_ms=NOW_UNIX_MS)


@pytest.mark.parametrize("example", EXAMPLES)
def test_self_contained(example: Callable[[], Topology]) -> None:
    text = svg(example(), now_unix_ms=NOW_UNIX_MS)
    assert text == svg(example(), now_unix_ms=NOW_UNIX_MS)
    assert re.findall(r"https?:[^\s\"']+", text) == ["http://www.w3.org/2000/svg"]
    tags = {element.tag.removeprefix(NS) for element in ElementTree.fromstring(text).iter()}
    assert tags <= {"svg", "title", "style", "rect", "circle", "line", "text"}
    assert "prefers-color-scheme: dark" in text


@settings(max_examples=60, deadline=None)
@given(any_topology())
def test_any_topology_is_valid_xml(topology: Topology) -> None:
    root = parsed(topology)
    assert all(not name.startswith("on") for element in root.iter() for name in element.attrib)
    assert len(boxes(root, "svg", "node dead")) == len(topology.nodes)
