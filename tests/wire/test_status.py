"""Errors over a real connection: what a service says is what its caller gets."""

import asyncio
from typing import Any

import grpc
import pytest

from exo_cli import errors
from exo_cli.errors import BadData, Exit, ExoError, Internal, TryAgain, Unavailable, VersionMismatch
from exo_cli.trust.keyring import KeyringSource
from exo_cli.wire import exo_pb2 as pb
from exo_cli.wire.exo_pb2_grpc import ControlServicer
from exo_cli.wire.status import abort, code_of, error_of, translated
from exo_cli.wire.stubs import control
from tests.support.nodes import channel, serving

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ExoError) and kind is not ExoError
]


def over_the_wire(*raised: ExoError | None) -> list[ExoError]:
    """What a caller makes of a Describe that fails with each of these; None is a bug in the service."""

    async def scene() -> list[ExoError]:
        source, got = KeyringSource(), []
        waiting = list(raised)

        class Failing(ControlServicer):
            async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeReply:
                error = waiting.pop(0)
                if error is None:
                    raise RuntimeError("a bug")
                await abort(context, error)

        async with serving(source, "a", make=lambda *_: Failing()) as node, channel(source, node.port) as way:
            for _ in raised:
                with pytest.raises(ExoError) as caught, translated("studio"):
                    await control(way).Describe(pb.DescribeRequest(), timeout=5)
                got.append(caught.value)
        return got

    return asyncio.run(scene())


def test_every_error_keeps_its_kind_its_exit_code_and_its_hint() -> None:
    sent = [kind(f"no luck with {kind.__name__} é", hint="Knock on wood → twice.") for kind in KINDS]
    for original, arrived in zip(sent, over_the_wire(*sent), strict=True):
        assert type(arrived) is type(original)
        assert arrived.exit == original.exit
        assert arrived.message == f"studio: {original.message}"
        assert arrived.hint == original.hint


def test_an_error_without_a_hint_and_one_too_long_for_the_headers() -> None:
    plain, long = over_the_wire(TryAgain("full"), BadData("x" * 100_000, hint="é" * 100_000))
    assert (plain.message, plain.hint) == ("studio: full", None)
    assert (type(long), long.exit) == (BadData, Exit.BAD_DATA)
    assert long.message.startswith("studio: xxx")
    assert (long.hint or "").startswith("ééé")


def test_a_subclass_arrives_as_what_it_is_made_from() -> None:
    class Busy(TryAgain):
        pass

    (arrived,) = over_the_wire(Busy("later"))
    assert type(arrived) is TryAgain


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_bug_in_a_service_is_an_internal_error_of_that_node() -> None:
    (arrived,) = over_the_wire(None)
    assert type(arrived) is Internal
    assert "studio" in arrived.message


def status(code: grpc.StatusCode, details: str | None = "words") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("code", "details", "kind", "says"),
    [
        (grpc.StatusCode.UNAVAILABLE, "no route", Unavailable, "studio cannot be reached: no route"),
        (grpc.StatusCode.UNAVAILABLE, None, Unavailable, "no reason given"),
        (grpc.StatusCode.CANCELLED, "stopping", Unavailable, "stopping"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "d", TryAgain, "studio did not answer in time"),
        (grpc.StatusCode.UNIMPLEMENTED, "m", VersionMismatch, "studio does not know this request"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", TryAgain, "studio: busy"),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Received message larger than max (9 vs. 8)",
            BadData,
            "studio sent a message that is too large",
        ),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", Unavailable, "the connection broke"),
        (grpc.StatusCode.UNKNOWN, "eh", Internal, "studio: eh"),
    ],
)
def test_what_others_and_grpc_itself_say(
    code: grpc.StatusCode, details: str | None, kind: type[ExoError], says: str
) -> None:
    error = error_of(status(code, details), "studio")
    assert type(error) is kind
    assert says in error.message


def test_an_error_with_a_status_of_its_own_has_it_for_everybody_to_see() -> None:
    assert code_of(errors.NotFound("x")) is grpc.StatusCode.NOT_FOUND
    assert code_of(errors.SystemFailure("x")) is grpc.StatusCode.INTERNAL
    # And a program that is not ours, which answers with a bare status, gets an error of its kind.
    for kind in KINDS:
        code = code_of(kind("x"))
        if code is not grpc.StatusCode.INTERNAL and kind is not errors.UsageProblem:
            assert type(error_of(status(code), "it")) is kind


def test_what_is_no_failed_call_passes_untouched() -> None:
    with pytest.raises(KeyError), translated("studio"):
        raise KeyError("x")
    with translated("studio"):
        pass
