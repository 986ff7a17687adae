"""Thinking apart from answers: examples of every family, and independence of how the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.text.thinking import STYLES, Part, ThinkingSplitter, ThinkingStyle, detect

THINK = STYLES[0]
CHANNELS = next(style for style in STYLES if "<|channel|>" in style.needs)
T, A = Part.THINKING, Part.ANSWER


def split(
    style: ThinkingStyle | None, pieces: list[str], *, thinking: bool = False
) -> list[tuple[Part, str]]:
    """All pieces, neighbours of one part joined."""
    splitter = ThinkingSplitter(style, thinking=thinking)
    found: list[tuple[Part, str]] = []
    for part, text in [*(item for piece in pieces for item in splitter.feed(piece)), *splitter.flush()]:
        assert text
        if found and found[-1][0] is part:
            found[-1] = (part, found[-1][1] + text)
        else:
            found.append((part, text))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nhm\n</think>\n\nYes.", [(T, "hm\n"), (A, "Yes.")]),
        ("  \n<think>hm</think>Yes.", [(T, "hm"), (A, "Yes.")]),
        ("No tags.", [(A, "No tags.")]),
        ("  spaces first", [(A, "  spaces first")]),
        ("Write <think> and </think>.", [(A, "Write <think> and </think>.")]),
        ("<think>a</think>b <think>c</think>", [(T, "a"), (A, "b <think>c</think>")]),
        ("<think>a</think>\n<think>c</think>", [(T, "a"), (A, "<think>c</think>")]),
        ("<think>never ends", [(T, "never ends")]),
        ("<think>a</thi", [(T, "a</thi")]),
        ("<think></think>\n\nYes.", [(A, "Yes.")]),
        ("<thin", [(A, "<thin")]),
        (" \n ", [(A, " \n ")]),
        ("", []),
    ],
)
def test_plain_tags(text: str, expected: list[tuple[Part, str]]) -> None:
    assert split(THINK, [text]) == expected
    assert split(THINK, list(text)) == expected


def test_a_prompt_may_have_opened_it() -> None:
    assert THINK.opened_by("<|im_start|>assistant\n<think>\n")
    assert not THINK.opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert split(THINK, ["\nhm</think>Yes."], thinking=True) == [(T, "hm"), (A, "Yes.")]


def test_channels() -> None:
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>first"
        "<|end|><|start|>assistant<|channel|>analysis<|message|>again<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    )
    expected = [(T, "hm"), (A, "first<|end|>"), (T, "again"), (A, "Yes.")]
    assert split(CHANNELS, [text]) == expected
    assert split(CHANNELS, list(text)) == expected


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.open)
def test_every_family(style: ThinkingStyle) -> None:
    text = f"{style.open}\nhm{style.close}{''.join(style.dropped[:2])}\nYes."
    assert split(style, list(text)) == [(T, "hm"), (A, "Yes.")]
    assert detect(set(style.marks), None) is style
    assert detect(set(), "x".join(style.marks)) is style
    assert detect({*STYLES[0].marks, *style.marks}, "x".join(style.marks)) is style


def test_without_a_style_everything_is_the_answer() -> None:
    assert detect({"<s>"}, "{{ messages }}") is None
    assert detect(set(), None) is None
    assert split(None, ["<think>", "x"]) == [(A, "<think>x")]


def test_an_answer_waits_for_nothing() -> None:
    splitter = ThinkingSplitter(THINK)
    assert splitter.feed("Hello ") == [(A, "Hello ")]
    assert splitter.feed("<th") == [(A, "<th")]
    assert splitter.part is A


def test_only_what_may_be_a_tag_waits() -> None:
    splitter = ThinkingSplitter(THINK, thinking=True)
    assert splitter.feed("a < b </th") == [(T, "a < b ")]
    assert splitter.feed("at") == [(T, "</that")]
    assert splitter.feed("</think>") == []
    assert splitter.part is A


pieces_of = {
    style.open: st.lists(
        st.one_of(
            st.sampled_from([style.open, style.close, *style.dropped, " ", "\n", "a", "b<"]),
            st.sampled_from([style.open, style.close]).flatmap(
                lambda tag: st.integers(0, len(tag)).map(lambda size: tag[:size])
            ),
        ),
        max_size=8,
    )
    for style in STYLES
}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.open)
@pytest.mark.parametrize("thinking", [False, True], ids=["", "inside"])
def test_how_it_is_cut_makes_no_difference(style: ThinkingStyle, thinking: bool) -> None:
    @given(pieces_of[style.open], st.integers(1, 7))
    def check(pieces: list[str], size: int) -> None:
        text = "".join(pieces)
        cut = [text[start : start + size] for start in range(0, len(text), size)]
        whole = split(style, [text], thinking=thinking)
        assert split(style, cut, thinking=thinking) == whole
        assert split(style, pieces, thinking=thinking) == whole

    check()


@given(pieces_of["<think>"])
def test_against_the_definition(pieces: list[str]) -> None:
    """Read from the whole text: blank or thinking first, then all the rest."""
    text = "".join(pieces)
    start = text.lstrip()
    if not start.startswith("<think>"):
        expected = [(A, text)]
    else:
        thought, closed, answer = start.removeprefix("<think>").partition("</think>")
        expected = [(T, thought.lstrip()), (A, answer.lstrip())] if closed else [(T, thought.lstrip())]
    assert split(THINK, pieces) == [(part, piece) for part, piece in expected if piece]
