"""What an Open may ask for; the rest of the translation is crossed by every chain of processes."""

import pytest

from exo_cli.shard.translate import MAX_BIAS, Reach, objection
from exo_cli.wire import exo_pb2 as pb


def opening(*endpoints: str, **changes: object) -> pb.Open:
    route = [pb.Hop(endpoint=endpoint, stage_id="s") for endpoint in endpoints]
    return pb.Open(request=1, epoch=1, prompt=[1], max_tokens=1, route=route, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "8.8.8.8:52416", "[::1]:9", "[fe80::1%eth0]:9"])
def test_literal_addresses_are_gone_to(endpoint: str) -> None:
    assert objection(opening("10.0.0.1:1", endpoint), Reach()) is None


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("example.org:443", "literal addresses"),
        ("localhost:1", "literal addresses"),
        ("127.0.0.1", "literal addresses"),
        ("127.0.0.1:ssh", "literal addresses"),
        ("", "literal addresses"),
        ("dns:///x:1", "literal addresses"),
        ("unix:/run/secret.sock:7", "file system"),
    ],
)
def test_a_route_leads_nowhere_else(endpoint: str, words: str) -> None:
    said = objection(opening("127.0.0.1:1", endpoint), Reach())
    assert said is not None
    assert words in said.message


def test_a_node_on_a_socket_of_its_own_goes_to_such_sockets() -> None:
    assert objection(opening("unix:/private/socket:7"), Reach(unix=True)) is None


def test_insecure_nodes_stay_private() -> None:
    assert objection(opening("192.168.1.7:1", "[fe80::1%eth0]:1"), Reach(private_only=True)) is None
    said = objection(opening("8.8.8.8:1"), Reach(private_only=True))
    assert said is not None
    assert "8.8.8.8" in said.message
    assert said.exit == 77


def test_more_than_a_stage_does() -> None:
    bias = dict.fromkeys(range(MAX_BIAS + 1), 1.0)
    for sampler, words in ((pb.Sampler(logit_bias=bias), "bias"), (pb.Sampler(grammar="x"), "grammar")):
        said = objection(opening("127.0.0.1:1", sampler=sampler), Reach())
        assert said is not None
        assert words in said.message
