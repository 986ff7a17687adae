import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import mlx.core as mx
import pytest
from huggingface_hub import constants

from exo_cli.errors import (
    BadData,
    CannotCreate,
    ExoError,
    InputOutput,
    NotAuthorised,
    NotFound,
    TryAgain,
    Unavailable,
)
from exo_cli.fetch.ensure import ensure, is_whole
from exo_cli.fetch.meter import Moved
from exo_cli.fetch.stores import Stores
from exo_cli.models.directory import ModelDirectory
from tests.support import hub as hubs
from tests.support import tiny_models, toy_model
from tests.support.fetching import asked_hub
from tests.support.hub import COMMIT, Hub
from tests.support.weights import write_model

FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
TIMEOUT_S = 30


@pytest.fixture
def hub(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with asked_hub(monkeypatch) as running:
        yield running


@pytest.fixture
def model(tmp_path: Path, hub: Hub) -> Path:
    path = write_model(tmp_path / "served")
    (path / "pytorch_model.bin").write_bytes(b"pickle")
    (path / "README.md").write_text("# a model")
    hub.add("org/name", path)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def stores(cache: Path) -> Stores:
    return Stores(cache / "weights", hub=cache)


def get(name: str, cache: Path) -> Path:
    async def main() -> Path:
        return await asyncio.wait_for(ensure(name, stores(cache)), TIMEOUT_S)

    return asyncio.run(main())


def refused(name: str, cache: Path, kind: type[ExoError]) -> ExoError:
    with pytest.raises(kind) as caught:
        get(name, cache)
    return caught.value


def test_a_model_is_brought_once(hub: Hub, model: Path, cache: Path) -> None:
    told: list[Moved] = []

    async def main() -> Path:
        return await ensure("org/name", stores(cache), on_progress=told.append)

    found = asyncio.run(main())
    assert found == cache / "models--org--name/snapshots" / COMMIT
    expected = {each.name for each in model.iterdir()} - {"run_me.py", "pytorch_model.bin", "README.md"}
    assert {each.name for each in found.iterdir()} == expected
    assert all((found / name).read_bytes() == (model / name).read_bytes() for name in expected)
    assert ModelDirectory.open(found).digest == ModelDirectory.open(model).digest
    total = sum((model / name).stat().st_size for name in expected)
    assert [each.done_bytes for each in told] == sorted(each.done_bytes for each in told)
    assert (told[-1].done_bytes, told[-1].total_bytes, told[-1].repository) == (total, total, "org/name")
    # Other programs find it, and we do not ask again.
    asked = len(hub.requests)
    assert get("org/name", cache) == found
    assert Stores(cache / "weights", hub=cache).resolve("org/name") == found
    assert huggingface_hub.hf_hub_download("org/name", "config.json", cache_dir=cache, local_files_only=True)
    assert len(hub.requests) == asked


def test_names_of_the_catalogue_and_revisions(hub: Hub, model: Path, cache: Path) -> None:
    hub.add("mlx-community/Llama-3.2-1B-Instruct-4bit", model, revisions=("main", "v1/x"))
    found = get("Llama-3.2-1B", cache)
    assert found.parent.parent.name == "models--mlx-community--Llama-3.2-1B-Instruct-4bit"
    assert get(f"org/name@{COMMIT}", cache).name == COMMIT
    # A commit names itself; no revision stands for it.
    assert not (cache / "models--org--name/refs").exists()
    assert get("llama-3.2-1b@v1/x", cache) == found
    assert (found.parent.parent / "refs/v1/x").read_text() == COMMIT
    assert get(str(model), cache) == model


def test_what_is_no_repository_is_not_asked_for(hub: Hub, cache: Path) -> None:
    for name in (
        "gpt2",
        "lama-3.2-1b",
        "./org/name",
        "a/b/c",
        "../x",
        "org/na me",
        "",
        "org/name@..",
        "x" * 300,
    ):
        error = refused(name, cache, NotFound)
        assert "looked at" in error.message
    assert hub.requests == []
    assert (
        refused("lama-3.2-1b", cache, NotFound).hint
        == "Did you mean llama-3.2-1b or llama-3.2-3b or llama-3.1-8b?"
    )


def test_files_that_came_whole_are_not_asked_for_again(hub: Hub, model: Path, cache: Path) -> None:
    hub.faults.file_status[SECOND] = 500
    assert "500" in refused("org/name", cache, Unavailable).message
    snapshot = cache / "models--org--name/snapshots" / COMMIT
    assert not snapshot.exists()
    # The name stands for nothing until everything is there.
    with pytest.raises(NotFound, match="models--org--name"):
        Stores(cache / "weights", hub=cache).resolve("org/name")
    hub.faults.file_status.clear()
    assert get("org/name", cache) == snapshot
    assert hub.sent[FIRST] == (model / FIRST).stat().st_size


def test_a_snapshot_that_lacks_weights_is_completed(hub: Hub, model: Path, cache: Path) -> None:
    found = get("org/name", cache)
    (found / SECOND).resolve().unlink()
    hub.requests.clear()
    assert get("org/name", cache) == found
    assert set(hub.downloads) == {SECOND}
    single = write_model(cache / "single", files=1)
    (single / "model.safetensors.index.json").unlink()
    assert is_whole(single)
    next(single.glob("*.safetensors")).unlink()
    assert not is_whole(single)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: Hub, model: Path, cache: Path) -> None:
    hub.faults.cut_after[FIRST] = 3000
    found = get("org/name", cache)
    assert (found / FIRST).read_bytes() == (model / FIRST).read_bytes()
    assert hub.sent[FIRST] <= (model / FIRST).stat().st_size + 3000


@pytest.mark.process
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_taken_up_again(hub: Hub, model: Path, cache: Path, with_signal: signal.Signals) -> None:
    hub.faults.stall_after[SECOND] = 3000
    program = (
        "import asyncio, sys, pathlib\n"
        "from exo_cli.fetch.ensure import ensure\n"
        "from exo_cli.fetch.stores import Stores\n"
        "cache = pathlib.Path(sys.argv[1])\n"
        "asyncio.run(ensure('org/name', Stores(cache / 'weights', hub=cache)))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(cache)], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        assert hub.stalled.wait(TIMEOUT_S)
        process.send_signal(with_signal)
        # A download that hangs keeps nobody: the library itself would wait for its time-outs.
        assert process.wait(8) != 0
    finally:
        process.kill()
        process.wait()
    hub.faults.stall_after.clear()
    assert is_whole(get("org/name", cache))
    # Only beginnings may be asked for once more.
    assert hub.sent[FIRST] < 1.5 * (model / FIRST).stat().st_size


def test_a_gated_repository_wants_a_token(
    hub: Hub, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/name"].token = "hf_right"
    error = refused("org/name", cache, NotAuthorised)
    assert "HF_TOKEN" in (error.hint or "")
    assert f"{hub.url}/org/name" in (error.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = refused("org/name", cache, NotAuthorised)
    assert "403" in error.message
    assert "hf_wrong" not in error.message + (error.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert is_whole(get("org/name", cache))


def test_what_the_hub_does_not_have(
    hub: Hub, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Strangers it does not tell.
    refused("org/other", cache, NotAuthorised)
    monkeypatch.setenv("HF_TOKEN", "hf_anybody")
    for name in ("org/other", "org/name@v9", "llama-3.2-1b"):
        error = refused(name, cache, NotFound)
        assert hub.url in error.message
        assert str(cache / "models--") in error.message
        assert "Did you mean" not in (error.hint or "")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, NotAuthorised), (403, NotAuthorised), (429, TryAgain), (500, Unavailable), (503, Unavailable)],
)
def test_answers_of_a_hub_in_trouble(
    hub: Hub, model: Path, cache: Path, status: int, kind: type[ExoError]
) -> None:
    hub.faults.status = status
    refused("org/name", cache, kind)
    assert not (cache / "models--org--name").exists()


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{}", b'{"id": "org/name", "sha": "x"}'])
def test_something_else_that_answers(hub: Hub, model: Path, cache: Path, body: bytes) -> None:
    hub.faults.api_body = body
    refused("org/name", cache, BadData)


def test_no_hub_at_all(cache: Path, clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hubs.running() as gone:
        pass
    monkeypatch.setenv("HF_ENDPOINT", gone.url)
    assert gone.url in refused("org/name", cache, Unavailable).message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refused("org/name", cache, NotFound)
    assert "HF_HUB_OFFLINE" in error.message
    assert str(cache / "models--org--name") in error.message


def test_offline_runs_what_is_here(
    hub: Hub, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = get("org/name", cache)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get("org/name", cache) == found
    (found / SECOND).unlink()
    assert f"{found} (weights are missing)" in refused("org/name", cache, NotFound).message


def test_a_disk_without_room_is_said_first(
    hub: Hub, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(each.stat().st_size for each in model.iterdir() if each.suffix in (".json", ".safetensors"))
    free = total - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 1, free))
    error = refused("org/name", cache, CannotCreate)
    assert f"{total:,}" in error.message
    assert f"{free:,}" in error.message
    assert hub.downloads == []
    free = total
    assert is_whole(get("org/name", cache))
    # What is here needs no room again.
    free = 0
    (cache / "models--org--name/refs/main").unlink()
    assert is_whole(get("org/name", cache))


@pytest.mark.parametrize(("number", "kind"), [(28, CannotCreate), (122, CannotCreate), (5, InputOutput)])
def test_a_disk_that_fills_up_or_fails(
    hub: Hub, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[ExoError]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", fails)
        assert "cannot write" in refused("org/name", cache, kind).message
    assert is_whole(get("org/name", cache))


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/evil.json", "a/../../b.json", "..\\evil.json"])
def test_names_that_lead_out_of_the_cache(hub: Hub, model: Path, cache: Path, name: str) -> None:
    hub.repositories["org/name"].listed = ["config.json", FIRST, SECOND, name]
    assert "nothing of it was fetched" in refused("org/name", cache, BadData).message
    assert hub.downloads == []


def test_what_a_repository_has_beside_a_model(hub: Hub, model: Path, cache: Path) -> None:
    (model / "consolidated.safetensors").write_bytes(b"the same weights once more")
    listed = sorted(each.name for each in model.iterdir())
    hub.repositories["org/name"].listed = [*listed, "original/consolidated.safetensors", "onnx/config.json"]
    found = get("org/name", cache)
    assert {each.name for each in found.iterdir() if each.suffix == ".safetensors"} == {FIRST, SECOND}
    for listing in ([FIRST], ["config.json"], ["config.json", "model.safetensors", "MODEL.safetensors"]):
        hub.repositories["org/name"].listed = listing
        refused("org/name@main", cache / "other", BadData)


@pytest.mark.process
def test_run_brings_a_model_and_runs_it(hub: Hub, tmp_path: Path, clean_environment: Path) -> None:
    mx.disable_compile()
    overrides = {"vocab_size": toy_model.WORDS + 2}.items()
    path = tiny_models.build("llama", tmp_path / "tiny", overrides=overrides, files=2)
    toy_model.write_tokenizer(path)
    hub.add("org/tiny", path)
    command = [sys.executable, "-m", "exo_cli", "run", "org/tiny", "t5 t7", "--max-tokens", "3"]
    command += ["--temperature", "0"]

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=3 * TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **more},
            check=False,
        )

    first = run()
    assert first.returncode == 0, first.stderr
    assert "fetching org/tiny" in first.stderr
    assert "it runs on this machine alone" in first.stderr
    # Nothing but the answer goes to standard output; the second time, nobody asks the hub.
    again = run(HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
    assert "fetching" not in again.stderr
    missing = run(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "empty"))
    assert missing.returncode == NotFound.exit
    assert str(tmp_path / "empty/models--org--tiny") in missing.stderr
