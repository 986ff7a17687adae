"""The pieces of a streamed completion or chat answer, read as arrivals of tokens. Pure.

A piece holds one token or several. How many is taken from the server's running count where it tells one
(`usage` of vLLM, `timings` of llama-server), else a piece counts as one, and the `usage` at the end says
how many there were. Knows nothing of HTTP.
"""

from typing import Annotated, Final

import msgspec

from exo_cli.bench.target import Arrival, Counted
from exo_cli.errors import BadData, Unavailable
from exo_cli.models.safetensors import shown
from exo_cli.schemas.first_use import shared

DONE: Final = b"[DONE]"

_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    predicted_n: _Count | None = None
    cache_n: _Count | None = None


class _Piece(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(_Piece)


class AnswerReader:
    """Reads one answer."""

    def __init__(self, who: str) -> None:
        self.ended = False
        """Whether the server said that this is all."""
        self._who = who
        self._told = 0
        self._usage = _Usage()
        self._timings = _Timings()

    def read(self, at_s: float, data: bytes) -> Arrival | None:
        """One event; None where it brings no text."""
        if data == DONE:
            self.ended = True
            return None
        try:
            piece = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as wrong:
            raise BadData(f"{self._who} streams what is no answer: {shown(data[:60])}") from wrong
        if (error := bytes(piece.error)) != b"null":
            raise Unavailable(f"{self._who} fails while it answers: {message(error)}")
        if piece.usage is not None:
            self._usage = piece.usage
        if piece.timings is not None:
            self._timings = piece.timings
        if not piece.choices:
            return None
        choice = piece.choices[0]
        if choice.finish_reason:
            self.ended = True
        text = _text(choice)
        if not text:
            return None
        count = max(self._running(piece) - self._told, 1)
        self._told += count
        return Arrival(at_s, text, count)

    def _running(self, piece: _Piece) -> int:
        """How many tokens there were until now, if the server tells with each piece."""
        if piece.usage is not None and piece.usage.completion_tokens is not None:
            return piece.usage.completion_tokens
        if piece.timings is not None and piece.timings.predicted_n is not None:
            return piece.timings.predicted_n
        return 0

    def counted(self) -> Counted:
        """What the server says of the whole answer."""
        details = self._usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        return Counted(
            input_tokens=self._usage.prompt_tokens,
            cached_tokens=cached if cached is not None else self._timings.cache_n or 0,
            output_tokens=self._usage.completion_tokens,
        )


def _text(choice: _Choice) -> str:
    delta = choice.delta
    if delta is None:
        return choice.text or ""
    return (delta.reasoning_content or "") + (delta.reasoning or "") + (delta.content or "")


class _Said(msgspec.Struct):
    message: str | None = None
    detail: str | None = None


class _Wrapped(msgspec.Struct):
    error: _Said | str


def message(body: bytes) -> str:
    """What an error says, whichever of the usual shapes it has; short and harmless."""
    said = body.decode(errors="replace")
    for shape in (_Wrapped, _Said, str):
        try:
            found: object = msgspec.json.decode(body, type=shared(shape))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
        inner = found.error if isinstance(found, _Wrapped) else found
        told = (inner.message or inner.detail) if isinstance(inner, _Said) else inner
        if isinstance(told, str) and told:
            said = told
            break
    return shown(" ".join(said.split())[:300])
