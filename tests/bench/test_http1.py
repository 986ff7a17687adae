"""HTTP answers in whatever pieces they come; what is none is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.bench.http1 import MAX_HEAD_BYTES, MAX_LINE_BYTES, ResponseReader, Url, parse_url
from exo_cli.errors import BadData, UsageProblem

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1;name=value\r\n \r\nA\r\nworld\r\nand\r\n0\r\ntrailer: x\r\n\r\n"
)
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\nnone"
OPEN_END = b"HTTP/1.0 200 OK\r\nContent-type: text/event-stream\r\n\r\ndata: a\n\ndata: b\n\n"
BETWEEN = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"


def read(data: bytes, cuts: list[int]) -> tuple[ResponseReader, bytes]:
    reader, body, at = ResponseReader(), b"", 0
    for cut in [*sorted(cuts), len(data)]:
        body += reader.feed(data[at:cut])
        at = cut
    return reader, body


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=8))
def test_chunks_are_put_together_wherever_the_network_cuts_them(cuts: list[int]) -> None:
    reader, body = read(CHUNKED, cuts)
    assert (reader.status, body) == (200, b"hello world\r\nand")
    assert reader.done
    assert reader.keeps_open
    assert reader.headers["content-type"] == "text/event-stream"


@given(st.lists(st.integers(0, len(SIZED)), max_size=8))
def test_an_answer_with_a_length_ends_there(cuts: list[int]) -> None:
    reader, body = read(SIZED, cuts)
    assert (reader.status, body, reader.done, reader.keeps_open) == (404, b"none", True, False)


@given(st.lists(st.integers(0, len(OPEN_END)), max_size=8))
def test_an_answer_without_a_length_ends_with_the_connection(cuts: list[int]) -> None:
    reader, body = read(OPEN_END, cuts)
    assert body == b"data: a\n\ndata: b\n\n"
    assert not reader.done
    assert reader.end()
    assert reader.done
    assert not reader.keeps_open


def test_a_chunked_answer_that_stops_is_not_whole() -> None:
    reader, body = read(CHUNKED[:-20], [])
    assert body.startswith(b"hello")
    assert not reader.end()


def test_a_word_between_is_passed_over() -> None:
    reader, body = read(BETWEEN + SIZED, [10])
    assert (reader.status, body) == (404, b"none")
    assert "link" not in reader.headers


def test_an_answer_without_a_body_is_over_at_once() -> None:
    for head in (b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"):
        assert ResponseReader().feed(head) == b""
        reader, _ = read(head, [])
        assert reader.done
        assert reader.keeps_open


def test_more_than_was_asked_for_ends_the_connection() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"
    assert read(whole + b"x", [])[0].keeps_open
    reader, body = read(whole + b"xy", [])
    assert (body, reader.done, reader.keeps_open) == (b"x", True, False)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nspaced : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"f" * (MAX_LINE_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES,
    ],
)
def test_what_is_no_http_is_refused(data: bytes) -> None:
    with pytest.raises(BadData):
        ResponseReader().feed(data)


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_no_bytes_break_the_reader(pieces: list[bytes]) -> None:
    reader = ResponseReader()
    try:
        for piece in [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", *pieces]:
            reader.feed(piece)
    except BadData:
        return
    reader.end()


def test_a_url_is_taken_apart() -> None:
    assert parse_url("http://127.0.0.1:8080") == Url("127.0.0.1", 8080, False, "")
    assert parse_url("http://studio.local/") == Url("studio.local", 80, False, "")
    assert parse_url("https://example.test/openai/v1/") == Url("example.test", 443, True, "/openai/v1")
    assert parse_url("http://[::1]:9/v1") == Url("::1", 9, False, "/v1")
    assert str(parse_url("http://[::1]:9/v1")) == "http://[::1]:9/v1"


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1:8080", "ftp://host", "http://", "http://host:0", "http://host:99999", "http://ho st"),
        *("http://user:secret@host", "http://host/v1?key=1", "http://host/#x", "http://h\x00st", "http://ä"),
        *("http://[::1", "http://host\r\nx: y", "http://a..b", f"http://{'x' * 64}.test", "http://."),
    ],
)
def test_what_is_no_url_is_refused_and_no_secret_is_repeated(text: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_url(text)
    assert "secret@" not in caught.value.message
