"""The hub of the tests is a faithful one: huggingface_hub's own client finds all there that it asks for.

And its faults are what they are called, as a plain HTTP client sees them.
"""

import gzip
import hashlib
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support import faults
from tests.support import hub as hubs
from tests.support.faults import Ending
from tests.support.hub import COMMIT, Hub
from tests.support.weights import write_model

FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
OTHER = "beef" * 10


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hubs.running() as running:
        yield running


@pytest.fixture
def model(tmp_path: Path, hub: Hub) -> Path:
    path = write_model(tmp_path / "served")
    (path / "original").mkdir()
    (path / "original/params.json").write_text('{"n": 1}')
    hub.add("org/name", path, revisions=("main", "v1/x"))
    return path


def snapshot(hub: Hub, tmp_path: Path, name: str = "org/name", **options: object) -> Path:
    cache = tmp_path / "cache"
    return Path(snapshot_download(name, cache_dir=cache, endpoint=hub.url, **options))  # type: ignore[call-overload]


def test_a_snapshot_is_brought_with_a_token_that_the_cdn_never_sees(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    found = snapshot(hub, tmp_path, token="hf_mine")
    names = {each.relative_to(model) for each in model.rglob("*") if each.is_file()}
    assert {each.relative_to(found) for each in found.rglob("*") if each.is_file()} == names
    assert all((found / name).read_bytes() == (model / name).read_bytes() for name in names)
    weights = (model / FIRST).read_bytes()
    assert (found / FIRST).resolve().name == hashlib.sha256(weights).hexdigest()
    at_cdn = [each for each in hub.requests if each.path.startswith("/repos/")]
    assert {each.file for each in at_cdn} == {FIRST, SECOND}
    assert not any(each.with_token for each in at_cdn)
    assert all(each.with_token for each in hub.requests if each not in at_cdn)
    assert hub.sent_bytes == sum((model / name).stat().st_size for name in names)
    # What is there is asked for no more, and found without a network.
    before = list(hub.downloads)
    assert snapshot(hub, tmp_path) == found
    assert hub.downloads == before
    assert snapshot(hub, tmp_path, local_files_only=True) == found


def test_what_model_info_and_the_tree_say(hub: Hub, model: Path) -> None:
    api = HfApi(endpoint=hub.url)
    info = api.model_info("org/name", files_metadata=True)
    assert (info.id, info.sha, info.gated, info.private) == ("org/name", COMMIT, False, False)
    described = {each.rfilename: each for each in info.siblings or []}
    lfs = described[FIRST].lfs
    assert lfs is not None
    assert (lfs.size, lfs.sha256) == (
        described[FIRST].size,
        hashlib.sha256((model / FIRST).read_bytes()).hexdigest(),
    )
    config = (model / "config.json").read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(config) + config, usedforsecurity=False).hexdigest()
    assert (described["config.json"].size, described["config.json"].blob_id) == (len(config), git)
    assert described["config.json"].lfs is None
    # Sizes are told to those who ask for them.
    assert {each.size for each in api.model_info("org/name").siblings or []} == {None}
    hub.page_entries = 2
    tree = list(api.list_repo_tree("org/name", recursive=True))
    assert [each.path for each in tree] == list(described)
    assert {each.path: each.size for each in tree if isinstance(each, huggingface_hub.RepoFile)} == {
        name: each.size for name, each in described.items()
    }


def test_metadata_of_a_file(hub: Hub, model: Path) -> None:
    weights = get_hf_file_metadata(f"{hub.url}/org/name/resolve/main/{FIRST}")
    assert weights.commit_hash == COMMIT
    assert weights.etag == hashlib.sha256((model / FIRST).read_bytes()).hexdigest()
    assert weights.size == (model / FIRST).stat().st_size
    assert weights.location.startswith(hub.cdn_url)
    assert weights.xet_file_data is None
    config = get_hf_file_metadata(f"{hub.url}/org/name/resolve/main/config.json")
    assert (config.commit_hash, config.size) == (COMMIT, (model / "config.json").stat().st_size)
    assert config.location.startswith(hub.url)
    with pytest.raises(EntryNotFoundError):
        get_hf_file_metadata(f"{hub.url}/org/name/resolve/main/none.json")


def test_revisions_are_pinned(hub: Hub, model: Path, tmp_path: Path) -> None:
    first = snapshot(hub, tmp_path)
    repository = hub.repositories["org/name"]
    repository.push(write_model(tmp_path / "next", seed=1), OTHER)
    assert snapshot(hub, tmp_path, revision="v1/x").name == OTHER
    assert HfApi(endpoint=hub.url).model_info("org/name").sha == OTHER
    assert snapshot(hub, tmp_path, revision=COMMIT) == first
    old = hf_hub_download("org/name", FIRST, revision=COMMIT, cache_dir=tmp_path / "b", endpoint=hub.url)
    assert Path(old).read_bytes() == (model / FIRST).read_bytes()
    with pytest.raises(RevisionNotFoundError):
        snapshot(hub, tmp_path, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        HfApi(endpoint=hub.url).model_info("org/name", revision="f" * 40)


def test_gated_and_private(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.repositories["org/name"].token = "hf_right"
    api = HfApi(endpoint=hub.url)
    assert api.model_info("org/name", token=False).gated == "manual"
    for token, status in ((False, 401), ("hf_wrong", 403)):
        with pytest.raises(GatedRepoError) as refused:
            snapshot(hub, tmp_path, token=token)
        assert refused.value.response.status_code == status
    assert (snapshot(hub, tmp_path, token="hf_right") / FIRST).exists()
    hub.repositories["org/name"].private = True
    for name, given, status in (
        ("org/name", False, 401),
        ("org/name", "hf_x", 404),
        ("org/none", "hf_x", 404),
    ):
        with pytest.raises(RepositoryNotFoundError) as unseen:
            api.model_info(name, token=given)
        assert unseen.value.response.status_code == status
    assert api.model_info("org/name", token="hf_right").private


def test_offline(hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = snapshot(hub, tmp_path)
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert snapshot(hub, tmp_path) == found
    with pytest.raises(LocalEntryNotFoundError):
        snapshot(hub, tmp_path, name="org/other")
    with pytest.raises(OfflineModeIsEnabled):
        HfApi(endpoint=hub.url).model_info("org/name")
    assert len(hub.requests) == asked


def test_a_download_goes_on_where_it_broke(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fail(faults.Cut(3000), file=FIRST)
    found = snapshot(hub, tmp_path)
    size = (model / FIRST).stat().st_size
    assert (found / FIRST).read_bytes() == (model / FIRST).read_bytes()
    assert hub.asked(FIRST) == [None, (3000, size)]
    assert hub.sent[FIRST] == size


def test_links_expire(hub: Hub, model: Path) -> None:
    at = f"{hub.url}/org/name/resolve/main/{FIRST}"
    link = get_hf_file_metadata(at).location
    assert get(link)[0] == 200
    hub.expire_links()
    assert get(link)[0] == 403
    assert get(get_hf_file_metadata(at).location)[0] == 200


def test_trouble_reaches_the_client(hub: Hub, model: Path) -> None:
    api = HfApi(endpoint=hub.url)
    hub.fail(faults.Status(503, retry_after="7"), site="api")
    with pytest.raises(HfHubHTTPError) as told:
        api.model_info("org/name")
    assert told.value.response.headers["Retry-After"] == "7"
    assert api.model_info("org/name").sha == COMMIT
    for fault in (faults.Text(), faults.Text(b"[1]", "application/json")):
        hub.fail(fault, site="api")
        with pytest.raises((ValueError, TypeError)):
            api.model_info("org/name")
    hub.fail(faults.Padded(3_000_000), site="api")
    hub.fail(faults.Compressed(), site="api")
    assert api.model_info("org/name").sha == COMMIT


Got = tuple[int, dict[str, str], bytes]


def get(url: str, ask: tuple[int, int] | None = None, **headers: str) -> Got:
    """Status, headers and what came of the body, which need not be all of it."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        if ask is not None:
            headers["Range"] = f"bytes={ask[0]}-{ask[1] - 1}"
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        answer = connection.getresponse()
        body = bytearray()
        try:
            while data := answer.read1(65536):
                body += data
        except ConnectionResetError:
            body += b"RESET"
        return answer.status, dict(answer.getheaders()), bytes(body)
    finally:
        connection.close()


@pytest.fixture
def link(hub: Hub, model: Path) -> str:
    return get_hf_file_metadata(f"{hub.url}/org/name/resolve/main/{FIRST}").location


def test_ranges(hub: Hub, model: Path, link: str) -> None:
    data = (model / FIRST).read_bytes()
    size = len(data)
    status, headers, body = get(link, (1000, 2000))
    assert (status, headers["Content-Range"], body) == (206, f"bytes 1000-1999/{size}", data[1000:2000])
    assert get(link, (size - 5, size + 100))[2] == data[-5:]
    assert get(link, Range="bytes=-7")[2] == data[-7:]
    assert get(link, Range=f"bytes={size - 3}-")[2] == data[-3:]
    status, headers, body = get(link, (size, size + 1))
    assert (status, headers["Content-Range"], body) == (416, f"bytes */{size}", b"")
    tag = get(link, (0, 1))[1]["ETag"]
    assert get(link, (0, 1), **{"If-Range": tag})[0] == 206
    (model / FIRST).write_bytes(data[::-1])
    assert get(link, (0, 1), **{"If-Range": tag})[0::2] == (200, data[::-1])
    assert hub.asked(FIRST)[:2] == [(1000, 2000), (size - 5, size)]


def test_faults_are_what_they_are_called(hub: Hub, model: Path, link: str) -> None:
    data = (model / FIRST).read_bytes()
    size = len(data)

    def with_fault(fault: faults.Fault, ask: tuple[int, int] | None = (1000, 3000)) -> Got:
        rule = hub.fail(fault, file=FIRST)
        got = get(link, ask)
        assert rule.befell == 1
        return got

    status, headers, body = with_fault(faults.Cut(500))
    assert (status, headers["Content-Length"], body) == (206, "2000", data[1000:1500])
    assert with_fault(faults.Cut(0, Ending.RESET))[2] == b"RESET"
    status, headers, body = with_fault(faults.Shortened(500))
    assert (headers["Content-Range"], body) == (f"bytes 1000-1499/{size}", data[1000:1500])
    assert headers["Content-Length"] == "500"
    assert with_fault(faults.Shortened(500), None)[::2] == (200, data[:500])
    assert (
        with_fault(faults.Flipped(1001 * 8))[2] == data[1000:1001] + bytes([data[1001] ^ 1]) + data[1002:3000]
    )
    assert with_fault(faults.Flipped(0))[2] == data[1000:3000]
    assert with_fault(faults.Replaced())[2] == bytes(2000)
    status, headers, body = with_fault(faults.RangeIgnored())
    assert (status, headers.get("Content-Range"), body) == (200, None, data)
    assert with_fault(faults.RangeShifted(100))[1]["Content-Range"] == f"bytes 1100-3099/{size}"
    status, headers, body = with_fault(faults.RangeShifted(100, silent=True))
    assert (headers["Content-Range"], body) == (f"bytes 1000-2999/{size}", data[1100:3100])
    assert with_fault(faults.Headers({"ETag": '"other"', "Content-Range": None}))[1]["ETag"] == '"other"'
    status, headers, body = with_fault(faults.Redirected())
    assert (status, headers["Location"]) == (302, link)
    assert with_fault(faults.Status(429, retry_after="3"))[1]["Retry-After"] == "3"
    assert gzip.decompress(with_fault(faults.Compressed())[2]) == data[1000:3000]
    assert with_fault(faults.Dripping(1e6))[2] == data[1000:3000]
    # It is over, and was never anybody else's.
    assert get(link)[2] == data


def test_faults_befall_whom_they_should(hub: Hub, model: Path, link: str) -> None:
    other = get_hf_file_metadata(f"{hub.url}/org/name/resolve/main/{SECOND}").location
    hub.fail(faults.Status(500), file=SECOND, times=2, skip=1)
    assert get(link)[0] == 200
    assert [get(other)[0] for _ in range(4)] == [200, 500, 500, 200]
    hub.fail(faults.Redirected(), site="resolve", method=None, times=None)
    with pytest.raises(Exception, match="redirect"):
        get_hf_file_metadata(f"{hub.url}/org/name/resolve/main/{FIRST}")
    hub.clear()
    assert get_hf_file_metadata(f"{hub.url}/org/name/resolve/main/{FIRST}").commit_hash == COMMIT


def test_a_stall_lasts(hub: Hub, model: Path, link: str) -> None:
    hub.fail(faults.Cut(100, Ending.STALL), file=FIRST)
    connection = http.client.HTTPConnection(urlsplit(link).netloc, timeout=0.3)
    connection.request("GET", link.removeprefix(hub.cdn_url))
    answer = connection.getresponse()
    assert answer.read(100) == (model / FIRST).read_bytes()[:100]
    with pytest.raises(TimeoutError):
        answer.read(1)
    connection.close()
    assert hub.stalled.is_set()


def test_evil_names_are_listed_and_nothing_of_this_machine_is_given(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.json").write_text("secret")
    evil = ["../secret.json", "/etc/passwd", "CONFIG.JSON"]
    hub.repositories["org/name"].listed = ["config.json", *evil]
    hub.repositories["org/name"].sizes = {"config.json": 1 << 60}
    info = HfApi(endpoint=hub.url).model_info("org/name", files_metadata=True)
    described = {each.rfilename: each.size for each in info.siblings or []}
    assert described == {"config.json": 1 << 60, **dict.fromkeys(evil, 100)}
    assert get(f"{hub.url}/api/resolve-cache/models/org/name/{COMMIT}/../secret.json")[2] == b"evil" * 25


@pytest.mark.process
def test_a_hub_of_its_own_process(model: Path) -> None:
    command = [sys.executable, "-m", "tests.support.hub", f"org/name={model}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        size = get_hf_file_metadata(f"{url}/org/name/resolve/main/{FIRST}").size
        seen = json.loads(get(f"{url}/-/requests")[2])
        process.communicate()
    assert size == (model / FIRST).stat().st_size
    assert [each["file"] for each in seen] == [FIRST, ""]
