"""A model's chat template: messages to the one text that the model was trained to read.

Templates are Jinja programs that come with a model, so they run as strangers: see `sandbox`. What
they see is what transformers shows them: the messages without keys that are null, reasoning under
each of its names, tools, documents, the special tokens and the caller's options. Knows nothing of
token ids.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2

from exo_cli.errors import BadData, NotFound
from exo_cli.text.files import read_text
from exo_cli.text.meter import TooMuch
from exo_cli.text.sandbox import MAX_SOURCE_CHARACTERS, MeteredEnvironment, rendered

MAX_TEMPLATES: Final = 64

Message = Mapping[str, Any]

_REASONING: Final = ("reasoning_content", "thinking", "reasoning")
# What Python code raises that a stranger wrote: everything but exits, interrupts and warnings.
_FAULTS: Final = (
    *(jinja2.TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(NameError, RuntimeError, SyntaxError, TypeError, ValueError),
)


class ChatTemplate:
    """One template, compiled; may be rendered by several threads at once."""

    def __init__(self, source: str, *, name: str = "default") -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise BadData(f"the chat template {name!a} has more than {MAX_SOURCE_CHARACTERS} characters")
        self.source = source
        self._name = name
        try:
            self._template, self.names = MeteredEnvironment().load(source)
        except _FAULTS as error:
            raise BadData(f"the chat template {name!a} is not a valid template: {_because(error)}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        special_tokens: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        now: Callable[[], datetime] = datetime.now,
        clock: Callable[[], float] = time.monotonic,
    ) -> str:
        """The text for these messages; `options` go to the template by name (enable_thinking, …)."""
        if not messages:
            raise BadData("a chat needs at least one message")
        values = {
            **(special_tokens or {}),
            "messages": [_message(message) for message in messages],
            "tools": _plain(tools),
            "documents": _plain(documents),
            "add_generation_prompt": add_generation_prompt,
            **_options(options or {}),
            "raise_exception": _raise,
            "strftime_now": lambda form: now().strftime(_short(form)),
        }
        try:
            return rendered(self._template, values, clock=clock)
        except TooMuch as error:
            raise BadData(
                f"the chat template {self._name!a} was stopped: {error}",
                hint="Use --raw to send the prompt without the template.",
            ) from error
        except _Refused as error:
            raise BadData(f"the model's chat template refuses these messages: {_because(error)}") from error
        except _FAULTS as error:
            raise BadData(f"the chat template {self._name!a} fails: {_because(error)}") from error


@dataclass(frozen=True, slots=True)
class Templates:
    """The templates of one model, by name."""

    sources: Mapping[str, str]

    def choose(self, name: str | None = None, *, tools: bool = False) -> ChatTemplate:
        """By name; else the one for tools if there are tools and such a one; else the default."""
        if name is None:
            name = "tool_use" if tools and "tool_use" in self.sources else "default"
        if name not in self.sources:
            names = ", ".join(sorted(ascii(known[:40]) for known in self.sources))
            raise NotFound(f"the model has no chat template {name[:40]!a}; it has {names}")
        return ChatTemplate(self.sources[name], name=name)


def load_templates(directory: Path, config: Mapping[str, Any]) -> Templates | None:
    """The templates of a model directory, files before `config`'s entry; None if it has none."""
    sources = _from_files(directory) or _from_config(config.get("chat_template"), directory)
    if len(sources) > MAX_TEMPLATES:
        raise BadData(f"{directory} has more than {MAX_TEMPLATES} chat templates")
    return Templates(sources) if sources else None


def _from_files(directory: Path) -> dict[str, str]:
    paths = {"default": directory / "chat_template.jinja"}
    more = directory / "additional_chat_templates"
    if more.is_dir():
        paths |= {path.name.removesuffix(".jinja"): path for path in sorted(more.glob("*.jinja"))}
    texts = {name: read_text(path, 4 * MAX_SOURCE_CHARACTERS) for name, path in paths.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _from_config(entry: object, directory: Path) -> dict[str, str]:
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    found = {}
    for item in entry if isinstance(entry, list) else [None]:
        name, template = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            raise BadData(f"{directory / 'tokenizer_config.json'} holds no usable 'chat_template'")
        found[name] = template
    return found


class _Refused(jinja2.TemplateError):
    """The template called raise_exception."""


def _raise(message: object) -> None:
    raise _Refused(str(message))


def _short(form: object) -> str:
    if not isinstance(form, str) or len(form) > 256:
        raise TooMuch("strftime_now is asked for too long a text")
    return form


def _message(message: Message) -> dict[str, Any]:
    plain = {key: value for key, value in _mapping(message).items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    if reasoning is None:
        return plain
    return {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in _mapping(options).items() if name.isidentifier()}


def _mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    plain = _plain(value)
    if not isinstance(plain, dict):
        raise BadData("a message of a chat is an object with a role and a content")
    return plain


def _plain(value: Any) -> Any:
    """A copy in JSON's kinds of data only: nothing else comes near a template."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise BadData(f"a message holds a {type(value).__name__}, which is not JSON")


def _because(error: BaseException) -> str:
    text = (
        "it is nested too deeply" if isinstance(error, RecursionError) else str(error) or type(error).__name__
    )
    short = text if len(text) <= 500 else f"{text[:500]}…"
    return "".join(char if char.isprintable() else " " for char in short)
