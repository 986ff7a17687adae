import io
import json
import os
import pty
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from exo_cli.errors import CannotCreate, InputOutput
from exo_cli.output import ColorChoice, Output, duration_text, visible
from exo_cli.schemas.events import ErrorLine, line


class Stream(io.StringIO):
    """A text stream that is a terminal, or not, and can say only so much."""

    def __init__(self, terminal: bool = False, encoding: str = "utf-8") -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        text.encode(self._encoding)
        return super().write(text)


def output(stdout: Stream | None = None, stderr: Stream | None = None, **options: object) -> Output:
    return Output(stdout=stdout or Stream(), stderr=stderr or Stream(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variables", "terminal", "choice", "colored"),
    [
        ({}, True, "auto", True),
        ({}, False, "auto", False),
        ({"NO_COLOR": "1"}, True, "auto", False),
        ({"NO_COLOR": ""}, True, "auto", True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, "auto", False),
        ({"NO_COLOR": "1"}, False, "always", True),
        ({"FORCE_COLOR": "1"}, False, "auto", True),
        ({"FORCE_COLOR": "0"}, False, "auto", False),
        ({"FORCE_COLOR": "1"}, True, "never", False),
        ({"TERM": "dumb"}, True, "auto", False),
        ({"TERM": "dumb"}, True, "always", True),
    ],
)
def test_colours(
    variables: dict[str, str],
    terminal: bool,
    choice: ColorChoice,
    colored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = Stream(terminal)
    it = output(out, color=choice)
    assert it.colored is colored
    from rich.text import Text

    it.draw(Text("word", style="bold red"))
    assert ("\x1b[" in out.getvalue()) is colored
    assert "word" in out.getvalue()


def test_what_is_drawn_is_not_markup() -> None:
    out = Stream(terminal=True)
    output(out, color="never").draw("[/etc] name[abc] :smile:")
    assert out.getvalue() == "[/etc] name[abc] :smile:\n"


@pytest.mark.parametrize("columns", ["", "0", "wide", "-3"])
def test_a_senseless_width_is_no_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert output().console().width == 120


def test_the_width_of_a_picture_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert output().console().width == 40


def test_rows_are_aligned_on_a_terminal_and_tab_separated_elsewhere() -> None:
    header, rows = ("name", "size"), [("studio", "5"), ("日本", "11"), ("e\u0301", "1")]
    out = Stream()
    output(out).rows(header, rows)
    assert out.getvalue() == "name\tsize\nstudio\t5\n日本\t11\ne\\u0301\t1\n".replace("\\u0301", "\u0301")
    out = Stream(terminal=True)
    output(out).rows(header, rows)
    assert out.getvalue() == "name    size\nstudio  5\n日本    11\ne\u0301       1\n"


def test_a_cell_cannot_break_out_of_its_row() -> None:
    out = Stream()
    output(out).rows(("a", "b"), [("x\ty\nz", "\x1b[2J\u202e")])
    assert out.getvalue() == "a\tb\nx\\x09y\\x0az\t\\x1b[2J\\u202e\n"


def test_visible_keeps_words_and_shows_controls() -> None:
    assert visible("Grüße 日本 [x]") == "Grüße 日本 [x]"
    assert visible("\r\x07\U000e0001") == "\\x0d\\x07\\U000e0001"


def test_ascii_streams_get_escapes_and_json_stays_json() -> None:
    out, err = Stream(encoding="ascii"), Stream(encoding="ascii")
    it = output(out, err)
    assert not it.unicode
    it.line("büro → 1")
    it.rows(("n",), [("büro",)])
    it.mapping({"name": "büro \U0001f600"})
    it.note("büro")
    it.error(InputOutput("no büro"))
    plain, header, row, document = out.getvalue().splitlines()
    assert (plain, header, row) == ("b\\xfcro \\u2192 1", "n", "b\\xfcro")
    assert json.loads(document) == {"name": "büro \U0001f600"}
    assert err.getvalue() == "b\\xfcro\nerror: no b\\xfcro\n"
    assert output(Stream()).unicode


def test_a_struct_is_one_line_of_json() -> None:
    class Point(msgspec.Struct):
        x: int
        name: str

    out = Stream()
    output(out).struct(Point(1, "é"))
    assert out.getvalue() == '{"x":1,"name":"é"}\n'


def test_a_lone_surrogate_from_a_file_name_is_written() -> None:
    out = Stream()
    output(out).line(os.fsdecode(b"bad\xff"))
    assert out.getvalue() == "bad\\udcff\n"


def test_words_about_the_work_go_to_standard_error() -> None:
    def speak(it: Output) -> None:
        it.note("note")
        it.detail("detail")
        it.detail("more", level=2)
        it.hint("hint")
        it.warning("careful")

    def said(**options: object) -> tuple[str, list[str]]:
        out, err = Stream(), Stream()
        speak(output(out, err, **options))
        return out.getvalue(), err.getvalue().splitlines()

    assert said() == ("", ["note", "hint: hint", "warning: careful"])
    assert said(quiet=True) == ("", ["warning: careful"])
    assert said(verbose=1) == ("", ["note", "detail", "hint: hint", "warning: careful"])
    assert said(verbose=2, json=True) == ("", ["note", "detail", "more", "warning: careful"])


def test_an_error_is_two_lines_or_one_line_of_json() -> None:
    error = InputOutput("it broke\n  at once", hint="Mend it.")
    err = Stream()
    output(None, err).error(error)
    assert err.getvalue() == "error: it broke at once\nhint: Mend it.\n"
    err = Stream()
    output(None, err, quiet=True).error(error)
    assert err.getvalue() == "error: it broke at once\n"
    err = Stream()
    output(None, err, json=True, quiet=True).error(error)
    assert err.getvalue().count("\n") == 1
    expected = ErrorLine(code="input-output", message=error.message, hint="Mend it.", exit=74)
    assert list(json.loads(err.getvalue()).items()) == list(json.loads(line(expected)).items())


def test_the_log_is_appended_private_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for text in ("first", "zweitens: é\n"):
        it = output(log_file=str(path), quiet=True)
        it.open_log()
        it.note(text)
        it.record("error", "usage: x")
        it.close()
    lines = [json.loads(entry) for entry in path.read_text(encoding="utf-8").splitlines()]
    assert [entry["text"] for entry in lines] == ["first", "usage: x", "zweitens: é\n", "usage: x"]
    assert {entry["schema"] for entry in lines} == {"exo.log/1"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    it = output(log_file=str(tmp_path / "no" / "log"))
    with pytest.raises(CannotCreate) as raised:
        it.open_log()
    assert raised.value.hint == "Give another --log-file."


def test_a_real_terminal_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    leader, follower = pty.openpty()
    try:
        with os.fdopen(os.dup(follower), "w", encoding="utf-8") as stream:
            it = Output(stdout=stream)
            assert (it.terminal, it.stdout_is_a_terminal, it.colored) == (True, True, True)
            monkeypatch.setenv("TERM", "dumb")
            assert (it.terminal, it.stdout_is_a_terminal, it.colored) == (False, True, False)
    finally:
        os.close(leader)
        os.close(follower)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h"), (259_200, "3 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_nothing_is_held_back() -> None:
    flushed: list[str] = []

    class Watched(Stream):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    writers: list[Callable[[Output], None]] = [
        lambda it: it.write("a"),
        lambda it: it.line("a"),
        lambda it: it.rows(("a",), []),
        lambda it: it.mapping({}),
    ]
    for write in writers:
        out = Watched()
        write(output(out))
        assert flushed[-1] == out.getvalue() != ""


def test_bars_are_for_a_person_at_a_terminal_and_gone_before_other_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stdout, stderr = Stream(), Stream(terminal=True)
    out = output(stdout, stderr)
    out.progress("[b]a[/b]: reading", 1, 4, "1 of 4 layers")
    out.progress("b\x1b: reading", 4, 4, "4 of 4 layers")
    out.write("text")
    drawn = stderr.getvalue()
    assert "[b]a[/b]: reading" in drawn
    assert "b\\x1b: reading" in drawn
    assert "4 of 4 layers" in drawn
    assert drawn.endswith("\x1b[?25h\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K")  # the cursor is back, the lines are not
    assert stdout.getvalue() == "text"
    out.note("done")
    assert stderr.getvalue() == drawn + "done\n"
    out.progress("a", 4, 4, "")
    assert out._bars is None  # full at once


@pytest.mark.parametrize("options", [{"json": True}, {"quiet": True}, {}])
def test_no_bars_elsewhere(options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stderr = Stream(terminal=bool(options))
    out = output(Stream(), stderr, **options)
    out.progress("a", 1, 4, "")
    out.close()
    assert stderr.getvalue() == ""
