import inspect

import pytest

from exo_cli import errors
from exo_cli.errors import MEANINGS, Exit, ExoError


def classes() -> list[type[ExoError]]:
    return [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, ExoError)]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {
        words[1]: int(words[2])
        for words in (line.strip().split() for line in (errors.__doc__ or "").splitlines())
        if len(words) > 2 and words[0] in ("├──", "└──")
    }
    assert drawn == {item.__name__: int(item.exit) for item in classes() if item is not ExoError}


@pytest.mark.parametrize("item", classes(), ids=lambda item: item.__name__)
def test_each_error_says_a_sentence_and_carries_its_hint(item: type[ExoError]) -> None:
    error = item("something broke", hint="Mend it.")
    assert (str(error), error.message, error.hint) == ("something broke", "something broke", "Mend it.")
    assert error.exit in MEANINGS
    assert item("x").hint is None
    assert error.code == error.code.lower()


def test_signals_are_128_and_the_signal() -> None:
    assert (Exit.INTERRUPTED, Exit.BROKEN_PIPE, Exit.TERMINATED) == (128 + 2, 128 + 13, 128 + 15)


def test_the_codes_of_the_contract() -> None:
    # DESIGN, "Exit codes": other programs branch on these, so they are written down a second time.
    assert [int(code) for code in Exit] == [
        *(0, 1, 2, 65, 66, 69, 70, 71, 73, 74, 75, 76, 77, 78, 79, 80),
        *(130, 141, 143),
    ]
