"""A load on servers of many kinds, over real sockets: what they take, and every way in which they fail."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from exo_cli.bench import http_client, openai
from exo_cli.bench.http1 import parse_url
from exo_cli.bench.load import Load, Sample, run
from exo_cli.bench.openai import OpenAITarget, api_key, connected
from exo_cli.bench.openai_server import Manner, Server, Throttled
from exo_cli.bench.target import Arrival, Counted
from exo_cli.errors import (
    BadData,
    ExoError,
    InputOutput,
    NotAuthorised,
    NotFound,
    TryAgain,
    Unavailable,
    UsageProblem,
)
from tests.support.loopback import bound_socket
from tests.support.openai_server import Fault, OpenAI, serving

LOAD = Load(prompt_tokens=40, gen_tokens=6, concurrency=(1, 3), depths=(0,), repeat=2, warmup=1, seed=5)


def play(act: Callable[[OpenAI], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with serving(**settings) as server:
            await act(server)

    asyncio.run(main())


async def ask(target: OpenAITarget, size: int = 20, tokens: int = 6, **options: Any) -> list[Any]:
    prompt = [7 * each % target.vocabulary for each in range(size)]
    asked = target.open(prompt, tokens, seed=1, greedy=True, **options)
    async with aclosing(asked) as come:
        return [each async for each in come]


def text(come: list[Any]) -> str:
    return "".join(str(each.token) for each in come if isinstance(each, Arrival))


def samples(target: OpenAITarget) -> Awaitable[list[Sample]]:
    async def work() -> list[Sample]:
        return [sample for each in await run(target, LOAD) for sample in each.samples]

    return work()


# -- what a server takes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "manner", "exact"),
    [
        ({}, Manner("completions", "ids", "all"), True),
        ({"beginning": 1}, Manner("completions", "ids", "all"), True),
        ({"extensions": False}, Manner("completions", "ids", "usage"), True),
        ({"extensions": False, "usage": False}, Manner("completions", "ids", "none"), False),
        ({"takes_ids": False}, Manner("completions", "text", "all"), True),
        # It counts other things than what was sent: it reads ids as text.
        ({"beginning": 90}, Manner("completions", "text", "all"), True),
        # Its ids end where we do not know.
        ({"models": ("a", "b")}, Manner("completions", "text", "all"), True),
        ({"apis": frozenset(("chat",))}, Manner("chat", "text", "all"), True),
        ({"apis": frozenset(("chat",)), "extensions": False}, Manner("chat", "text", "usage"), True),
    ],
)
def test_what_a_server_takes_is_found_out_and_sizes_are_exact(
    settings: dict[str, Any], manner: Manner, exact: bool
) -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            assert target.manner == manner
            assert target.wording.exact is exact
            assert ("guessed" in " ".join(target.notes)) is not exact
            found = await samples(target)
        assert len(found) == 3 * (1 + 3)
        assert all(sample.error is None and sample.output_tokens == 6 for sample in found)
        if exact:
            assert {sample.input_tokens for sample in found} == {40}
        assert {each["max_tokens"] for each in server.loaded()} == {6}
        assert all(each["temperature"] == 0 and each["stream"] for each in server.loaded())

    play(act, **settings)


def test_ids_are_such_as_the_model_has_and_begin_beyond_the_special_ones() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            assert target.vocabulary == 700
            await ask(target)
            assert server.asked[-1]["prompt"] == [300 + 7 * each for each in range(20)]
            assert server.asked[-1]["model"] == "tiny"

    play(act)


def test_a_small_vocabulary_is_used_whole() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            assert target.vocabulary == 200
            await ask(target)

    play(act, n_vocab=200)


def test_a_model_is_named_where_there_is_one_or_one_was_said() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            await ask(target)
            assert "model" not in server.asked[-1]
        async with connected(server.url, model="b") as target:
            await ask(target)
            assert server.asked[-1]["model"] == "b"

    play(act, models=("a", "b"), n_vocab=None)


def test_the_url_may_say_which_api() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(f"{server.url}/v1/chat/completions") as target:
            assert target.manner.api == "chat"
            assert len(text(await ask(target)).split()) == 6
        async with connected(f"{server.url}/v1/") as target:
            assert target.manner.api == "completions"
        assert set(server.paths) == {"/v1/models", "/v1/completions", "/v1/chat/completions"}

    play(act)


def test_nobody_remembers_unless_asked_to() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            await ask(target)
            await ask(target)
            await ask(target, keep=True)
        first, second, kept = server.loaded()
        assert first["prompt"] == second["prompt"]
        assert first["cache_salt"] != second["cache_salt"]
        assert (first["cache_prompt"], kept["cache_prompt"]) == (False, True)
        assert "cache_salt" not in kept

    play(act)


@pytest.mark.parametrize("running", ["usage", "timings", None])
def test_pieces_of_several_tokens_are_counted_where_the_server_tells(running: str | None) -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            *arrivals, counted = await ask(target, tokens=8)
            counts = [each.count for each in arrivals if isinstance(each, Arrival)]
            assert counts == ([3, 3, 2] if running else [1, 1, 1])
            assert counted == Counted(input_tokens=20, output_tokens=8)

    play(act, per_piece=3, running=running)


def test_an_answer_that_the_server_ends_early_is_told_by_its_count() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            assert (await ask(target, tokens=8))[-1].output_tokens == 3

    play(act, most=3)


# -- connections -----------------------------------------------------------------------------------


def test_connections_are_kept_and_there_are_as_many_as_requests_at_a_time() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            await samples(target)
        assert server.connections == 3

    play(act)


@pytest.mark.parametrize("settings", [{"http10": True}, {"hangs_up": True}])
def test_a_server_that_closes_after_each_answer_is_asked_on_a_new_connection(settings: Any) -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            found = await samples(target)
            assert all(sample.error is None and sample.output_tokens == 6 for sample in found)
        assert server.connections > 3

    play(act, **settings)


def test_a_request_that_is_given_up_hangs_up_and_the_next_one_works() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            before = server.connections
            asked = target.open([1] * 20, 500, seed=1, greedy=True)
            async with aclosing(asked) as come:
                assert isinstance(await anext(come), Arrival)
            assert len(await ask(target)) == 7
            assert server.connections == before + 1

    play(act)


def test_a_reader_who_is_slow_holds_the_server_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_WAITING_BYTES", 2000)

    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            come: list[Any] = []
            async with aclosing(target.open([1] * 20, 3000, seed=1, greedy=True)) as asked:
                async for each in asked:
                    if len(come) % 500 == 0:
                        await asyncio.sleep(0.02)
                    come.append(each)
        assert len(text(come).split()) == 3000
        times = [each.at_s for each in come if isinstance(each, Arrival)]
        assert times == sorted(times)

    play(act)


def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            server.faults = ["closed-at-once"]
            assert len(await ask(target)) == 7

    play(act)


# -- failures --------------------------------------------------------------------------------------

FAULTS: list[tuple[Fault, type[ExoError], str]] = [
    ("cut", InputOutput, "cut its answer off"),
    ("vanish", InputOutput, "cut its answer off"),
    ("no-end", InputOutput, "cut its answer off"),
    ("closed-at-once", InputOutput, "cut its answer off"),
    ("throttled", Throttled, "answers 429: 'slow down'"),
    ("broken", Unavailable, r"answers 500: 'out of \\x1b"),
    ("in-stream", Unavailable, "fails while it answers: 'the engine died'"),
    ("not-streamed", BadData, "does not stream its answer: it is application/json"),
    ("no-http", BadData, "does not speak HTTP"),
    ("no-json", BadData, "streams what is no answer"),
    ("redirect", BadData, "sends us elsewhere"),
]


@pytest.mark.parametrize("http10", [False, True])
@pytest.mark.parametrize(("fault", "kind", "said"), FAULTS)
def test_a_failure_is_of_its_kind_and_of_that_request_alone(
    fault: Fault, kind: type[ExoError], said: str, http10: bool
) -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            expected = text(await ask(target))
            # A kept connection that ends before the answer was closed meanwhile: it is asked once more.
            again = fault == "closed-at-once" and not http10
            server.faults = [fault, fault] if again else [fault]
            with pytest.raises(kind, match=said) as caught:
                await ask(target)
            assert server.url in caught.value.message
            assert text(await ask(target)) == expected

    play(act, http10=http10)


@pytest.mark.parametrize("fault", ["cut", "in-stream", "no-end"])
def test_what_breaks_in_the_middle_is_incomplete(fault: Fault) -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            server.faults = [None, None, fault]
            rounds = await run(target, Load(40, 6, (4,), (0,), repeat=1, warmup=0))
        (broken,) = [each for each in rounds[0].samples if each.error is not None]
        assert broken.arrivals
        assert not broken.completed

    play(act)


def test_who_is_sent_away_waits_as_long_as_was_asked_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            monkeypatch.setattr(asyncio, "sleep", noted)
            for after in ("7", "99999", "Wed, 21 Oct 2026 07:28:00 GMT", "²"):
                server.retry_after = after
                server.faults = ["throttled"]
                with pytest.raises(TryAgain):
                    await ask(target)
        assert [each for each in pauses if each >= 1] == [7.0, openai.MAX_PAUSE_S, 1.0, 1.0]

    play(act)


def test_a_server_that_falls_silent_is_not_waited_for() -> None:
    async def act(server: OpenAI) -> None:
        async with connected(server.url) as target:
            await ask(target)
            server.faults = ["silent"]
            client = target._server._client
            patience_s, client._silence_s = client._silence_s, 0.1
            with pytest.raises(TryAgain, match=r"sent nothing for 0\.1 s"):
                await ask(target)
            client._silence_s = patience_s
            assert len(await ask(target)) == 7

    play(act)


def test_nobody_there() -> None:
    async def main(url: str) -> None:
        async with connected(url):
            raise AssertionError("it cannot be connected")

    with bound_socket() as held:
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"nobody answers at {url}: connection refused") as caught:
            asyncio.run(main(url))
        assert caught.value.hint
    with pytest.raises(UsageProblem):
        asyncio.run(main("127.0.0.1"))


def test_a_certificate_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, context = self_signed(tmp_path)

    async def stranger(server: OpenAI) -> None:
        with pytest.raises(NotAuthorised, match="the certificate of https://127"):
            async with connected(server.url):
                raise AssertionError("it cannot be connected")

    async def friend(server: OpenAI) -> None:
        async with connected(server.url, key="secret") as target:
            assert len(await ask(target)) == 7

    play(stranger, tls=context)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    play(friend, tls=context, key="secret")


def self_signed(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that nobody else has signed, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = directory / "certificate.pem"
    certificate.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    secret = directory / "key.pem"
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    return certificate, context


def test_why_nobody_answers_is_said_in_the_systems_words() -> None:
    reason = http_client._reason
    assert (
        reason(ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('::1', 9)"))
        == ": connection refused"
    )
    assert reason(socket.gaierror(-2, "Name or service not known")) == ": name or service not known"
    assert reason(OSError("Multiple exceptions: [Errno 111] ...")) == ""
    assert reason(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]")) == " with TLS"


def test_a_server_that_takes_nothing_says_why() -> None:
    async def act(server: OpenAI) -> None:
        server.faults = ["broken"] * 20
        with pytest.raises(Unavailable, match="answers 500"):
            async with connected(server.url):
                raise AssertionError("it cannot be connected")

    play(act)
    # Something else listens there.
    play(act_nothing, apis=frozenset())


async def act_nothing(server: OpenAI) -> None:
    with pytest.raises(NotFound, match="answers 404: 'Not Found'"):
        async with connected(server.url):
            raise AssertionError("it cannot be connected")


def test_a_busy_server_and_a_locked_one_are_not_asked_over_and_over() -> None:
    async def busy(server: OpenAI) -> None:
        server.faults = ["throttled"]
        with pytest.raises(TryAgain):
            async with connected(server.url):
                raise AssertionError("it cannot be connected")
        assert len(server.asked) == 1

    async def locked(server: OpenAI) -> None:
        for key in (None, "wrong"):
            with pytest.raises(NotAuthorised, match="answers 401: 'Invalid API key'"):
                async with connected(server.url, key=key):
                    raise AssertionError("it cannot be connected")
        assert len(server.paths) == 2
        async with connected(server.url, key="right") as target:
            assert len(await ask(target)) == 7

    play(busy)
    play(locked, key="right")


# -- the key ---------------------------------------------------------------------------------------


def test_a_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    assert api_key(None, {}) is None
    assert api_key(None, {"EXO_API_KEY": ""}) is None
    assert api_key(None, {"EXO_API_KEY": "sk-env"}) == "sk-env"
    assert api_key(file, {"EXO_API_KEY": "sk-env"}) == "sk-file"


@pytest.mark.parametrize("content", ["", "\n", "two words", "a\r\nx-injected: 1", "ä", "x" * 5000])
def test_what_is_no_key_is_refused_and_not_repeated(content: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(BadData) as caught:
        api_key(file, {})
    assert not content.strip() or content.strip() not in caught.value.message


def test_a_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        api_key(tmp_path / "none", {})
    with pytest.raises(InputOutput):
        api_key(tmp_path, {})


def test_a_key_does_not_cross_the_internet_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "is_private", lambda ip: False)

    async def act(server: OpenAI) -> None:
        with pytest.raises(NotAuthorised, match="in the clear"):
            async with connected(server.url, key="secret"):
                raise AssertionError("it cannot be connected")
        assert server.paths == []
        async with connected(server.url) as target:
            assert len(await ask(target)) == 7

    play(act)


def test_the_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXO_API_KEY", "sk-now")
    assert api_key(None, os.environ) == api_key(None) == "sk-now"


@pytest.fixture(autouse=True)
def no_warnings_of_the_loop(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A task or socket left behind would be told of by the loop."""
    yield
    assert [each.message for each in caplog.records if each.name == "asyncio"] == []


def test_a_server_object_says_where_it_asks() -> None:
    assert Server(parse_url("http://127.0.0.1:1"), None).base == "/v1"
    assert Server(parse_url("http://127.0.0.1:1/openai/v1"), None).base == "/openai/v1"
    ways = Server(parse_url("http://127.0.0.1:1/api/chat/completions"), None)
    assert ways.base == "/api"
    assert {way.api for way in ways.ways} == {"chat"}
