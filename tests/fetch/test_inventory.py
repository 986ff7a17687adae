"""What is on a machine: the hub's cache, our stores, other programs' folders; checked, moved, removed."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from exo_cli.errors import BadData, NotFound
from exo_cli.fetch.bundle import LIST, export, read_contents
from exo_cli.fetch.ensure import ensure, fetch, take_in
from exo_cli.fetch.inventory import check, covered_text, inventory, matching, remove
from exo_cli.fetch.order import Order
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from tests.support.fetching import NAME, asked_hub, same, served
from tests.support.hub import COMMIT, Hub
from tests.support.weights import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return served(tmp_path / "served", pieces_a_file=0.3)


@pytest.fixture
def hub(clean_environment: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked_hub(monkeypatch, model) as running:
        yield running


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path / "weights", hub=tmp_path / "hub")


def get(stores: Stores, layers: tuple[int, int] | None = None) -> Path:
    return asyncio.run(fetch(NAME, stores, Order(layers=layers))).path


def test_a_whole_model_and_a_part_of_one(hub: Hub, model: Path, stores: Stores) -> None:
    assert inventory(stores) == []
    get(stores, (1, 3))
    (part,) = inventory(stores)
    assert (part.name, part.revision, part.place, part.state) == (NAME, COMMIT, "store", "unverified")
    assert (part.layers, part.layers_in_model) == (((1, 3),), 4)
    assert 0 < part.held_bytes < part.total_bytes
    path = get(stores)
    (whole,) = inventory(stores)
    assert (whole.path, whole.place, whole.state) == (path, "hub", "complete")
    assert covered_text(whole.layers, 4) == "all"
    assert whole.digest == part.digest
    assert whole.used_unix_s > 0
    assert matching([whole], NAME, None) == matching([whole], whole.digest[:12], None) == [whole]
    assert matching([whole], "nick", NAME) == [whole]
    assert matching([whole], str(path), None) == [whole]
    assert matching([whole], "other/name", None) == []


def test_one_bit_is_found_wherever_it_flipped(hub: Hub, model: Path, stores: Stores) -> None:
    path = get(stores)
    assert {each.state for each in check(inventory(stores), lambda checked: None)} == {"right"}
    for name in ("model-00002-of-00002.safetensors", "tokenizer.json"):
        blob = (path / name).resolve()
        data = blob.read_bytes()
        blob.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:] if len(data) > 101 else data[::-1])
        wrong = [each for each in check(inventory(stores), lambda checked: None) if each.state == "wrong"]
        assert [each.path.name for each in wrong] == [name]
        blob.write_bytes(data)


def test_a_wrong_file_of_our_own_store_is_fetched_again(hub: Hub, model: Path, stores: Stores) -> None:
    get(stores, (0, 3))
    (here,) = inventory(stores)
    (store,) = stores.partials()
    whole = next(file for file in store.map.files if file.is_whole and file.path.endswith("safetensors"))
    data = bytearray((store.path / whole.path).read_bytes())
    data[-1] ^= 1
    (store.path / whole.path).write_bytes(data)
    states = {each.path.name: each.state for each in check([here], lambda checked: None)}
    assert states[whole.path] == "wrong"
    assert "unknown" in states.values()
    assert same(get(stores), model)


def test_removing_takes_what_is_ours_and_nothing_else(
    hub: Hub, model: Path, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folders"
    write_model(folder / "maker" / "other", seed=7, tensor_bytes=600)
    monkeypatch.setenv("EXO_MODELS", str(folder))
    path = get(stores)
    hub.repositories[NAME].push(served(tmp_path / "new", pieces_a_file=0.3, seed=1), "beef" * 10)
    shutil.rmtree(path.parent.parent / "refs")
    newer = get(stores)
    found = {here.path: here for here in inventory(stores)}
    assert {path, newer, folder / "maker" / "other"} == set(found)
    assert remove([found[folder / "maker" / "other"]], stores) == 0
    assert remove([found[path]], stores) > 0
    assert not path.exists()
    # What another commit has as well stays.
    assert same(newer, tmp_path / "new")
    remove([found[newer]], stores)
    assert [here.place for here in inventory(stores)] == ["folder"]
    assert not [each for each in (stores.hub).rglob("blobs/*") if each.is_file()]
    get(stores, (0, 1))
    remove([here for here in inventory(stores) if here.place == "store"], stores)
    assert not [each for each in (tmp_path / "weights").iterdir() if each.is_dir() and len(each.name) == 64]


def test_other_programs_folders_spare_the_network(
    hub: Hub, model: Path, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under another name, so that only the content says that it is the same."""
    shutil.copytree(model, tmp_path / "home/.lmstudio/models/maker/model")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = get(stores)
    assert same(found, model)
    assert found.parent.parent.name == "models--org--name"
    assert hub.sent_bytes < 10_000 + sum(header.data_start for header in ModelDirectory.open(model).files)
    # Under the hub's own name nobody is asked at all.
    hub.clear()
    shutil.copytree(model, tmp_path / "home/.lmstudio/models/org/name")
    empty = Stores(tmp_path / "w2", hub=tmp_path / "h2")
    assert get(empty) == tmp_path / "home/.lmstudio/models/org/name"
    assert hub.requests == []


def test_another_models_bytes_are_not_taken_for_these(
    hub: Hub, model: Path, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fine-tune: equal configuration and headers, so an equal digest, and other weights."""
    other = served(tmp_path / "folders/maker/tune", pieces_a_file=0.3, seed=9)
    assert ModelDirectory.open(other).digest == ModelDirectory.open(model).digest
    monkeypatch.setenv("EXO_MODELS", str(tmp_path / "folders"))
    found = get(stores)
    assert same(found, model)


def test_what_the_library_brought_is_used(hub: Hub, model: Path, stores: Stores) -> None:
    found = snapshot_download(
        NAME, endpoint=hub.url, cache_dir=stores.hub, allow_patterns=["*.json", "*00001*"]
    )
    sent = hub.sent_bytes
    assert same(get(stores), model)
    assert Path(found) == get(stores)
    size = (model / "model-00002-of-00002.safetensors").stat().st_size
    assert hub.sent_bytes - sent <= size


def test_there_and_back_without_internet(
    hub: Hub, model: Path, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stick = get(stores), tmp_path / "stick"
    told: list[str] = []
    total = export(path, NAME, stick, lambda name, done, size: told.append(name))
    assert total == sum(each.stat().st_size for each in stick.iterdir() if each.name != LIST)
    assert set(told) == {each.name for each in stick.iterdir()} - {LIST}
    assert export(path, NAME, stick, lambda *_: None) == total
    ours = Stores(tmp_path / "w2", hub=tmp_path / "h2")
    hub.clear()
    name, brought = asyncio.run(take_in(stick, ours, Order()))
    assert (name, hub.requests) == (NAME, [])
    assert same(brought.path, model)
    assert asyncio.run(ensure(NAME, ours)) == brought.path
    # A stick that was damaged on its way is found out, and nothing of it stays.
    victim = stick / "model-00001-of-00002.safetensors"
    data = bytearray(victim.read_bytes())
    data[-3] ^= 8
    victim.write_bytes(data)
    third = Stores(tmp_path / "w3", hub=tmp_path / "h3")
    with pytest.raises(BadData, match="model-00001"):
        asyncio.run(take_in(stick, third, Order()))
    assert not (tmp_path / "h3").exists() or not list((tmp_path / "h3").rglob("snapshots"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema":"exo.model-files/1","repository":"../x","commit":"' + COMMIT + '","files":[]}',
        '{"schema":"exo.model-files/1","repository":"a/b","commit":"main","files":[]}',
        '{"schema":"exo.model-files/1","repository":"a/b","commit":"'
        + COMMIT
        + '","files":[{"name":"../config.json","size":3,"etag":"'
        + "1" * 40
        + '"}]}',
    ],
)
def test_a_list_that_is_no_list(tmp_path: Path, text: str) -> None:
    with pytest.raises(NotFound):
        read_contents(tmp_path)
    (tmp_path / LIST).write_text(text)
    with pytest.raises(BadData):
        read_contents(tmp_path)
