"""A server with an OpenAI-compatible API as a load's target.

What the server takes is found out before anything is measured: token ids or text for a prompt, and the
extensions that make a load exact. Texts are told where servers tell no ids. Knows nothing of the load,
nor of figures.
"""

import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

from exo_cli.bench.http1 import parse_url
from exo_cli.bench.openai_server import KEY_VARIABLE, SILENCE_S, Manner, Server
from exo_cli.bench.openai_words import Wording, calibrate
from exo_cli.bench.target import Arrival, Counted, StageTraces
from exo_cli.errors import BadData, ExoError, InputOutput, NotAuthorised, NotFound, TryAgain

MAX_PAUSE_S: Final = 30.0
MAX_KEY_BYTES: Final = 4096
_PLAIN_IDS: Final = 300
"""Ids below are often no text: ends of turns, bytes."""
_GUESSED_IDS: Final = 30_000
_PROBE_IDS: Final = 24


def api_key(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """From the file, else from the environment; never from the command line, which others can read."""
    where = str(file) if file is not None else KEY_VARIABLE
    if file is None:
        key = environment.get(KEY_VARIABLE, "")
    else:
        try:
            with open(file, "rb") as opened:
                key = opened.read(MAX_KEY_BYTES + 1).decode("ascii", "replace")
        except FileNotFoundError as error:
            raise NotFound(f"there is no file {file}", hint="Put the API key into one.") from error
        except OSError as error:
            raise InputOutput(
                f"cannot read {file}: {(error.strerror or '').lower()}", hint="Name a file with the API key."
            ) from error
        if not key.strip():
            raise BadData(f"{file} is empty", hint="Put the API key into it.")
    key = key.strip()
    if len(key) > MAX_KEY_BYTES or any(not "!" <= char <= "~" for char in key):
        raise BadData(f"what {where} holds is no API key", hint="A key is one line of plain characters.")
    return key or None


class OpenAITarget:
    """A server whose manner is known."""

    remembers = True
    """Not all servers can be told to forget."""

    def __init__(
        self, server: Server, model: str | None, manner: Manner, vocabulary: int, wording: Wording
    ) -> None:
        self.name = f"openai {server.who}"
        self.model = model
        self.manner = manner
        self.wording = wording
        small = vocabulary <= 2 * _PLAIN_IDS
        self._first_id = 0 if small else _PLAIN_IDS
        self.vocabulary = vocabulary - self._first_id
        self._server = server
        # Of this run: a server may have met the same prompts in another one.
        self._run = os.urandom(6).hex()
        self._numbers = itertools.count()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures has to know."""
        notes = []
        if not self.wording.exact:
            notes.append("the server does not tell how many tokens it counts: sizes are guessed")
        elif self.manner.prompts == "text":
            notes.append("the server takes no token ids: prompts are words of a measured number of tokens")
        if self.manner.extras != "all":
            notes.append("the server cannot be told to go on after an end of text: answers may be shorter")
        return tuple(notes)

    def open(
        self, prompt: Sequence[int], max_tokens: int, *, seed: int, greedy: bool, keep: bool = False
    ) -> AsyncGenerator[Arrival | Counted, None]:
        written: str | list[int]
        if self.manner.prompts == "ids":
            shown = prompt[: max(len(prompt) - self.wording.overhead, 1)]
            written = [self._first_id + each for each in shown]
        else:
            written = self.wording.text(prompt)
        salt = None if keep else f"{self._run}-{next(self._numbers)}"
        asked = self.manner.body(written, max_tokens, seed=seed, greedy=greedy, salt=salt)
        if self.model is not None:
            asked["model"] = self.model
        # Who is sent away comes back at once in a closed loop, so the pause is made here.
        return self._server.stream(self.manner.path, asked, pause_s=MAX_PAUSE_S)

    def traces(self) -> Sequence[StageTraces] | None:
        return None


@asynccontextmanager
async def connected(
    url: str, *, model: str | None = None, key: str | None = None, silence_s: float = SILENCE_S
) -> AsyncIterator[OpenAITarget]:
    """A target, after a few small requests that show what the server takes."""
    server = Server(parse_url(url), key, silence_s=silence_s)
    try:
        yield await _introduced(server, model)
    finally:
        await server.close()


async def _introduced(server: Server, model: str | None) -> OpenAITarget:
    models = await server.models()
    if model is None and len(models) == 1:
        model = models[0].id
    told = next((each.meta.n_vocab for each in models if each.id == model and each.meta is not None), None)
    vocabulary = told if told is not None and 0 < told < 2**31 else _GUESSED_IDS
    failures: list[ExoError] = []
    misread: set[str] = set()
    for way in server.ways:
        if way.prompts in misread:
            continue
        try:
            wording = await _tried(server, model, way, vocabulary)
        except (NotAuthorised, TryAgain):
            raise
        except ExoError as failure:
            failures.append(failure)
            continue
        if wording is not None:
            return OpenAITarget(server, model, way, vocabulary, wording)
        misread.add(way.prompts)
    telling = [failure for failure in failures if not isinstance(failure, NotFound)]
    raise (telling or failures)[-1]


async def _tried(server: Server, model: str | None, way: Manner, vocabulary: int) -> Wording | None:
    """How prompts are written in this manner; None if the server takes them for something else."""

    async def count(prompt: str | Sequence[int]) -> int | None:
        asked = way.body(prompt, 1, seed=0, greedy=True, salt=os.urandom(6).hex())
        if model is not None:
            asked["model"] = model
        counted = Counted()
        async with aclosing(server.stream(way.path, asked)) as come:
            async for each in come:
                if isinstance(each, Counted):
                    counted = each
        if counted.input_tokens == 0:
            raise BadData(f"{server.who} reads no tokens in a prompt", hint="Has its model a tokenizer?")
        return counted.input_tokens

    if way.prompts == "text":
        return await calibrate(count)
    ids = [(vocabulary - 1) * each // (_PROBE_IDS - 1) for each in range(_PROBE_IDS)]
    found = await count(ids)
    if found is None:
        return Wording()
    # Some put a beginning of text before it. What is much longer was read as text.
    overhead = found - len(ids)
    return Wording(overhead=overhead, exact=True) if 0 <= overhead <= 2 else None
