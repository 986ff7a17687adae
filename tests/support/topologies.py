"""Clusters for tests of what is shown and advised: Macs, mixed machines, many nodes, failing ones."""

from collections.abc import Iterable
from typing import get_args

import msgspec
from hypothesis import strategies as st

from exo_cli.schemas.topology import (
    Address,
    InterfaceKind,
    Link,
    LoadedStage,
    Memory,
    Node,
    NodeRole,
    NodeState,
    Topology,
)

GIB = 2**30
NOW_UNIX_MS = 1_800_000_000_000


def node(
    name: str,
    *,
    id: str | None = None,
    state: NodeState = "ready",
    role: NodeRole = "shard",
    host: str | None = None,
    chip: str = "M4 Pro",
    cores: int = 12,
    backend: str = "metal",
    ram: float = 24.0,
    limit: float | None = 18.0,
    free: float = 16.0,
    ports: Iterable[InterfaceKind] = ("wifi", "ethernet", "thunderbolt"),
    endpoint: str | None = None,
    stages: tuple[LoadedStage, ...] = (),
    seen_ms_ago: int = 1000,
) -> Node:
    """A node; memory in GiB, and no limit means all of it."""
    number = sum(map(ord, name)) % 250
    return Node(
        id=id or f"{name}-0123456789",
        name=name,
        state=state,
        role=role,
        endpoint=endpoint or f"192.168.1.{number}:52416",
        host=f"host-of-{name}" if host is None else host,
        boot=1,
        seq=1,
        version="0.1.0",
        protocol=1,
        addresses=tuple(
            Address(interface=f"en{index}", kind=kind, ip=f"10.{index}.0.{number}")
            for index, kind in enumerate(ports)
        ),
        os="macOS 26.3" if backend == "metal" else "Linux 6.18",
        chip=chip,
        cores=cores,
        backend=backend,
        memory=Memory(
            ram_bytes=int(ram * GIB),
            limit_bytes=int((ram if limit is None else limit) * GIB),
            free_bytes=int(free * GIB),
        ),
        stages=stages,
        seen_unix_ms=NOW_UNIX_MS - seen_ms_ago,
    )


def link(
    a: Node,
    b: Node,
    gb_per_s: float | None,
    ms: float | None = 0.3,
    *,
    p99_ms: float | None = None,
    kind: InterfaceKind = "ethernet",
    transport: bool = False,
    error: str | None = None,
) -> Link:
    """The way from `a` to `b`."""
    return Link(
        from_=a.id,
        to=b.id,
        interface="en0",
        kind=kind,
        address="10.0.0.1",
        rtt_us_p50=None if ms is None else ms * 1000,
        rtt_us_p99=None if ms is None else (p99_ms or 1.5 * ms) * 1000,
        bytes_per_s=None if gb_per_s is None else gb_per_s * 1e9,
        limited_by="transport" if transport else None,
        boot=1,
        seq=1,
        error=error,
        measured_unix_ms=NOW_UNIX_MS,
    )


def blocked(a: Node, b: Node, error: str) -> Link:
    return link(a, b, None, None, error=error)


def stage(model: str, first: int, end: int, state: str = "ready") -> LoadedStage:
    assert state in ("loading", "ready", "failed", "unloading")
    return LoadedStage(model=model, layers=(first, end), state=state)  # type: ignore[arg-type]


def both(
    a: Node, b: Node, gb_per_s: float, ms: float = 0.3, *, kind: InterfaceKind = "ethernet"
) -> list[Link]:
    return [link(a, b, gb_per_s, ms, kind=kind), link(b, a, gb_per_s, ms, kind=kind)]


def four_macs() -> Topology:
    """Thunderbolt between three of them, 1 Gbit/s Ethernet to the fourth, a model loaded."""
    model = "llama-3.3-70b"
    studio = node(
        "studio", chip="M3 Ultra", cores=32, ram=256, limit=192, free=231.5, stages=(stage(model, 0, 48),)
    )
    mini = [
        node("mini-1", ram=64, limit=48, free=30.3, stages=(stage(model, 48, 64),)),
        node("mini-2", ram=64, limit=48, free=34.9, stages=(stage(model, 64, 80, "loading"),)),
    ]
    air = node("air", chip="M4", cores=10, ram=24, limit=18, free=21.4, ports=("wifi", "ethernet"))
    links = [
        link(studio, mini[0], 3.91, 0.41, kind="thunderbolt", transport=True),
        link(mini[0], studio, 3.74, 0.43, kind="thunderbolt", transport=True),
        link(studio, mini[1], 2.86, 0.44, kind="thunderbolt"),
        link(mini[1], studio, 2.91, 0.42, kind="thunderbolt"),
        link(mini[0], mini[1], 2.20, 0.52, kind="thunderbolt"),
        link(mini[1], mini[0], 0.36, 0.55, kind="thunderbolt"),
    ]
    for other in (studio, *mini):
        links += both(air, other, 0.112, 0.34)
    return Topology(generation=7, nodes=(studio, *mini, air), links=tuple(links))


def mixed() -> Topology:
    """A Linux tower with a GPU, a Mac on Wi-Fi, two nodes on one machine, one way that is closed."""
    tower = node(
        "tower", chip="RTX 4090", cores=16, backend="cuda", ram=64, limit=24, free=23.1, ports=("ethernet",)
    )
    book = node("book", chip="M4 Max", cores=16, ram=64, limit=48, free=58.2, ports=("wifi", "ethernet"))
    nas = node(
        "nas", chip="Xeon D-1541", cores=8, backend="cpu", ram=32, limit=None, free=11.7, ports=("ethernet",)
    )
    nas2 = msgspec.structs.replace(nas, id="nas-2-0123456789", name="nas-2", endpoint="192.168.1.72:52417")
    links = [
        link(book, tower, 0.041, 4.9, p99_ms=54, kind="wifi"),
        link(tower, book, 0.038, 5.2, p99_ms=48),
        link(book, nas, 0.040, 5.0, p99_ms=31, kind="wifi"),
        blocked(nas, book, "connection refused by 192.168.1.20:52416"),
        link(tower, nas, 0.94, 0.18),
        link(nas, tower, 0.95, 0.19),
        link(nas, nas2, 2.71, 0.06, kind="loopback", transport=True),
        link(nas2, nas, 2.70, 0.06, kind="loopback", transport=True),
        link(tower, nas2, 0.94, 0.18),
    ]
    return Topology(generation=3, nodes=(tower, book, nas, nas2), links=tuple(links))


def twelve() -> Topology:
    """More nodes than a matrix can show; one of them slow, two ways closed."""
    nodes = [
        node(f"rack-{number:02}", chip="M4", cores=10, ram=32, limit=24, free=28.0) for number in range(1, 13)
    ]
    links = []
    for a in nodes:
        for b in nodes:
            if a is b or (a, b) == (nodes[0], nodes[11]):
                continue
            if (a, b) in ((nodes[3], nodes[4]), (nodes[3], nodes[5])):
                links.append(blocked(a, b, "no route to host"))
            else:
                slow = nodes[8] in (a, b)
                rate = 0.0118 if slow else 1.10 + 0.01 * nodes.index(a)
                links.append(link(a, b, rate, 0.41 if slow else 0.21))
    return Topology(generation=90, nodes=tuple(nodes), links=tuple(links))


def failing() -> Topology:
    """Ready, draining, suspect, dead, and one that only announces itself."""
    up = node("studio", chip="M3 Ultra", cores=32, ram=96, limit=72, free=70)
    leaving = node("mini-1", state="draining", free=3.2, stages=(stage("qwen3-8b", 0, 36, "unloading"),))
    silent = node("mini-2", state="suspect", seen_ms_ago=6_000)
    gone = node("mini-3", state="dead", seen_ms_ago=240_000)
    phone = node(
        "den", role="announce", chip="", cores=1, backend="", ram=0, limit=0, free=0, ports=("wifi",)
    )
    links = [*both(up, leaving, 1.1, 0.21), *both(up, silent, 1.1, 0.22), *both(up, gone, 1.1, 0.22)]
    return Topology(generation=12, nodes=(up, leaving, silent, gone, phone), links=tuple(links))


def hostile() -> Topology:
    """Names that are markup, control characters, wide, very long, empty and twice the same."""
    names = ("[red]evil[/]", "\x1b[31mred\x1b[0m\n\tname", "書斎の大きなマシン", "x" * 90, "", "twin", "twin")
    nodes = tuple(node(name, id=f"{index:08x}-id", host=f"h{index}") for index, name in enumerate(names))
    links = [link(a, b, 0.5) for a in nodes for b in nodes if a is not b]
    links[3] = blocked(nodes[0], nodes[4], "[bold]no\x07 way[/bold]")
    return Topology(nodes=nodes, links=tuple(links))


EXAMPLES = (Topology, four_macs, mixed, twelve, failing, hostile)

# Every code point there is: control characters, surrogates, wide and combining ones, markup.
any_text = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=40),
    st.sampled_from(
        ["[red]", "[/]", "\x1b]0;title\x07", "<script>&\"'", "]]>", "日本語" * 12, "e\u0301" * 30, "a\tb\nc"]
    ),
)
_sizes = st.one_of(st.integers(0, 2**45), st.integers(0, 2**63))
_figures = st.none() | st.floats(0, 1e15, allow_nan=False)


@st.composite
def any_topology(draw: st.DrawFn) -> Topology:
    """Nodes whose every text is a stranger's, and links between some of them and to nobody."""
    ids = draw(st.lists(any_text, max_size=10, unique=True))
    hosts = st.sampled_from(["", "one", "two", "three"])
    nodes = tuple(
        Node(
            id=id_,
            name=draw(any_text),
            state=draw(st.sampled_from(get_args(NodeState))),
            role=draw(st.sampled_from(get_args(NodeRole))),
            endpoint=draw(any_text),
            host=draw(hosts),
            boot=0,
            seq=0,
            version="",
            protocol=1,
            addresses=tuple(
                Address(interface="x", kind=kind, ip="")
                for kind in draw(st.lists(st.sampled_from(get_args(InterfaceKind)), max_size=3))
            ),
            os="",
            chip=draw(any_text),
            cores=draw(st.integers(0, 2**31)),
            backend=draw(st.sampled_from(["metal", "cuda", "cpu", "none"]) | any_text),
            memory=Memory(ram_bytes=draw(_sizes), limit_bytes=draw(_sizes), free_bytes=draw(_sizes)),
            stages=tuple(stage(model, 0, 8) for model in draw(st.lists(any_text, max_size=3))),
            seen_unix_ms=draw(st.integers(0, 2**45)),
        )
        for id_ in ids
    )
    ends = st.sampled_from([*ids, "nobody"])
    links = tuple(
        Link(
            from_=draw(ends),
            to=draw(ends),
            interface=draw(st.none() | any_text),
            kind=draw(st.none() | st.sampled_from(get_args(InterfaceKind))),
            address=None,
            rtt_us_p50=draw(_figures),
            rtt_us_p99=draw(_figures),
            bytes_per_s=draw(_figures),
            limited_by=draw(st.sampled_from([None, "transport"])),
            boot=0,
            seq=0,
            error=draw(st.none() | any_text),
            measured_unix_ms=0,
        )
        for _ in range(draw(st.integers(0, 12)))
    )
    return Topology(nodes=nodes, links=links)
