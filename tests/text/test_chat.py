"""A model directory as a whole: messages in, ids out, ids in, thinking and answer out."""

from pathlib import Path
from typing import Any

import pytest

from exo_cli.errors import BadData, NotFound
from exo_cli.text.chat import Language
from exo_cli.text.stops import StopStrings
from exo_cli.text.thinking import Part
from tests.support import chat_styles
from tests.support.languages import model_directory

USER: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]


def language(tmp_path: Path, template: str | None = None, **files: Any) -> Language:
    more = {} if template is None else {"chat_template__jinja": template}
    return Language.load(model_directory(tmp_path / "m", **more, **files))


def test_a_chat_is_encoded_as_it_stands(tmp_path: Path) -> None:
    model = language(tmp_path, chat_styles.TURNS)
    prompt = model.chat(USER)
    assert prompt.text.startswith("<s><start_of_turn>user")
    assert prompt.ids.count(model.tokenizer.id_of("<s>") or -1) == 1
    assert model.tokenizer.decode(prompt.ids, skip_special=False) == prompt.text


@pytest.mark.parametrize("text", ["Hello", "<s>Hello"])
def test_a_plain_prompt_has_one_first_token(text: str, tmp_path: Path) -> None:
    model = language(tmp_path, chat_styles.TURNS)
    prompt = model.plain(text)
    assert prompt.ids[0] == model.tokenizer.id_of("<s>")
    assert list(prompt.ids[1:]) == model.tokenizer.encode("Hello", special=False)


def test_without_a_template_the_texts_are_the_prompt(tmp_path: Path) -> None:
    model = language(tmp_path)
    assert model.template() is None
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    assert model.chat(messages) == model.plain("Be brief.\n\nHello")
    with pytest.raises(BadData, match="tools"):
        model.chat(USER, tools=chat_styles.TOOLS)
    with pytest.raises(BadData, match="plain text"):
        model.chat(chat_styles.CHATS["parts"])
    with pytest.raises(BadData):
        model.chat([])


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_thinking_is_switched_by_the_name_the_template_knows(switch: str, tmp_path: Path) -> None:
    source = "{{ 'on' if %s is defined and %s else 'off' }}" % (switch, switch)  # noqa: UP031 braces
    model = language(tmp_path, source)
    assert model.think_option(model.template()) == switch
    assert [model.chat(USER, think=think).text for think in (None, False, True)] == ["off", "off", "on"]
    plain = language(tmp_path, chat_styles.CHATML)
    assert plain.think_option(plain.template()) is None
    assert plain.chat(USER, think=True) == plain.chat(USER)


def test_templates_by_name_are_compiled_once(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    model = language(tmp_path, tokenizer_config__json={"chat_template": named})
    assert model.chat(USER).text == "d"
    assert model.chat(USER, tools=chat_styles.TOOLS).text == "t"
    assert model.chat(USER, template="tool_use").text == "t"
    assert model.template() is model.template()
    with pytest.raises(NotFound):
        model.chat(USER, template="rag")


def test_a_turn_from_ids_to_parts(tmp_path: Path) -> None:
    """The whole way: thinking is split off, and a stop string ends the answer only."""
    model = language(tmp_path, chat_styles.THINKING)
    prompt = model.chat(USER, think=True)
    assert prompt.thinking
    assert not model.chat(USER, think=False).thinking
    stream, splitter, stops = model.detokenizer(), model.splitter(prompt), StopStrings(["END"])
    answer = thought = ""
    for id_ in model.tokenizer.encode("no END yet\n</think>\n\nYes 🙂 EN|END gone<|im_end|>", special=False):
        for part, text in splitter.feed(stream.feed(id_)):
            if part is Part.THINKING:
                thought += text
            else:
                answer += stops.feed(text)
    assert (thought, answer, stops.hit) == ("no END yet\n", "Yes 🙂 EN|", "END")


def test_special_tokens_that_are_tags_stay_for_the_splitter(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    marks = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")
    start = Language.load(directory).tokenizer.vocabulary_size
    listed = {str(start + n): {"content": mark, "special": True} for n, mark in enumerate(marks)}
    config = {"added_tokens_decoder": listed, "eos_token": "<|im_end|>"}
    model = language(tmp_path, "".join(marks), tokenizer_config__json=config)
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|im_end|>"
    )
    stream, splitter = model.detokenizer(), model.splitter(model.plain("x"))
    pieces = [
        piece
        for id_ in model.tokenizer.encode(text, special=False)
        for piece in splitter.feed(stream.feed(id_))
    ]
    pieces += splitter.feed(stream.flush()) + splitter.flush()
    assert "".join(text for part, text in pieces if part is Part.THINKING) == "hm"
    assert "".join(text for part, text in pieces if part is Part.ANSWER) == "Yes."
