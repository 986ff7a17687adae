"""The table of `exo discover`: goldens at fixed widths, and what holds for every topology."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from exo_cli.cluster.advice import Advice, advise
from exo_cli.schemas.topology import Topology
from exo_cli.views import topology_table
from exo_cli.views.overview import free_for_models, summary
from tests.support import topologies as make
from tests.support.screen import shown
from tests.support.topologies import EXAMPLES, NOW_UNIX_MS, any_topology


def draw(
    topology: Topology, width: int, *, unicode: bool = True, color: bool = False, here: str | None = None
) -> str:
    table = topology_table.render(
        topology,
        width=width,
        unicode=unicode,
        now_unix_ms=NOW_UNIX_MS,
        self_host=here,
        advice=advise(topology),
    )
    # The terminal is wider than the table was told, so that it cuts nothing off itself.
    return shown(table, width + 200, color=color)


def golden(text: str) -> str:
    """A picture in the source, indented for the eye."""
    return "".join(line.removeprefix("    ").rstrip() + "\n" for line in text.strip().split("\n"))


def pair() -> Topology:
    a = make.node("studio", chip="M3 Ultra", cores=32, ram=96, limit=72, free=40, endpoint="10.0.0.1:52416",
                  stages=(make.stage("qwen3-8b", 0, 18),))  # fmt: skip
    b = make.node("mini", ram=24, limit=18, free=21.4, endpoint="10.0.0.2:52416")
    return Topology(
        nodes=(a, b), links=(make.link(a, b, 1.1, 0.21, transport=True), make.link(b, a, 0.9, 0.22))
    )


def test_two_machines_at_100_columns() -> None:
    assert draw(pair(), 100, here="host-of-mini") == golden(
        """
    Nodes                █ used  ░ free for models  ╌ beyond the limit
     ● mini    ready     ███░░░░░░░░░░░░░░░░░░░░░╌╌╌╌  21.4 free of 24.0 GiB (limit 18.0)
       M4 Pro    12 cores  metal  10.0.0.2:52416  this machine
     ● studio  ready     ████████████████░░░░░░░░░░░░  40.0 free of 96.0 GiB (limit 72.0)
       M3 Ultra  32 cores  metal  10.0.0.1:52416  qwen3-8b 0–17

    Links  round trip and bandwidth, from row to column
                           mini               studio
     mini                     ·    0.22 ms 0.90 GB/s
     studio   0.21 ms 1.10 GB/s†                   ·
     † as fast as exo's own transport goes here: a faster cable would change nothing

    2 nodes, 58.0 GiB free for models, slowest link mini → studio 0.90 GB/s
    """
    )


def test_two_machines_in_ascii_at_80_columns() -> None:
    assert draw(pair(), 80, unicode=False) == golden(
        """
    Nodes                # used  = free for models  - beyond the limit
     * mini    ready     ##==================---  21.4 free of 24.0 GiB (limit 18.0)
       M4 Pro    12 cores  metal  10.0.0.2:52416
     * studio  ready     #############==========  40.0 free of 96.0 GiB (limit 72.0)
       M3 Ultra  32 cores  metal  10.0.0.1:52416  qwen3-8b 0-17

    Links  round trip and bandwidth, from row to column
                           mini               studio
     mini                     .    0.22 ms 0.90 GB/s
     studio   0.21 ms 1.10 GB/s*                   .
     * as fast as exo's own transport goes here: a faster cable would change nothing

    2 nodes, 58.0 GiB free for models, slowest link mini -> studio 0.90 GB/s
    """
    )


def test_failing_nodes_at_80_columns() -> None:
    assert draw(make.failing(), 80).split("\n\n")[0] == golden(
        """
    Nodes                █ used  ░ free for models  ╌ beyond the limit
     ● den     ready     memory unknown
       –           1 core  –      192.168.1.61:52416   announces only
     ◐ mini-1  draining  ████████████████████░░░   3.2 free of 24.0 GiB (limit 18.0)
       M4 Pro    12 cores  metal  192.168.1.23:52416   qwen3-8b 0–35 unloading
     ◐ mini-2  suspect   ████████░░░░░░░░░░░░░░░  16.0 free of 24.0 GiB (limit 18.0)
       M4 Pro    12 cores  metal  192.168.1.24:52416   silent for 6 s
     ● studio  ready     ██████░░░░░░░░░░░░░░░░░  70.0 free of 96.0 GiB (limit 72.0)
       M3 Ultra  32 cores  metal  192.168.1.164:52416
     ○ mini-3  dead      last seen 4 min ago
       M4 Pro    12 cores  metal  192.168.1.25:52416
    """
    ).rstrip("\n")


def test_nobody() -> None:
    assert draw(Topology(), 80) == golden(
        """
    No node answered. Next:

      exo serve-shard         on every machine that should take part
      exo discover --explain  why a machine is not seen
    """
    )


def test_narrow_cells_stand_on_two_lines_and_errors_have_footnotes() -> None:
    links = draw(make.mixed(), 80).split("\n\n")[1]
    assert links == golden(
        """
    Links  round trip and bandwidth, from row to column
                 book         nas       nas-2       tower
     book           ·   40.0 MB/s           –   41.0 MB/s
                          5.00 ms                 4.90 ms
     nas    conn… (1)           ·   2.71 GB/s†  0.95 GB/s
                                      0.06 ms     0.19 ms
     nas-2          –   2.70 GB/s†          ·           –
                          0.06 ms
     tower  38.0 MB/s   0.94 GB/s   0.94 GB/s           ·
              5.20 ms     0.18 ms     0.18 ms
     † as fast as exo's own transport goes here: a faster cable would change nothing
     (1) connection refused by 192.168.1.20:52416
    """
    ).rstrip("\n")


def test_too_many_nodes_become_a_list_and_a_count() -> None:
    links = draw(make.twelve(), 80).split("\n\n")[1]
    assert links == golden(
        """
    Links  the slowest between two machines
     rack-01 → rack-09   0.41 ms  11.8 MB/s  ethernet
     rack-02 → rack-09   0.41 ms  11.8 MB/s  ethernet
     rack-03 → rack-09   0.41 ms  11.8 MB/s  ethernet
     rack-04 → rack-09   0.41 ms  11.8 MB/s  ethernet
     rack-05 → rack-09   0.41 ms  11.8 MB/s  ethernet
     rack-06 → rack-09   0.41 ms  11.8 MB/s  ethernet
     129 of 132 links measured (median 1.14 GB/s, best 1.21 GB/s), 2 with an error,
     1 without a figure
     rack-04 → rack-05  no route to host
     rack-04 → rack-06  no route to host
    """
    ).rstrip("\n")


def test_details_move_beside_the_node_where_there_is_room() -> None:
    first = draw(make.twelve(), 140).split("\n")[1]
    assert "rack-01" in first
    assert "192.168.1." in first


def test_two_nodes_of_one_machine_share_its_memory() -> None:
    topology = make.mixed()
    nas = [node.memory.free_bytes for node in topology.nodes if node.name.startswith("nas")]
    assert len(nas) == 2
    others = sum(
        min(node.memory.limit_bytes, node.memory.free_bytes)
        for node in topology.nodes
        if not node.name.startswith("nas")
    )
    assert free_for_models(topology) == others + nas[0]


def test_the_summary_names_who_is_not_ready() -> None:
    text = summary(make.failing())
    assert text.startswith("2 nodes ready, 1 draining, 1 suspect, 1 dead, 70.0 GiB free for models")


def test_links_of_one_machine_are_not_the_slowest() -> None:
    a, b = make.node("a", host="h"), make.node("b", host="h")
    c = make.node("c")
    topology = Topology(nodes=(a, b, c), links=(make.link(a, b, 0.01), make.link(a, c, 0.5)))
    assert summary(topology).endswith("slowest link a → c 0.50 GB/s")


def test_a_cards_own_memory_is_what_counts() -> None:
    assert "23.1 free of 24.0 GiB (RAM 64.0)" in draw(make.mixed(), 100)


def test_nothing_is_lost_without_colour() -> None:
    with_color = draw(make.failing(), 100, color=True)
    assert "\x1b[32m" in with_color
    plain = draw(make.failing(), 100)
    assert "\x1b" not in plain
    assert all(state in plain for state in ("ready", "draining", "suspect", "dead"))


def test_advice_is_wrapped_under_itself() -> None:
    topology = pair()
    lines = shown(
        topology_table.render(
            topology, width=60, unicode=True, now_unix_ms=NOW_UNIX_MS,
            advice=[Advice("a -> b", "slow " * 12, "`one command` and a cable " * 3)],
        ),
        60,
    ).split("\n")  # fmt: skip
    start = lines.index("What would help")
    assert lines[start + 1 : start + 6] == [
        " a → b: slow slow slow slow slow slow slow slow slow slow",
        "        slow slow",
        "   → `one command` and a cable `one command` and a cable",
        "     `one command` and a cable",
        "",
    ]


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("width", [20, 40, 80, 100, 140])
def test_examples_keep_to_the_width(example: Callable[[], Topology], unicode: bool, width: int) -> None:
    text = draw(example(), width, unicode=unicode, here="host-of-studio")
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert unicode or text.isascii()


@settings(max_examples=60, deadline=None)
@given(any_topology(), st.sampled_from([1, 30, 80, 100, 140]), st.booleans())
def test_any_topology_is_drawn_harmlessly(topology: Topology, width: int, unicode: bool) -> None:
    text = draw(topology, width, unicode=unicode)
    assert all(character == "\n" or character.isprintable() for character in text)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert unicode or text.isascii()
