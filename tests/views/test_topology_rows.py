"""Rows for awk: stable columns, whole values, one line each."""

from hypothesis import given, settings

from exo_cli.schemas.topology import Topology
from exo_cli.views.topology_rows import LINK_COLUMNS, NODE_COLUMNS, link_rows, node_rows, rows
from tests.support import topologies as make
from tests.support.topologies import any_topology


def column(table: tuple[tuple[str, ...], list[tuple[str, ...]]], name: str) -> list[str]:
    header, body = table
    return [row[header.index(name)] for row in body]


def test_the_columns_are_a_promise() -> None:
    assert NODE_COLUMNS == (
        "record", "name", "id", "state", "role", "endpoint", "host", "chip", "cores", "backend",
        "ram_bytes", "limit_bytes", "free_bytes", "models",
    )  # fmt: skip
    assert LINK_COLUMNS == (
        "record", "from", "from_id", "to", "to_id", "interface", "kind", "address",
        "rtt_us_p50", "rtt_us_p99", "bytes_per_s", "limited_by", "error",
    )  # fmt: skip


def test_one_table_holds_both() -> None:
    topology = make.four_macs()
    header, body = rows(topology)
    assert header[:14] == NODE_COLUMNS
    assert header[14:] == LINK_COLUMNS[3:]
    assert {len(row) for row in body} == {len(header)}
    assert [row[0] for row in body] == ["node"] * 4 + ["link"] * 12
    first_link = dict(zip(header, body[4], strict=True))
    assert (first_link["name"], first_link["to"], first_link["ram_bytes"]) == ("air", "mini-1", "")
    assert (first_link["rtt_us_p50"], first_link["bytes_per_s"]) == ("340", "112000000")


def test_values_are_whole_and_plain() -> None:
    topology = make.four_macs()
    nodes = node_rows(topology)
    assert column(nodes, "name") == ["air", "mini-1", "mini-2", "studio"]
    assert column(nodes, "ram_bytes")[3] == str(256 * 2**30)
    assert column(nodes, "models") == ["", "llama-3.3-70b:48-64", "llama-3.3-70b:64-80", "llama-3.3-70b:0-48"]
    long = Topology(nodes=(make.node("n" * 300),))
    assert column(node_rows(long), "name") == ["n" * 300]


def test_what_is_not_known_is_empty() -> None:
    links = link_rows(make.mixed())
    closed = column(links, "error").index("connection refused by 192.168.1.20:52416")
    assert column(links, "bytes_per_s")[closed] == ""
    assert column(links, "limited_by").count("transport") == 2


@settings(max_examples=60, deadline=None)
@given(any_topology())
def test_every_row_is_one_line_of_the_same_width(topology: Topology) -> None:
    for table in (rows(topology), node_rows(topology), link_rows(topology)):
        header, body = table
        assert all(len(row) == len(header) for row in body)
        assert all(cell.isprintable() for row in body for cell in row)
    assert len(rows(topology)[1]) == len(topology.nodes) + len(topology.links)
