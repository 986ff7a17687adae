"""A model's language as the driver uses it: messages or a plain text in, ids out; ids in, parts out.

With a chat template the text is encoded as it stands, because a template writes its own first token;
a plain text gets the tokens that the tokenizer puts around it, unless it already starts with them.
Knows nothing of where the ids go.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from exo_cli.errors import BadData
from exo_cli.text.detokenizer import Detokenizer
from exo_cli.text.template import ChatTemplate, Message, Templates, load_templates
from exo_cli.text.thinking import STYLES, ThinkingSplitter, ThinkingStyle, detect
from exo_cli.text.tokenizer import Tokenizer, load_tokenizer

_THINK_OPTIONS = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked to continue."""

    ids: tuple[int, ...]
    text: str
    thinking: bool
    """Whether the text ends inside thinking."""


class Language:
    """Tokenizer, templates and thinking tags of one model directory."""

    def __init__(self, tokenizer: Tokenizer, templates: Templates | None) -> None:
        self.tokenizer = tokenizer
        self.templates = templates
        self._compiled: dict[tuple[str | None, bool], ChatTemplate] = {}
        source = templates.sources.get("default") if templates is not None else None
        tokens = {token for style in STYLES for token in style.marks}
        self.thinking: ThinkingStyle | None = detect(
            {token for token in tokens if tokenizer.id_of(token) is not None}, source
        )

    @classmethod
    def load(cls, directory: Path) -> "Language":
        tokenizer = load_tokenizer(directory)
        return cls(tokenizer, load_templates(directory, tokenizer.config))

    def template(self, name: str | None = None, *, tools: bool = False) -> ChatTemplate | None:
        """The template that `chat` would use, compiled once; None if the model has none."""
        if self.templates is None:
            return None
        if (name, tools) not in self._compiled:
            self._compiled[name, tools] = self.templates.choose(name, tools=tools)
        return self._compiled[name, tools]

    def think_option(self, template: ChatTemplate | None) -> str | None:
        """The option by which this template switches thinking; None if it has no such switch."""
        return next(
            (name for name in _THINK_OPTIONS if template is not None and name in template.names), None
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        think: bool | None = None,
        template: str | None = None,
        options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        now: Callable[[], datetime] = datetime.now,
    ) -> Prompt:
        """The prompt for a chat; without a template, the messages' texts, a blank line between them."""
        chosen = self.template(template, tools=tools is not None)
        if chosen is None:
            return self._without_template(messages, tools)
        switch = self.think_option(chosen)
        chosen_options = dict(options or {})
        if think is not None and switch is not None:
            chosen_options.setdefault(switch, think)
        text = chosen.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.tokenizer.special_tokens,
            options=chosen_options,
            now=now,
        )
        return self._prompt(text, special=False)

    def plain(self, text: str) -> Prompt:
        """The prompt that is `text` and nothing else."""
        bos = self.tokenizer.bos_token
        return self._prompt(text, special=not (bos and text.startswith(bos)))

    def detokenizer(self) -> Detokenizer:
        """A stream of text without special tokens, but with the tags of thinking, for the splitter."""
        style = self.thinking
        marks = "" if style is None else "\n".join((style.open, style.close, *style.dropped))
        keep = {id_ for token, id_ in self.tokenizer.added_tokens.items() if token in marks}
        return self.tokenizer.detokenizer(keep=keep)

    def splitter(self, prompt: Prompt) -> ThinkingSplitter:
        return ThinkingSplitter(self.thinking, thinking=prompt.thinking)

    def _prompt(self, text: str, *, special: bool) -> Prompt:
        thinking = self.thinking is not None and self.thinking.opened_by(text)
        return Prompt(tuple(self.tokenizer.encode(text, special=special)), text, thinking)

    def _without_template(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> Prompt:
        if tools:
            raise BadData("this model has no chat template, so it cannot be told of tools")
        texts = [message.get("content") for message in messages]
        plain = [text for text in texts if isinstance(text, str)]
        if not texts or len(plain) != len(texts):
            raise BadData("this model has no chat template, so each message must be plain text")
        return self.plain("\n\n".join(plain))
