import pytest

from exo_cli import __version__
from exo_cli.errors import Exit, VersionMismatch
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.hello import PROTOCOL, check_hello, hello


def test_we_understand_ourselves() -> None:
    mine = hello("a" * 32, 3)
    assert (mine.protocol, mine.version, mine.node_id, mine.boot) == (PROTOCOL, __version__, "a" * 32, 3)
    check_hello(mine, "it")
    check_hello(pb.Hello.FromString(hello().SerializeToString()), "it")


@pytest.mark.parametrize(
    "theirs", [pb.Hello(), pb.Hello(protocol=PROTOCOL + 1, version="9.9"), pb.Hello(version="x" * 10**6)]
)
def test_another_protocol_is_refused_in_a_sentence_with_both_versions(theirs: pb.Hello) -> None:
    with pytest.raises(VersionMismatch) as caught:
        check_hello(theirs, "studio")
    error = caught.value
    assert error.exit == Exit.VERSION
    assert f"studio speaks exo protocol {theirs.protocol}" in error.message
    assert f"this one speaks {PROTOCOL} (version {__version__})" in error.message
    assert len(error.message) < 200
    assert error.hint
