"""Token ids to text, one at a time: text appears as soon as nothing that follows can change it.

The pieces, joined, are exactly what the tokenizer's own decode makes of all ids at once. A
tokenizer's decoder is a chain of small steps; each has its streaming twin here:

    ByteLevel      bytes to UTF-8: an unfinished character waits for its last byte
    ByteFallback   a run of byte tokens is text only if all of it is UTF-8, so a run waits for its end
    Metaspace      the first token loses its leading mark, the others turn theirs into spaces
    Replace        a string within each token
    Strip          spaces at the start of each token, or of the text once it is fused
    Fuse           joins what came before

A chain with any other step (WordPiece, CTC: no language models of today) is decoded whole at the
end, by the tokenizer itself. Each id costs the same, however long the text is. Knows nothing of
stop strings, and nothing of what the special tokens mean.
"""

import codecs
import json
import re
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, Final, Protocol

import tokenizers

_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
_REPLACEMENT: Final = "\ufffd"


class _Step(Protocol):
    def feed(self, text: str) -> list[str]: ...

    def flush(self) -> list[str]: ...


class Detokenizer:
    """One stream of ids of one tokenizer; `feed` the ids in order, `flush` once at the end.

    With `skip_special`, tokens marked special leave no trace, as in the tokenizer's decode; those
    in `keep` stay all the same (thinking tags that a family made special tokens). Ids that the
    vocabulary does not have (a padded embedding) are nothing.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, skip_special: bool = True, keep: Collection[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._skipped = (
            {token.content for token in added.values() if token.special}
            - {added[id_].content for id_ in keep if id_ in added}
            if skip_special
            else set()
        )
        steps = _steps(tokenizer)
        self._steps = steps or ()
        self._whole: list[int] | None = None if steps is not None else []

    def feed(self, token_id: int) -> str:
        """The text that became final with this id; often one word, sometimes nothing."""
        if token_id < 0:
            raise ValueError(f"a token id is not negative, and {token_id} is")
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token in self._skipped:
            return ""
        if self._whole is not None:
            self._whole.append(token_id)
            return ""
        return self._run([token], 0)

    def flush(self) -> str:
        """What was still waiting, now that no id follows; the stream starts anew after it."""
        if self._whole is not None:
            ids, self._whole = self._whole, []
            return str(self._tokenizer.decode(ids, skip_special_tokens=False))
        text = "".join(self._run(step.flush(), number + 1) for number, step in enumerate(self._steps))
        self._steps = _steps(self._tokenizer) or ()
        return text

    def _run(self, elements: list[str], first: int) -> str:
        for step in self._steps[first:]:
            if not elements:
                return ""
            elements = [out for element in elements for out in step.feed(element)]
        return "".join(elements)


class _Each:
    """A step that changes every token by itself."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def feed(self, text: str) -> list[str]:
        return [self._change(text)]

    def flush(self) -> list[str]:
        return []


class _FirstAndRest:
    """A step that treats the first token in another way than the others."""

    def __init__(self, first: Callable[[str], str], rest: Callable[[str], str]) -> None:
        self._change, self._rest = first, rest

    def feed(self, text: str) -> list[str]:
        change, self._change = self._change, self._rest
        return [change(text)]

    def flush(self) -> list[str]:
        return []


class _ByteRuns:
    """Tokens like <0xE6>: a run of them is one text if it is UTF-8, else a mark for each byte."""

    def __init__(self) -> None:
        self._run = bytearray()

    def feed(self, text: str) -> list[str]:
        byte = _BYTE_TOKEN.fullmatch(text)
        if byte is not None:
            self._run.append(int(byte[1], 16))
            return []
        return [*self.flush(), text]

    def flush(self) -> list[str]:
        run, self._run = self._run, bytearray()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return [_REPLACEMENT] * len(run)


class _ByteLevel:
    """Tokens spelled in the 256 printable stand-ins for bytes; a token with any other character is itself."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, text: str) -> list[str]:
        table = _stand_ins()
        try:
            data = bytes([table[char] for char in text])
        except KeyError:
            data = text.encode()
        return [self._decoder.decode(data)]

    def flush(self) -> list[str]:
        return [self._decoder.decode(b"", final=True)]


class _StripText:
    """Up to `count` characters at the very start of the text; an empty piece is not the start."""

    def __init__(self, content: str, count: int) -> None:
        self._content, self._left = content, count

    def feed(self, text: str) -> list[str]:
        while self._left and text:
            if not text.startswith(self._content):
                self._left = 0
                break
            text = text[1:]
            self._left -= 1
        return [text]

    def flush(self) -> list[str]:
        return []


@lru_cache(maxsize=1)
def _stand_ins() -> dict[str, int]:
    """Printable Latin-1 stands for itself; the other bytes are numbered from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _steps(tokenizer: tokenizers.Tokenizer) -> tuple[_Step, ...] | None:
    """Streaming twins of the tokenizer's decoder; None if a step has none."""
    if tokenizer.decoder is None:
        return (_FirstAndRest(lambda token: token, lambda token: f" {token}"),)
    steps: list[_Step] = []
    fused = False
    for state in _flat(json.loads(tokenizer.decoder.__getstate__())):
        if state["type"] == "Fuse":
            fused = True
            continue
        step = _step(state, fused)
        if step is None:
            return None
        steps.append(step)
        fused = fused or state["type"] == "ByteLevel"
    return tuple(steps)


def _flat(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [inner for part in state["decoders"] for inner in _flat(part)]


def _step(state: dict[str, Any], fused: bool) -> _Step | None:
    match state:
        case {"type": "Strip", "stop": 0, "start": start, "content": content}:
            return _StripText(content, start) if fused else _Each(_stripping(content, start))
        case _ if fused:
            return None
        case {"type": "ByteLevel"}:
            return _ByteLevel()
        case {"type": "ByteFallback"}:
            return _ByteRuns()
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return _Each(lambda token: token.replace(pattern, content))
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
            return _FirstAndRest(
                lambda token: token.replace(mark, " " if scheme == "never" else ""),
                lambda token: token.replace(mark, " "),
            )
    return None


def _stripping(content: str, count: int) -> Callable[[str], str]:
    return lambda token: _StripText(content, count).feed(token)[0]
