"""Pieces of answers as real servers send them, and what is none."""

import json

import pytest

from exo_cli.bench.openai_stream import AnswerReader, message
from exo_cli.bench.sse import Events
from exo_cli.bench.target import Arrival, Counted
from exo_cli.errors import BadData, Unavailable

# As llama-server sent it (0.5.0-dev, completions, timings_per_token), shortened where nothing is read.
LLAMA = b"""\
data: {"choices":[{"text":"<10347>","index":0,"logprobs":null,"finish_reason":null}],"created":1,\
"object":"text_completion","timings":{"cache_n":0,"prompt_n":4,"prompt_ms":5.834,"predicted_n":1}}

data: {"choices":[{"text":"<10563>","index":0,"logprobs":null,"finish_reason":null}],"created":1,\
"object":"text_completion","timings":{"cache_n":0,"prompt_n":4,"prompt_ms":5.834,"predicted_n":3}}

data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"created":1,\
"usage":{"completion_tokens":3,"prompt_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":2}},\
"timings":{"cache_n":2,"prompt_n":4,"predicted_n":3}}

data: [DONE]

"""
# As mlx_lm.server 0.32.2 sent it, shortened likewise.
MLX = b"""\
: keepalive 6/7

data: {"id": "cmpl-b9", "choices": [{"index": 0, "finish_reason": null, "text": "That"}]}

data: {"id": "cmpl-b9", "choices": [{"index": 0, "finish_reason": null, "text": " is"}]}

data: {"id": "cmpl-b9", "choices": [{"index": 0, "finish_reason": "length", "text": ""}]}

data: {"id": "cmpl-b9", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, \
"total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}}

data: [DONE]

"""


def read(stream: bytes) -> tuple[list[Arrival], AnswerReader]:
    reader = AnswerReader("http://host:1")
    found = [reader.read(float(at), data) for at, data in enumerate(Events().feed(stream))]
    return [each for each in found if each is not None], reader


def test_llama_servers_running_count_says_how_many_tokens_a_piece_has() -> None:
    arrivals, reader = read(LLAMA)
    assert arrivals == [Arrival(0.0, "<10347>", 1), Arrival(1.0, "<10563>", 2)]
    assert reader.ended
    assert reader.counted() == Counted(input_tokens=4, cached_tokens=2, output_tokens=3)


def test_mlx_lm_servers_pieces_are_tokens() -> None:
    arrivals, reader = read(MLX)
    assert arrivals == [Arrival(0.0, "That"), Arrival(1.0, " is")]
    assert reader.ended
    assert reader.counted() == Counted(input_tokens=7, cached_tokens=0, output_tokens=2)


def event(**keys: object) -> bytes:
    return b"data: " + json.dumps(keys).encode() + b"\n\n"


def test_chat_text_and_thought_count_and_empty_pieces_do_not() -> None:
    def chat(**delta: object) -> bytes:
        return event(choices=[{"delta": delta, "finish_reason": None}])

    stream = chat(role="assistant", content="") + chat(reasoning_content="hm") + chat(content="yes")
    arrivals, reader = read(stream + chat(reasoning="so") + chat(tool_calls=[]))
    assert [each.token for each in arrivals] == ["hm", "yes", "so"]
    assert not reader.ended


def test_counts_of_vllm_with_tokens_held_back() -> None:
    def piece(text: str, done: int) -> bytes:
        return event(choices=[{"text": text}], usage={"prompt_tokens": 9, "completion_tokens": done})

    # A token that is half a character brings no text; the next one brings both.
    arrivals, _ = read(piece("a", 1) + piece("", 2) + piece("é", 3) + piece("b", 3))
    assert [each.count for each in arrivals] == [1, 2, 1]


def test_an_error_in_the_stream_is_one() -> None:
    with pytest.raises(Unavailable, match="fails while it answers: 'the engine died'"):
        read(event(error={"message": "the engine died"}))
    assert read(event(error=None, choices=[{"text": "a"}]))[0] == [Arrival(0.0, "a")]


@pytest.mark.parametrize(
    "data",
    [
        b"data: nothing\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": 3}\n\n',
        b'data: {"choices": [{"text": 3}]}\n\n',
        b'data: {"usage": {"completion_tokens": -1}}\n\n',
        b'data: {"usage": {"prompt_tokens": 1e99}}\n\n',
        b'data: {"choices": [{"text": "\xff"}]}\n\n',
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(BadData, match="streams what is no answer"):
        read(data)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "too  long", "code": 400}}',
        b'{"error": "too long"}',
        b'{"message": "too long"}',
        b'{"detail": "too long"}',
        b'"too long"',
        b"too\nlong",
    ],
)
def test_a_servers_words_are_found(body: bytes) -> None:
    assert message(body) == "'too long'"


def test_a_servers_words_have_no_power_and_an_end() -> None:
    assert "\x1b" not in message(b'{"error": "\\u001b[31mred"}')
    assert len(message(b"x" * 10_000)) <= 100
    assert message(b"\xff\xfe{}")
