import os
import shutil
from pathlib import Path

import pytest

from exo_cli.errors import InputOutput, NotFound
from exo_cli.fetch import stores as module
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.stores import Stores, hub_cache
from exo_cli.models import catalogue
from exo_cli.models.directory import ModelDirectory
from tests.support.weights import write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_hub(hub: Path, repository: str = "org/name", commit: str = COMMIT, seed: int = 0) -> Path:
    """A model as huggingface_hub leaves it: links into blobs, and a ref."""
    folder = hub / ("models--" + repository.replace("/", "--"))
    snapshot = write_model(folder / "snapshots" / commit, seed=seed)
    (folder / "blobs").mkdir(exist_ok=True)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blob = folder / "blobs" / f"{commit[:8]}{number}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, snapshot))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return snapshot


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path / "weights", hub=tmp_path / "hub")


def test_where_the_hub_keeps_its_cache(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_cache() == clean_environment / ".cache/huggingface/hub"
    for variable, value, expected in (
        ("XDG_CACHE_HOME", "/x", "/x/huggingface/hub"),
        ("HF_HOME", "~/hf", f"{clean_environment}/hf/hub"),
        ("HUGGINGFACE_HUB_CACHE", "/old", "/old"),
        ("HF_HUB_CACHE", "$HOME/new", f"{clean_environment}/new"),
    ):
        monkeypatch.setenv(variable, value)
        assert str(hub_cache()) == expected


def test_names_that_people_give(
    stores: Stores, tmp_path: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = in_hub(stores.hub)
    assert stores.resolve("org/name") == snapshot
    assert stores.resolve(f"org/name@{COMMIT}") == snapshot
    monkeypatch.chdir(tmp_path)
    here = write_model(tmp_path / "mine")
    for spelling in ("mine", "./mine", str(here), "../" + tmp_path.name + "/mine"):
        assert stores.resolve(spelling) == here
    at_home = write_model(clean_environment / "m")
    assert stores.resolve("~/m") == at_home
    # A directory that is no model does not hide a repository of the same name; one that is does.
    (tmp_path / "org/name").mkdir(parents=True)
    assert stores.resolve("org/name") == snapshot
    write_model(tmp_path / "org/name")
    assert stores.resolve("org/name") == tmp_path / "org/name"


def test_names_of_the_catalogue_and_the_model_within(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = in_hub(stores.hub, "mlx-community/Llama-3.2-1B-Instruct-4bit")
    for name in ("llama-3.2-1b", "Llama-3.2-1B", f"llama-3.2-1b@{COMMIT}"):
        assert stores.resolve(name) == snapshot
    monkeypatch.setattr(catalogue, "POCKET_DIRECTORY", tmp_path / "package/pocket")
    with pytest.raises(NotFound) as caught:
        stores.resolve("pocket")
    assert str(tmp_path / "package/pocket") in caught.value.message
    assert "install" in (caught.value.hint or "")
    within = write_model(tmp_path / "package/pocket")
    assert stores.resolve("Pocket") == within
    monkeypatch.chdir(tmp_path)
    mine = write_model(tmp_path / "llama-3.2-1b")
    assert stores.resolve("llama-3.2-1b") == mine


@pytest.mark.parametrize(
    ("name", "alike"), [("lama-3.2-1b", "llama-3.2-1b"), ("gptoss-20b", "gpt-oss-20b"), ("poket", "pocket")]
)
def test_a_name_that_is_nearly_right(stores: Stores, name: str, alike: str) -> None:
    with pytest.raises(NotFound) as caught:
        stores.resolve(name)
    assert alike in (caught.value.hint or "")
    with pytest.raises(NotFound) as caught:
        stores.resolve("quite-another-thing-zz")
    assert "org/name" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "name",
    [
        *("no/such", "gpt2", "./nothing", "/nothing", "~/nothing", "a/b/c", "", "..", "org/../../name"),
        *("models--org--name", "org/name\0", "-x", "org/na me", "x" * 300, "./" + "x/" * 3000),
    ],
)
def test_what_is_not_here_says_where_it_looked(stores: Stores, name: str) -> None:
    in_hub(stores.hub)
    with pytest.raises(NotFound) as caught:
        stores.resolve(name)
    assert "looked at" in caught.value.message
    if name == "no/such":
        assert str(stores.hub / "models--no--such") in caught.value.message


def test_a_file_is_no_model(stores: Stores, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x")
    with pytest.raises(NotFound, match="a file, not a directory"):
        stores.resolve(str(file))


def test_a_reference_is_not_followed_out_of_the_cache(stores: Stores, tmp_path: Path) -> None:
    in_hub(stores.hub)
    write_model(tmp_path / "elsewhere")
    reference = stores.hub / "models--org--name" / "refs" / "main"
    for content in ("../../../../elsewhere", "", "\xff", "main"):
        reference.write_text(content, encoding="latin-1")
        with pytest.raises(NotFound, match="refs/main"):
            stores.resolve("org/name")
    for revision in ("../../x", "/etc/passwd", "v 1", "missing"):
        with pytest.raises(NotFound):
            stores.resolve(f"org/name@{revision}")


def test_a_digest_finds_its_directory(stores: Stores, tmp_path: Path) -> None:
    snapshot = in_hub(stores.hub)
    digest = ModelDirectory.open(snapshot).digest
    assert stores.find(digest) == snapshot
    held = stores.held(digest)
    assert held is not None
    assert (held.name, held.revision, held.is_complete) == ("org/name", COMMIT, True)
    assert "tokenizer.json" in held.files
    assert "run_me.py" not in held.files
    assert stores.find("ab" * 32) is None
    assert stores.find("../hub") is None
    further = write_model(tmp_path / "further", layers=5)
    other = ModelDirectory.open(further).digest
    assert stores.find(other) is None
    assert Stores(stores.weights, hub=stores.hub, directories=(further,)).find(other) == further


def test_a_directory_that_was_named_is_known_to_other_processes(stores: Stores, tmp_path: Path) -> None:
    mine = write_model(tmp_path / "mine")
    digest = stores.open(mine).digest
    other = Stores(stores.weights, hub=stores.hub)
    assert other.find(digest) == mine
    shutil.rmtree(mine)
    assert other.find(digest) is None


def test_headers_are_read_once(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = in_hub(stores.hub)
    in_hub(stores.hub, "org/broken", seed=2)
    broken = stores.hub / "models--org--broken/snapshots" / COMMIT / "config.json"
    broken.resolve().write_text("{}")
    digest = ModelDirectory.open(snapshot).digest
    opened: list[Path] = []

    class Counting(ModelDirectory):
        @classmethod
        def open(cls, path: Path) -> ModelDirectory:
            opened.append(path)
            return ModelDirectory.open(path)

    monkeypatch.setattr(module, "ModelDirectory", Counting)
    assert stores.find("ab" * 32) is None
    assert len(opened) == 2
    for each in (stores, Stores(stores.weights, hub=stores.hub)):
        assert each.find(digest) == snapshot
        assert each.find("ab" * 32) is None
    assert len(opened) == 2
    write_model(snapshot.parent / "new", layers=3)
    for file in sorted((snapshot.parent / "new").iterdir()):
        os.replace(file, snapshot / file.name)
    assert stores.find(digest) is None
    assert stores.find(ModelDirectory.open(snapshot).digest) == snapshot


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema":"exo.models/9","directories":{}}'])
def test_a_damaged_index_is_made_again(stores: Stores, content: bytes) -> None:
    snapshot = in_hub(stores.hub)
    stores.weights.mkdir()
    (stores.weights / "index.json").write_bytes(content)
    assert stores.find(ModelDirectory.open(snapshot).digest) == snapshot


def test_a_store_that_cannot_be_written_still_finds(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    stores = Stores(blocked / "weights", hub=tmp_path / "hub")
    snapshot = in_hub(stores.hub)
    assert stores.find(ModelDirectory.open(snapshot).digest) == snapshot


def test_our_own_part_is_held_and_not_found(stores: Stores, tmp_path: Path) -> None:
    mine = write_model(tmp_path / "mine", files=1)
    digest = ModelDirectory.open(mine).digest
    files = {file.name: file.read_bytes() for file in mine.iterdir() if file.suffix != ".py"}
    with PartialWriter.open(stores.weights, digest, name="m") as writer:
        writer.add({name: len(data) for name, data in files.items()})
        for name, data in files.items():
            if name.endswith(".json"):
                writer.put(name, data)
            else:
                writer.keep(name, 0, data[:1000])
        held = stores.held(digest)
        assert held is not None
        assert not held.is_complete
        assert stores.find(digest) is None
        assert [each.digest for each in stores.everything()] == [digest]
        writer.keep("model-00001-of-00001.safetensors", 0, files["model-00001-of-00001.safetensors"])
    assert stores.find(digest) == stores.weights / digest
    assert ModelDirectory.open(stores.weights / digest).digest == digest


def test_everything_lists_each_model_once(stores: Stores, tmp_path: Path) -> None:
    in_hub(stores.hub)
    copy = write_model(tmp_path / "copy")
    other = write_model(tmp_path / "other", layers=2)
    assert stores.open(copy).digest != stores.open(other).digest
    assert sorted(held.name for held in stores.everything()) == ["org/name", "other"]


def test_links_out_of_the_directory_are_not_offered(stores: Stores, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a private thing")
    mine = write_model(tmp_path / "mine")
    (mine / "vocab.json").symlink_to(secret)
    (mine / "merges.txt").symlink_to("tokenizer.json")
    os.mkfifo(mine / "added_tokens.json")
    weights = mine / "model-00001-of-00002.safetensors"
    weights.rename(tmp_path / "disk2.safetensors")
    weights.symlink_to(tmp_path / "disk2.safetensors")
    held = stores.held(stores.open(mine).digest)
    assert held is not None
    assert {"vocab.json", "added_tokens.json"}.isdisjoint(held.files)
    assert {"merges.txt", weights.name} <= set(held.files)


def test_a_file_that_was_exchanged_is_not_opened(stores: Stores, tmp_path: Path) -> None:
    mine = write_model(tmp_path / "mine")
    held = stores.held(stores.open(mine).digest)
    assert held is not None
    file = held.files["tokenizer.json"]
    os.close(held.open(file))
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * file.size)
    for kind in ("link", "fifo"):
        (mine / file.name).unlink()
        if kind == "link":
            (mine / file.name).symlink_to(secret)
        else:
            os.mkfifo(mine / file.name)
        with pytest.raises(InputOutput):
            held.open(file)
    (mine / file.name).unlink()
    with pytest.raises(InputOutput):
        held.open(file)
