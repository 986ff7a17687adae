"""A server that speaks OpenAI's API as far as a load needs it, in the test's own loop, with every fault.

Its model counts words: a text has one token a word, and one for its beginning. Answers follow from the
prompt, so equal prompts give equal texts.
"""

import asyncio
import contextlib
import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Fault = Literal[
    "cut",
    "vanish",
    "throttled",
    "broken",
    "in-stream",
    "not-streamed",
    "silent",
    "no-http",
    "no-json",
    "redirect",
    "no-end",
    "closed-at-once",
]
EXTENSIONS = frozenset(("ignore_eos", "timings_per_token", "cache_prompt", "cache_salt"))


@dataclass
class OpenAI:
    """What the server takes and does; what it was asked."""

    takes_ids: bool = True
    beginning: int = 0
    """Tokens that it puts before ids."""
    extensions: bool = True
    usage: bool = True
    apis: frozenset[str] = frozenset(("completions", "chat"))
    running: Literal["usage", "timings", None] = None
    """Whether each piece says how many tokens there were."""
    per_piece: int = 1
    key: str | None = None
    models: tuple[str, ...] = ("tiny",)
    n_vocab: int | None = 1000
    http10: bool = False
    """Closes after each answer, and says no length."""
    hangs_up: bool = False
    """Promises to keep the connection, and closes it all the same."""
    faults: list[Fault | None] = field(default_factory=list)
    """For the answers to come, one each; then none."""
    most: int | None = None
    """Ends by itself after so many tokens."""
    retry_after: str = "0"
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    connections: int = 0

    def loaded(self) -> list[dict[str, Any]]:
        """The requests that were no probes."""
        return [each for each in self.asked if each["max_tokens"] > 1]

    # -- HTTP ------------------------------------------------------------------------------------

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        self.paths.append(path)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return await self._json(writer, 401, {"error": {"message": "Invalid API key"}})
        if method == "GET":
            meta = {"n_vocab": self.n_vocab} if self.n_vocab is not None else None
            listed = [{"id": each, "meta": meta} for each in self.models]
            return await self._json(writer, 200, {"data": listed})
        return await self._answer(writer, path, json.loads(body))

    async def _json(self, writer: asyncio.StreamWriter, status: int, body: object, extra: str = "") -> bool:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{extra}"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()
        return not self.http10

    # -- the API ---------------------------------------------------------------------------------

    async def _answer(self, writer: asyncio.StreamWriter, path: str, asked: dict[str, Any]) -> bool:
        api = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}.get(path)
        if api not in self.apis:
            return await self._json(writer, 404, {"detail": "Not Found"})
        if not self.extensions and EXTENSIONS & set(asked):
            return await self._json(writer, 400, {"error": {"message": "Unrecognized request argument"}})
        if not self.usage and "stream_options" in asked:
            return await self._json(writer, 422, {"error": "stream_options: extra inputs"})
        prompt = asked["messages"][0]["content"] if api == "chat" else asked["prompt"]
        if not isinstance(prompt, str) and not self.takes_ids:
            return await self._json(writer, 400, {"error": "prompt must be a string"})
        if not isinstance(prompt, str) and self.n_vocab is not None and max(prompt) >= self.n_vocab:
            return await self._json(writer, 400, {"error": "Prompt contains invalid tokens"})
        self.asked.append(asked)
        fault = self.faults.pop(0) if self.faults else None
        return await self._faulty(writer, fault, api or "", prompt, asked)

    async def _faulty(
        self, writer: asyncio.StreamWriter, fault: Fault | None, api: str, prompt: Any, asked: dict[str, Any]
    ) -> bool:
        if fault == "closed-at-once":
            return False
        if fault == "no-http":
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n\r\n\r\n")
            await writer.drain()
            return False
        if fault == "silent":
            await asyncio.sleep(3600)
        if fault == "throttled":
            extra = f"retry-after: {self.retry_after}\r\n"
            return await self._json(writer, 429, {"error": {"message": "slow down"}}, extra)
        if fault == "broken":
            return await self._json(writer, 500, {"error": {"message": "out of \x1b[31mmemory"}})
        if fault == "redirect":
            return await self._json(writer, 307, {}, "location: http://127.0.0.1:9/v1\r\n")
        if fault == "not-streamed":
            return await self._json(writer, 200, {"choices": [{"text": "all of it"}]})
        return await self._stream(writer, fault, self._events(fault, api, prompt, asked))

    async def _stream(self, writer: asyncio.StreamWriter, fault: Fault | None, events: list[str]) -> bool:
        version = "1.0" if self.http10 else "1.1"
        head = f"HTTP/{version} 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        writer.write(head.encode() + (b"\r\n" if self.http10 else b"transfer-encoding: chunked\r\n\r\n"))
        for event in events:
            data = event.encode()
            writer.write(data if self.http10 else b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(0)
        if fault in ("cut", "vanish"):
            if fault == "cut":
                # Without a word, where a FIN would be the end of an answer without a length.
                writer.transport.abort()
            return False
        if not self.http10:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not (self.http10 or self.hangs_up)

    def _events(self, fault: Fault | None, api: str, prompt: Any, asked: dict[str, Any]) -> list[str]:
        text = isinstance(prompt, str)
        tokens_in = 1 + len(prompt.split()) if text else len(prompt) + self.beginning
        if api == "chat":
            tokens_in += 5
        length = asked["max_tokens"] if self.most is None else min(asked["max_tokens"], self.most)
        seed = hashlib.sha256(json.dumps(prompt).encode()).digest()
        words = [f" w{seed[number % 32]}" for number in range(length)]
        # A comment, as servers send one to keep a connection alive.
        events = [": busy\n\n"]
        done = 0
        while done < length:
            some = words[done : done + self.per_piece]
            done += len(some)
            piece: dict[str, Any] = {"choices": [_choice(api, "".join(some), None)]}
            if self.running == "usage":
                piece["usage"] = {"prompt_tokens": tokens_in, "completion_tokens": done}
            elif self.running == "timings":
                piece["timings"] = {"predicted_n": done, "cache_n": 0}
            events.append(f"data: {json.dumps(piece)}\n\n")
            if done >= length / 2 and fault in ("cut", "vanish"):
                return events
            if done >= length / 2 and fault == "in-stream":
                return [*events, 'data: {"error": {"message": "the engine died"}}\n\n']
            if done >= length / 2 and fault == "no-json":
                return [*events, "data: {nothing\n\n"]
        if fault == "no-end":
            return events
        events.append(f"data: {json.dumps({'choices': [_choice(api, '', 'length')]})}\n\n")
        if self.usage and asked.get("stream_options", {}).get("include_usage"):
            usage: dict[str, Any] = {"prompt_tokens": tokens_in, "completion_tokens": length}
            usage["prompt_tokens_details"] = {"cached_tokens": 0}
            events.append(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n")
        return [*events, "data: [DONE]\n\n"]


def _choice(api: str, text: str, reason: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {"delta": {"content": text}} if api == "chat" else {"text": text}
    return {"index": 0, "finish_reason": reason, **said}


@asynccontextmanager
async def serving(*, tls: ssl.SSLContext | None = None, **settings: Any) -> AsyncIterator[OpenAI]:
    """Such a server on a free port of the loopback."""
    made = OpenAI(**settings)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await made.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    made.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
