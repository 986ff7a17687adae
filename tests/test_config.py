from pathlib import Path

import pytest

from exo_cli import config
from exo_cli.errors import Misconfigured


def test_places_under_home(clean_environment: Path) -> None:
    assert config.config_dir() == clean_environment / ".config/exo"
    assert config.cluster_key_path() == clean_environment / ".config/exo/cluster.key"
    assert config.local_key_path() == clean_environment / ".config/exo/local.key"
    assert config.topology_path() == clean_environment / ".local/state/exo/topology.json"
    assert config.nodes_dir() == clean_environment / ".local/state/exo/nodes"
    assert config.cache_dir() == clean_environment / ".cache/exo"


def test_xdg_directories_count_only_when_absolute(
    clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert config.topology_path() == tmp_path / "state/exo/topology.json"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert config.state_dir() == clean_environment / ".local/state/exo"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert config.state_dir() == clean_environment / ".local/state/exo"


def test_no_home_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(Misconfigured, match="no home directory") as raised:
        config.cache_dir()
    assert raised.value.hint == "Set HOME or XDG_CACHE_HOME."


def test_tables_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "exo.toml"
    path.write_text(
        'json = true\nlog_file = "x"\n[discover]\npeer = ["a", "b"]\n[key.new]\nforce = false\n[empty]\n'
    )
    file = config.read_file(path)
    assert file is not None
    assert file.tables == {
        (): {"json": True, "log-file": "x"},
        ("discover",): {"peer": ["a", "b"]},
        ("key", "new"): {"force": False},
        ("key",): {},
        ("empty",): {},
    }
    assert file.place((), "json") == f"{path}: json"
    assert file.place(("key", "new"), "force") == f"{path}: [key.new] force"


def test_the_project_file_comes_first_and_is_shown_as_it_is_typed(
    clean_environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.read_files() == []
    user = clean_environment / ".config/exo/config.toml"
    user.parent.mkdir(parents=True)
    user.write_text("quiet = true\n")
    Path("exo.toml").write_text("json = true\n")
    assert [config.shown(file.path) for file in config.read_files()] == ["./exo.toml", str(user)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"json = yes", "not valid TOML"),
        (b"\xff", "not UTF-8"),
        (b"when = 2026-01-01", "must be a string, a number, true, false or a list of strings"),
        (b"peer = [1]", "peer must be a string"),
        (b"[[discover]]\nx = 1", "discover must be"),
        (b"a = 1\na = 2", "not valid TOML"),
    ],
)
def test_a_bad_file_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "exo.toml"
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match=says) as raised:
        config.read_file(path)
    assert str(path) in raised.value.message
    assert raised.value.hint is not None


def test_a_directory_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="Is a directory"):
        config.read_file(tmp_path)
