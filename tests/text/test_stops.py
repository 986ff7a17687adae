"""Stop strings: against the definition, read from the whole text, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.errors import UsageProblem
from exo_cli.text.stops import MAX_STOPS, Finder, StopStrings

letters = st.text("ab\n", max_size=12)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The first character with which any stop is complete; of those the longest; what is before it."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def least_held(text: str, stops: list[str]) -> int:
    """The longest end of the text that is the start of a stop."""
    return max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
    )


@given(st.lists(letters, max_size=6), stop_lists)
def test_it_does_what_the_definition_says(pieces: list[str], stops: list[str]) -> None:
    scanner = StopStrings(stops)
    shown = "".join(map(scanner.feed, pieces)) + scanner.flush()
    assert (shown, scanner.hit) == naive("".join(pieces), stops)


@given(st.lists(letters, max_size=6), stop_lists)
def test_it_holds_back_the_least(pieces: list[str], stops: list[str]) -> None:
    scanner = StopStrings(stops)
    text = shown = ""
    for piece in pieces:
        text += piece
        shown += scanner.feed(piece)
        if scanner.hit is None:
            assert len(text) - len(shown) == least_held(text, stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "hit"),
    [
        (["Hello", "\n", "\n", "more"], ["\n\n"], ["Hello", "", "", ""], "\n\n"),
        (["abcx"], ["abcd", "bc"], ["a"], "bc"),
        (["xabc"], ["bc", "abc"], ["x"], "abc"),
        (["aab"], ["ab"], ["a"], "ab"),
        (["a", "b", "c"], [], ["a", "b", "c"], None),
        (["US", "ER", ":"], ["USER:"], ["", "", ""], "USER:"),
    ],
)
def test_examples(pieces: list[str], stops: list[str], shown: list[str], hit: str | None) -> None:
    scanner = StopStrings(stops)
    assert [scanner.feed(piece) for piece in pieces] == shown
    assert scanner.hit == hit


def test_what_was_held_comes_at_the_end() -> None:
    scanner = StopStrings(["END"])
    assert scanner.feed("the EN") == "the "
    assert scanner.flush() == "EN"
    assert scanner.hit is None


@pytest.mark.parametrize("stops", [["a", ""], ["x" * 5000], [str(number) for number in range(MAX_STOPS + 1)]])
def test_impossible_stops_are_refused(stops: list[str]) -> None:
    with pytest.raises(UsageProblem, match="stop string"):
        StopStrings(stops)


def test_a_finder_goes_on_after_a_hit() -> None:
    finder = Finder(["<a>", "<b>"])
    assert finder.feed("x<a>y<") == ("x", "<a>", "y<")
    assert finder.feed("y<") == ("y", None, "")
    assert finder.feed("b>") == ("", "<b>", "")
    assert finder.flush() == ""
