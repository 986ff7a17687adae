"""The manual pages: made from the app, clean for groff, and in the places man looks in."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import typer

from exo_cli.cli import app
from exo_cli.commands.tree import tree
from exo_cli.errors import Exit
from exo_cli.schemas import registry
from exo_cli.schemas.topology import Topology

MAN = Path(__file__).parents[2] / "man"
PAGES = sorted(MAN.glob("man[157]/*"))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("man_generate", MAN / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(page: Path) -> str:
    """What man shows, without bold and underlining."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    answer = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-rLL=200n", "-P-c", "-P-b", "-P-u", str(page)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stderr == ""
    return answer.stdout


def test_what_is_checked_in_is_what_the_app_gives() -> None:
    answer = subprocess.run(
        [sys.executable, str(MAN / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")


def test_check_finds_a_stale_a_missing_and_a_left_over_page(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "man1/exo.1").write_text("old")
    (tmp_path / "man7/exo-environment.7").unlink()
    (tmp_path / "man1/exo-gone.1").write_text("")
    assert generate.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert all(name in said for name in ("exo.1", "exo-environment.7", "exo-gone.1"))
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_groff_has_nothing_to_say(page: Path) -> None:
    assert page.stem.upper() in shown(page)


def test_every_verb_has_a_page_with_all_its_options() -> None:
    for verb in tree(typer.main.get_command(app)).verbs:
        text = shown(MAN / f"man1/exo-{verb.path[0]}.1")
        for leaf in verb.leaves():
            assert f"exo {leaf.name} [OPTIONS]" in text
            for option in leaf.options:
                assert ", ".join((*option.flags, *option.off_flags)) in text
                assert all(name in text for name in option.env)
            assert all(argument.metavar in text for argument in leaf.arguments)


def test_the_first_page_names_every_verb_and_every_exit_code() -> None:
    text = shown(MAN / "man1/exo.1")
    lines = {line.strip().split(" ")[0] for line in text.splitlines()}
    assert {str(int(code)) for code in Exit} <= lines
    for verb in tree(typer.main.get_command(app)).verbs:
        assert f"exo-{verb.path[0]}(1)" in text
    assert "exo-explore/exo" in text


def test_the_topology_page_names_every_key_of_every_record() -> None:
    text = shown(MAN / "man5/exo-topology.5")
    words = set(text.split())
    for struct in registry.nested(Topology):
        assert struct.__name__.upper() in words
        assert {field.encode_name for field in msgspec.structs.fields(struct)} <= words
    assert "two nodes on one machine can be told from two machines" in " ".join(text.split())


def test_no_dates_and_the_same_bytes_twice(generate: ModuleType) -> None:
    assert generate.pages() == generate.pages()
    assert all(' "" "exo ' in text.splitlines()[1] for text in generate.pages().values())


@pytest.mark.parametrize(
    "text", [".TH looks like a request", "'quoted", "back\\slash", 'a-b ~ ^ ` " é → 日本', "\\fBnot bold"]
)
def test_escaping_shows_what_was_written(text: str, generate: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "x.1"
    page.write_text(f'.TH X 1 "" "" ""\n.SH NAME\n{generate.escape(text)}\n')
    assert text in shown(page).replace("\u2010", "-")


def test_the_notes_under_fields_are_found(generate: ModuleType) -> None:
    source = (
        'class A:\n    x: int\n    """Of x,\n    twice."""\n    y: int = 0\n    z: int\n    """Of z."""\n'
    )
    assert generate.field_notes(source) == {("A", "x"): "Of x, twice.", ("A", "z"): "Of z."}
