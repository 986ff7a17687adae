"""Chat templates: what they see, what they give, and how they fail."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from exo_cli.errors import BadData, NotFound
from exo_cli.text.template import ChatTemplate, Templates, load_templates
from tests.support import chat_styles

USER = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: Any = USER, **options: Any) -> str:
    return ChatTemplate(source).render(messages, **options)


def test_chatml() -> None:
    assert render(chat_styles.CHATML) == (
        "<|im_start|>system\nBe of help.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not render(chat_styles.CHATML, add_generation_prompt=False).endswith("assistant\n")


@pytest.mark.parametrize(
    ("think", "end"),
    [
        ({}, "assistant\n"),
        ({"enable_thinking": False}, "</think>\n\n"),
        ({"enable_thinking": True}, "<think>\n"),
    ],
)
def test_options_reach_the_template(think: dict[str, bool], end: str) -> None:
    assert render(chat_styles.THINKING, options=think).endswith(end)


def test_the_clock_is_given() -> None:
    text = render("{{ strftime_now('%Y-%m-%d') }}", now=lambda: datetime(2026, 1, 2))
    assert text == "2026-01-02"


def test_what_a_message_shows() -> None:
    seen = "{{ messages[0] | tojson }}"
    message = {"role": "assistant", "content": None, "reasoning": "r", "n": (1, 2.5)}
    assert render(seen, [message]) == (
        '{"thinking": "r", "role": "assistant", "reasoning": "r", "n": [1, 2.5], "reasoning_content": "r"}'
    )


def test_messages_are_not_changed() -> None:
    message = {"role": "user", "content": "a", "reasoning": "b", "name": None}
    before = dict(message)
    render("{{ messages[0].content }}", [message])
    assert message == before


def test_the_template_says_no() -> None:
    with pytest.raises(BadData, match="refuses these messages: roles must alternate") as caught:
        render("{{ raise_exception('roles must\\nalternate'|replace('\\n', ' ')) }}")
    assert caught.value.exit == 65


@pytest.mark.parametrize(
    "source",
    [
        "{{ missing.name }}",
        "{{ 1 + 'x' }}",
        "{{ 1 // 0 }}",
        "{{ missing | tojson }}",
        "{{ [1][5].x }}",
        "{{ 'a'.index('b') }}",
        "{{ messages() }}",
        "{{ 'x' | unknown_filter if messages }}",
        "{{ dict(1) }}",
        "{% for a, b in [1] %}{% endfor %}",
        "{{ strftime_now(5) }}",
        "{{ raise_exception() }}",
    ],
)
def test_faults_are_bad_data(source: str) -> None:
    with pytest.raises(BadData, match="chat template"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{", "{% endif %}", "{% if x %}", "{{ x | nothing }}", "{% x %}"]
)
def test_bad_syntax_is_bad_data(source: str) -> None:
    with pytest.raises(BadData, match="not a valid template"):
        ChatTemplate(source)


@pytest.mark.parametrize("messages", [[], [5], [{"role": "user", "content": object()}], ["text"]])
def test_bad_messages_are_bad_data(messages: list[Any]) -> None:
    with pytest.raises(BadData):
        render("{{ messages }}", messages)


def test_names_tell_what_a_template_listens_to() -> None:
    assert "enable_thinking" in ChatTemplate(chat_styles.THINKING).names
    assert "enable_thinking" not in ChatTemplate(chat_styles.CHATML).names


def test_choice() -> None:
    templates = Templates({"default": "d", "tool_use": "t", "rag": "r"})
    assert [templates.choose().source, templates.choose(tools=True).source] == ["d", "t"]
    assert templates.choose("rag", tools=True).source == "r"
    assert Templates({"default": "d"}).choose(tools=True).source == "d"
    with pytest.raises(NotFound, match="'default', 'rag', 'tool_use'"):
        templates.choose("nothing")
    with pytest.raises(NotFound):
        Templates({"rag": "r"}).choose()


def test_where_templates_come_from(tmp_path: Path) -> None:
    assert load_templates(tmp_path, {}) is None
    config = {"chat_template": [{"name": "default", "template": "a"}, {"name": "b", "template": "c"}]}
    found = load_templates(tmp_path, config)
    assert found is not None
    assert found.sources == {"default": "a", "b": "c"}
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("more")
    found = load_templates(tmp_path, config)
    assert found is not None
    assert found.sources == {"default": "file", "rag": "more"}


@pytest.mark.parametrize("entry", [5, [5], {"default": "x"}, [{"name": "a"}], [{"name": 1, "template": "x"}]])
def test_broken_entries_are_bad_data(entry: object, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no usable 'chat_template'"):
        load_templates(tmp_path, {"chat_template": entry})


def test_an_absurd_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="more than"):
        ChatTemplate("x" * 300_000)
    with open(tmp_path / "chat_template.jinja", "wb") as file:
        file.truncate(2**31)
    with pytest.raises(BadData, match="bytes"):
        load_templates(tmp_path, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content | indent(4) | length }}",
        "{{ messages[0].content.replace('<a tag of some length that is taken out>', '') | length }}",
        "{{ messages[0].content | replace('line', 'a line') | trim | length }}",
        "{{ messages[0].content.split('\\n') | join('\\n\\n') | length }}",
        "{{ messages[0].content.splitlines() | length }}",
        "{{ messages | tojson(indent='  ') | length }}",
        "{{ ('%s and %s' % (messages[0].content, messages[0].content)) | length }}",
        "{{ '{} (no. 52416) {}'.format(messages[0].content, 1) | length }}",
    ],
)
def test_a_long_message_is_within_every_bound(source: str) -> None:
    content = "a line of some length\n" * 50_000
    assert render(source, [{"role": "user", "content": content}])


def test_a_long_chat_is_within_every_bound() -> None:
    """Two thousand messages and a million characters are nobody's attack."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": "word " * 100} for n in range(2000)]
    for name in ("chatml", "headers", "turns", "thinking", "odds"):
        assert len(render(chat_styles.STYLES[name], messages)) > 1000
