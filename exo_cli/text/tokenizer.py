"""A model's tokenizer, from its directory: text to ids and back, special tokens, and where to stop.

`tokenizer.json` is the truth about text and ids, also about the tokens put before and after a text;
`add_bos_token` in tokenizer_config.json does not overrule it (transformers 5 and so mlx-lm do the
same). The other files name the special tokens and add the few that tokenizer.json may lack. Ids that
end a generation are those of every file together: generation_config.json, config.json and the
tokenizer's own end token. Knows nothing of chats and templates beyond handing on the configuration.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken

from exo_cli.errors import BadData, NotFound
from exo_cli.text.detokenizer import Detokenizer
from exo_cli.text.files import read_bytes, read_object

MAX_TOKENIZER_BYTES: Final = 128 * 1024 * 1024
"""The largest today are about a quarter of it."""
MAX_ADDED_TOKENS: Final = 100_000

_OTHER_KINDS: Final = ("tokenizer.model", "tiktoken.model", "tekken.json", "vocab.json", "spiece.model")
_FIELDS: Final = {"lstrip", "rstrip", "single_word", "normalized", "special"}


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Safe to share between threads and requests: nothing in it changes."""

    library: tokenizers.Tokenizer = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    """tokenizer_config.json as it stands."""
    special_tokens: dict[str, str]
    """By name, as templates know them: bos_token, eos_token, …"""
    stop_ids: frozenset[int]
    """Each of them ends a generation."""

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens.get("bos_token")

    @property
    def vocabulary_size(self) -> int:
        return int(self.library.get_vocab_size())

    @property
    def added_tokens(self) -> dict[str, int]:
        """Tokens beside the learned vocabulary, special or not."""
        return {token.content: id_ for id_, token in self.library.get_added_tokens_decoder().items()}

    def id_of(self, token: str) -> int | None:
        found = self.library.token_to_id(token)
        return None if found is None else int(found)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of `text`; with `special`, with the tokens that the tokenizer puts around a text."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadData("the text is not valid Unicode (it holds half of a surrogate pair)") from None
        with _complaints("the tokenizer cannot encode this text"):
            return list(self.library.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; ids outside the vocabulary are nothing."""
        with _complaints("the tokenizer cannot decode these ids"):
            return str(self.library.decode(list(ids), skip_special_tokens=skip_special))

    def detokenizer(self, *, skip_special: bool = True, keep: Collection[int] = ()) -> Detokenizer:
        """A new stream of ids; see there."""
        return Detokenizer(self.library, skip_special=skip_special, keep=keep)


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory."""
    library = _library(directory)
    config = read_object(directory / "tokenizer_config.json") or {}
    named = _special_tokens(directory, config)
    _add_missing(library, config, set(named.values()), directory / "tokenizer_config.json")
    return Tokenizer(library, config, named, frozenset(_stop_ids(directory, library, named)))


def _library(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    data = read_bytes(path, MAX_TOKENIZER_BYTES)
    if data is None:
        raise _missing(directory)
    with _complaints(f"{path} is not a tokenizer"):
        library = tokenizers.Tokenizer.from_buffer(data)
    # What some files keep from their training would cut or fill prompts.
    library.no_truncation()
    library.no_padding()
    return library


def _missing(directory: Path) -> BadData | NotFound:
    others = [name for name in _OTHER_KINDS if (directory / name).exists()]
    if not others:
        return NotFound(
            f"{directory} has no tokenizer.json",
            hint="Name the directory of a whole model, with its tokenizer, or fetch the model again.",
        )
    return BadData(
        f"{directory} has its tokenizer only as {others[0]}; exo reads tokenizer.json",
        hint="Convert it once: python -c \"from transformers import AutoTokenizer as T; d = '.'; "
        'T.from_pretrained(d).save_pretrained(d)" in that directory.',
    )


@contextmanager
def _complaints(what: str) -> Iterator[None]:
    """The library raises bare Exceptions for bad files, and a panic of its own when it trips."""
    try:
        yield
    except BaseException as error:
        if type(error) in (Exception, ValueError, OverflowError) or type(error).__name__ == "PanicException":
            raise BadData(f"{what}: {_printable(str(error))}") from error
        raise


def _printable(text: str) -> str:
    short = text if len(text) <= 300 else f"{text[:300]}…"
    return "".join(char if char.isprintable() else " " for char in short)


def _special_tokens(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """Names to tokens. special_tokens_map.json counts only where the configuration lists no added tokens."""
    found = dict(config)
    if "added_tokens_decoder" not in config:
        found |= read_object(directory / "special_tokens_map.json") or {}
    extra = found.get("extra_special_tokens")
    if isinstance(extra, dict):
        found |= {name: token for name, token in extra.items() if name.endswith("_token")}
    named = {name: _content(token) for name, token in found.items() if name.endswith("_token")}
    return {name: content for name, content in named.items() if content is not None}


def _content(token: object) -> str | None:
    """A token is written as its text, or as an object that describes it; flags end in _token as well."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _add_missing(library: tokenizers.Tokenizer, config: dict[str, Any], named: set[str], where: Path) -> None:
    """Bring the library's added tokens to what the configuration says: missing ones, and their flags."""
    listed = config.get("added_tokens_decoder")
    if listed is None:
        listed = {}
    if not isinstance(listed, dict) or len(listed) > MAX_ADDED_TOKENS:
        raise BadData(f"{where} holds no usable 'added_tokens_decoder'")
    for id_, described in sorted(_numbered(listed, where)):
        content = _content(described)
        if content is None or not isinstance(described, dict):
            raise BadData(f"{where} describes the added token {id_} without its content")
        if library.token_to_id(content) not in (id_, None):
            continue  # tokenizer.json knows better
        flags = {
            name: value for name, value in described.items() if name in _FIELDS and isinstance(value, bool)
        }
        library.add_tokens([AddedToken(content, **flags)])
        if library.token_to_id(content) != id_:
            raise BadData(f"{where} gives {content!a} the id {id_}, which tokenizer.json does not allow")
    known = {token.content: token for token in library.get_added_tokens_decoder().values()}
    for content in sorted(named):
        # A name for a token that the vocabulary lacks is only a name: it gets no id of its own.
        if library.token_to_id(content) is not None and not getattr(known.get(content), "special", False):
            library.add_special_tokens([AddedToken(content, special=True, normalized=False)])


def _numbered(listed: dict[str, Any], where: Path) -> Iterator[tuple[int, Any]]:
    for key, described in listed.items():
        if not key.isdecimal() or len(key) > 9:
            raise BadData(f"{where} has an added token with the id {key[:40]!a}")
        yield int(key), described


def _stop_ids(directory: Path, library: tokenizers.Tokenizer, named: dict[str, str]) -> Iterator[int]:
    if (end := named.get("eos_token")) is not None and (id_ := library.token_to_id(end)) is not None:
        yield id_
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        read = read_object(path) or {}
        inner = read.get("text_config")
        for part in (read, inner if isinstance(inner, dict) else {}):
            yield from _ids(part.get("eos_token_id"), path)


def _ids(value: object, where: Path) -> list[int]:
    found = []
    for id_ in value if isinstance(value, list) else [] if value is None else [value]:
        if type(id_) is not int or not 0 <= id_ < 2**31:
            raise BadData(f"{where} has an 'eos_token_id' that is no token id: {str(id_)[:40]!a}")
        found.append(id_)
    return found
