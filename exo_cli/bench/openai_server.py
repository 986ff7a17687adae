"""Asking a server that has an OpenAI-compatible API: how it wants to be asked, and what it answers.

Completions or chat, always streamed; every failure is one of our errors. Knows nothing of prompts and of
what is done with the times.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from exo_cli import __version__
from exo_cli.bench.http1 import Url
from exo_cli.bench.http_client import Client, Response
from exo_cli.bench.openai_stream import AnswerReader, message
from exo_cli.bench.sse import Events
from exo_cli.bench.target import Arrival, Counted
from exo_cli.errors import BadData, ExoError, InputOutput, NotAuthorised, NotFound, TryAgain, Unavailable
from exo_cli.schemas.first_use import shared

SILENCE_S: Final = 600.0
MAX_ERROR_BYTES: Final = 16 << 10
MAX_MODELS_BYTES: Final = 4 << 20
KEY_VARIABLE: Final = "EXO_API_KEY"


class Throttled(TryAgain):
    """The server asks for fewer requests."""

    def __init__(self, said: str, after_s: float) -> None:
        super().__init__(said, hint="Ask for a smaller --concurrency.")
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Manner:
    """How a server wants to be asked."""

    api: Literal["completions", "chat"]
    prompts: Literal["ids", "text"]
    extras: Literal["all", "usage", "none"]
    """`all`: the extensions of vLLM and llama-server, which most others pass over; `usage`: the official
    way to be told the counts."""

    @property
    def path(self) -> str:
        return "/completions" if self.api == "completions" else "/chat/completions"

    def body(
        self, prompt: str | Sequence[int], max_tokens: int, *, seed: int, greedy: bool, salt: str | None
    ) -> dict[str, Any]:
        """With no salt the server may keep what it computed for a later prompt."""
        asked: dict[str, Any] = {"max_tokens": max_tokens, "stream": True, "seed": seed}
        asked["temperature"] = 0.0 if greedy else 1.0
        if self.api == "chat":
            asked["messages"] = [{"role": "user", "content": prompt}]
        else:
            asked["prompt"] = prompt
        if self.extras != "none":
            asked["stream_options"] = {"include_usage": True}
        if self.extras == "all":
            asked["stream_options"]["continuous_usage_stats"] = True
            asked |= {"ignore_eos": True, "timings_per_token": True, "cache_prompt": salt is None}
            if salt is not None:
                asked["cache_salt"] = salt
        return asked


def manners(path: str) -> tuple[str, list[Manner]]:
    """The base of a server's paths, and how it may be asked, the best way first."""
    apis: tuple[Literal["completions", "chat"], ...] = ("completions", "chat")
    for api, end in (("chat", "/chat/completions"), ("completions", "/completions")):
        if path.endswith(end):
            path, apis = path.removesuffix(end), (api,)  # type: ignore[assignment]
            break
    ways = [
        Manner(api, prompts, extras)
        for api in apis
        for prompts in ("ids", "text")
        for extras in ("all", "usage", "none")
        if not (api == "chat" and prompts == "ids")
    ]
    return path or "/v1", ways


class _Meta(msgspec.Struct):
    n_vocab: int | None = None


class _Model(msgspec.Struct):
    id: str
    meta: _Meta | None = None


class _Models(msgspec.Struct):
    data: list[_Model] = []


class Server:
    """Asks; says how it failed in our own errors."""

    def __init__(self, url: Url, key: str | None, *, silence_s: float = SILENCE_S) -> None:
        headers = {"accept": "text/event-stream, application/json", "user-agent": f"exo/{__version__}"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self.who = str(url)
        self.base, self.ways = manners(url.path)
        self._client = Client(url, headers, secret=key is not None, silence_s=silence_s)

    async def close(self) -> None:
        await self._client.close()

    async def models(self) -> list[_Model]:
        """What it says that it serves; empty where it does not say."""
        try:
            async with self._client.ask("GET", f"{self.base}/models") as response:
                if response.status in (401, 403, 429):
                    raise await self._refusal(response)
                if response.status != 200:
                    return []
                body = await response.text(MAX_MODELS_BYTES)
            return msgspec.json.decode(body, type=shared(_Models)).data
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return []

    async def stream(
        self, path: str, asked: dict[str, Any], *, pause_s: float = 0.0
    ) -> AsyncGenerator[Arrival | Counted, None]:
        """An answer, piece by piece, then what was counted.

        Who is sent away for now waits as long as was asked for, `pause_s` at most, and fails then.
        """
        body = msgspec.json.encode(asked)
        async with self._client.ask("POST", self.base + path, body) as response:
            if response.status != 200:
                refusal = await self._refusal(response)
                if isinstance(refusal, Throttled):
                    await asyncio.sleep(min(refusal.after_s, pause_s))
                raise refusal
            kind = response.header("content-type").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                raise BadData(
                    f"{self.who} does not stream its answer: it is {kind or 'of no type'}",
                    hint="exo bench needs the times of the tokens: switch streaming on there.",
                )
            reader, events = AnswerReader(self.who), Events()
            while (piece := await response.piece()) is not None:
                at_s, some = piece
                for data in events.feed(some):
                    arrival = reader.read(at_s, data)
                    if arrival is not None:
                        yield arrival
            for data in events.feed(b"\n\n"):
                # An end without an empty line after it.
                reader.read(0.0, data)
            if not reader.ended:
                raise InputOutput(f"{self.who} cut its answer off", hint="Its own log says why.")
            yield reader.counted()

    async def _refusal(self, response: Response) -> ExoError:
        status = response.status
        body = b""
        with contextlib.suppress(InputOutput):
            body = await response.text(MAX_ERROR_BYTES)
        said = (
            f"{self.who} answers {status}: {message(body)}" if body.strip() else f"{self.who} says {status}"
        )
        if status in (401, 403):
            return NotAuthorised(said, hint=f"Put the server's API key into {KEY_VARIABLE}, or into a file.")
        if status == 404:
            return NotFound(said, hint="Is the URL right, and the model's name?")
        if status in (429, 503):
            after = response.header("retry-after")
            return Throttled(said, float(after) if after.isascii() and after.isdigit() else 1.0)
        if 300 <= status < 400:
            return BadData(
                f"{self.who} sends us elsewhere ({status})", hint="Give the URL where the server itself is."
            )
        return Unavailable(said) if status >= 500 else BadData(said)
