"""Text in cells: harmless, cut, wrapped."""

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from exo_cli.views.cells import Look, stack
from tests.support.screen import shown
from tests.support.topologies import any_text

WIDE = Look(unicode=True, width=80)
ASCII = Look(unicode=False, width=80)


def test_control_characters_become_visible() -> None:
    assert WIDE("a\x1b[31mb\tc") == "a\\x1b[31mb\\x09c"


def test_ascii_replaces_our_signs_and_escapes_theirs() -> None:
    assert ASCII("a → b … 日") == "a -> b ... \\u65e5"


def test_a_cut_shows() -> None:
    assert WIDE.fit("a-long-name", 6) == "a-lon…"
    assert ASCII.fit("a-long-name", 6) == "a-l..."
    assert WIDE.fit("書斎の大きな", 6) == "書斎…"
    assert WIDE.fit("short", 6) == "short"


def test_commands_and_figures_are_not_broken() -> None:
    lines = WIDE.wrap("On it: `sudo sysctl a.b=1` gives about 1.10 GB/s or more", 22)
    assert lines == ["On it:", "`sudo sysctl a.b=1`", "gives about 1.10 GB/s", "or more"]


def test_long_words_are_cut_up_and_long_texts_end() -> None:
    assert WIDE.wrap("x" * 20, 8) == ["x" * 8, "x" * 8, "x" * 4]
    assert WIDE.wrap("word " * 30, 10, most=2) == ["word word", "word word…"]


@given(any_text, st.integers(0, 30), st.booleans())
def test_padding_is_exact(text: str, width: int, unicode: bool) -> None:
    look = Look(unicode=unicode, width=80)
    assert cell_len(look.pad(text, width)) == width
    assert cell_len(look.pad(text, width, right=True)) == width


@given(any_text, st.integers(8, 40), st.integers(1, 4))
def test_wrapping_keeps_to_its_bounds(text: str, width: int, most: int) -> None:
    lines = WIDE.wrap(text, width, most=most)
    assert 1 <= len(lines) <= most
    assert all(cell_len(line) <= width for line in lines)


def test_blocks_have_one_empty_line_between_them() -> None:
    a, b = [WIDE.line("a")], [WIDE.line("b")]
    assert shown(stack([a, [], b]), 80) == "a\n\nb\n"
