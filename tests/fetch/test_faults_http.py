"""What goes wrong between the hub and here: what passes is outlasted, what lasts is said."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from exo_cli.errors import BadData, ExoError, NotAuthorised, NotFound, TryAgain, Unavailable
from exo_cli.fetch import hub_client, patience
from exo_cli.fetch.pieces import PIECE_BYTES
from tests.support import faults
from tests.support.faults import Ending, Fault
from tests.support.fetching import METADATA_BYTES, NAME, asked_hub, get, same, served, total_bytes
from tests.support.hub import COMMIT, Hub

FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
OTHER = "beef" * 10
LARGE = 1_000_000
"""Of an answer with a file's bytes; headers and small files are below."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served(tmp_path_factory.mktemp("model") / "served", pieces_a_file=1.5)


@pytest.fixture
def hub(clean_environment: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub_client, "STALL_S", 1.5)
    with asked_hub(monkeypatch, model) as running:
        yield running


def refused(cache: Path, *kinds: type[ExoError]) -> ExoError:
    """The error; nobody finds the model after it."""
    with pytest.raises(kinds) as caught:
        get(cache)
    assert not (cache / "models--org--name/refs/main").exists()
    return caught.value


WRONG_BYTES = ("a bit", "other bytes", "the bytes beside them under the right name")
PASSING: dict[str, Fault] = {
    "429 with Retry-After": faults.Status(429, retry_after="1"),
    "503 with Retry-After": faults.Status(503, retry_after="0"),
    "500": faults.Status(500),
    "502": faults.Status(502),
    "closed before the first byte": faults.Cut(0),
    "closed half way": faults.Cut(1_000_001),
    "reset": faults.Cut(1_000_001, Ending.RESET),
    "stalled": faults.Cut(1_000_001, Ending.STALL),
    "cut short, and said so": faults.Shortened(1_000_001),
    "the range ignored": faults.RangeIgnored(),
    "another range, and said so": faults.RangeShifted(4096),
    "no Content-Range": faults.Headers({"Content-Range": None}),
    "a bit": faults.Flipped(4_000_003),
    "other bytes": faults.Replaced(),
    "the bytes beside them under the right name": faults.RangeShifted(4096, silent=True),
    "a page to log in": faults.Text(),
    "drips": faults.Dripping(20e6),
}


@pytest.mark.parametrize("what", PASSING)
def test_what_happens_once_is_outlasted(hub: Hub, model: Path, tmp_path: Path, what: str) -> None:
    rule = hub.fail(PASSING[what], file=FIRST, least_bytes=LARGE)
    found = get(tmp_path / "cache")
    assert rule.befell == 1
    assert same(found, model)
    size = (model / FIRST).stat().st_size
    # Wrong bytes are told from right ones when the file is whole.
    whole_again = size if what in WRONG_BYTES else 0
    # A server that ignores ranges sends on until its connection is dropped.
    assert hub.sent[FIRST] <= size + whole_again + PIECE_BYTES + METADATA_BYTES
    assert hub.sent[SECOND] <= (model / SECOND).stat().st_size + METADATA_BYTES


LASTING: dict[str, tuple[Fault, tuple[type[ExoError], ...]]] = {
    "401": (faults.Status(401, error_code="GatedRepo"), (NotAuthorised,)),
    "403": (faults.Status(403), (NotAuthorised,)),
    "404": (faults.Status(404, error_code="EntryNotFound"), (NotFound, BadData)),
    "429": (faults.Status(429, retry_after="0"), (TryAgain,)),
    "429 for an hour": (faults.Status(429, retry_after="3600"), (TryAgain,)),
    "503": (faults.Status(503), (Unavailable, TryAgain)),
    "closed before the first byte": (faults.Cut(0), (Unavailable, TryAgain, BadData)),
    "reset": (faults.Cut(0, Ending.RESET), (Unavailable, TryAgain)),
    "stalled": (faults.Cut(0, Ending.STALL), (Unavailable, TryAgain)),
    "sent round and round": (faults.Redirected(), (Unavailable, BadData)),
    "sent to a file": (faults.Redirected("file:///etc/passwd"), (Unavailable, BadData)),
    "sent to nobody": (faults.Redirected("http://127.0.0.1:9/"), (Unavailable,)),
    "a page to log in": (faults.Text(), (BadData, Unavailable)),
    "packed": (faults.Compressed(), (BadData,)),
    "a bit": (faults.Flipped(4_000_003), (BadData,)),
    "another range": (faults.RangeShifted(4096), (BadData,)),
    "other bytes": (faults.Replaced(), (BadData,)),
}


@pytest.mark.parametrize("least_bytes", [0, LARGE])
@pytest.mark.parametrize("what", LASTING)
def test_what_lasts_is_said_and_costs_nothing_that_came(
    hub: Hub, model: Path, tmp_path: Path, what: str, least_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "TRIES", 2)
    fault, kinds = LASTING[what]
    hub.fail(fault, file=SECOND, times=None, least_bytes=least_bytes)
    error = refused(tmp_path / "cache", *kinds)
    assert any(each in error.message for each in (NAME, SECOND, hub.url))
    if least_bytes == 0:
        return  # it failed at the headers: nothing had come
    first = hub.sent.get(FIRST, 0)
    hub.clear()
    assert same(get(tmp_path / "cache"), model)
    assert hub.sent.get(FIRST, 0) + first <= (model / FIRST).stat().st_size + PIECE_BYTES + METADATA_BYTES


def test_a_hub_that_never_heeds_ranges_is_still_of_use(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.fail(faults.RangeIgnored(), times=None)
    for file in (FIRST, SECOND):
        hub.fail(faults.Cut(3_000_001), file=file, least_bytes=LARGE)
    assert same(get(tmp_path / "cache"), model)


def test_a_proxy_that_cuts_every_answer_is_got_through(hub: Hub, model: Path, tmp_path: Path) -> None:
    # As one that allows a megabyte an answer: each one moves it on.
    hub.fail(faults.Cut(LARGE), times=None)
    assert same(get(tmp_path / "cache"), model)
    assert hub.sent_bytes <= total_bytes(model) + 2 * PIECE_BYTES + METADATA_BYTES


def test_links_that_expire_are_asked_for_again(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.fail(faults.Cut(LARGE), file=FIRST, least_bytes=LARGE)

    def watch(file: str, count: int) -> None:
        if file == FIRST and hub.sent[FIRST] >= LARGE:
            hub.watcher = None
            hub.expire_links()

    hub.watcher = watch
    assert same(get(tmp_path / "cache"), model)


@pytest.mark.parametrize(
    "fault", [faults.Cut(3), faults.Cut(3, Ending.RESET), PASSING["429 with Retry-After"], PASSING["500"]]
)
def test_a_small_file_that_fails_once(hub: Hub, model: Path, tmp_path: Path, fault: Fault) -> None:
    rule = hub.fail(fault, file="config.json")
    assert same(get(tmp_path / "cache"), model)
    assert rule.befell == 1


def test_a_file_that_is_another_one_is_not_mixed_in(hub: Hub, model: Path, tmp_path: Path) -> None:
    """The branch moves while a fetch is interrupted: what is here is of the new commit, whole."""
    hub.fail(faults.Cut(2_000_000), file=SECOND, least_bytes=LARGE)
    hub.fail(faults.Status(403), file=SECOND, times=None, skip=1, least_bytes=LARGE)
    refused(tmp_path / "cache", NotAuthorised)
    hub.clear()
    other = served(tmp_path / "other", pieces_a_file=1.5, seed=1)
    hub.repositories[NAME].push(other, OTHER)
    found = get(tmp_path / "cache")
    assert found.name == OTHER
    assert same(found, other)
    # And the pinned one is to be had, without the new one's bytes.
    old = get(tmp_path / "cache", f"{NAME}@{COMMIT}")
    assert same(old, model)
    assert same(found, other)


def test_a_hub_that_changes_a_file_under_its_commit(hub: Hub, tmp_path: Path) -> None:
    """No real one does; a mirror might. The first answer's word is kept to."""
    model = served(tmp_path / "served", pieces_a_file=1.5)
    hub.add(NAME, model)
    data = (model / SECOND).read_bytes()
    changed = False

    def watch(file: str, count: int) -> None:
        nonlocal changed
        if file == FIRST and not changed:
            changed = True
            (model / SECOND).write_bytes(data[::-1])

    hub.watcher = watch
    refused(tmp_path / "cache", BadData)
    hub.watcher = None
    (model / SECOND).write_bytes(data)
    assert same(get(tmp_path / "cache"), model)


API: dict[str, tuple[Fault, tuple[type[ExoError], ...]]] = {
    "a page": (faults.Text(), (BadData,)),
    "other JSON": (faults.Text(b"[]", "application/json"), (BadData,)),
    "half of it": (faults.Cut(50), (Unavailable, TryAgain, BadData)),
    "round and round": (faults.Redirected(), (Unavailable, BadData)),
    "503": (faults.Status(503), (Unavailable, TryAgain)),
    "429": (faults.Status(429, retry_after="0"), (TryAgain,)),
}


@pytest.mark.parametrize("what", API)
def test_descriptions_that_are_none(hub: Hub, tmp_path: Path, what: str) -> None:
    fault, kinds = API[what]
    hub.fail(fault, site="api", times=None)
    refused(tmp_path / "cache", *kinds)
    assert hub.downloads == []


@pytest.mark.parametrize("what", ["503", "429", "half of it"])
def test_a_description_that_fails_once(hub: Hub, model: Path, tmp_path: Path, what: str) -> None:
    hub.fail(API[what][0], site="api")
    assert same(get(tmp_path / "cache"), model)


def test_retry_after_is_kept_to(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    hub.fail(faults.Status(429, retry_after="17"), site="api", times=2)
    hub.fail(faults.Status(503, retry_after="33"), file=FIRST, least_bytes=LARGE)
    with monkeypatch.context() as patched:
        patched.setattr(patience.Patience, "failed", _told(waited))
        get(tmp_path / "cache")
    assert sorted(waited) == [17, 17, 33]


def _told(waited: list[float]) -> Callable[[patience.Patience, patience.Passing], None]:
    def failed(_: patience.Patience, passing: patience.Passing) -> None:
        waited.append(passing.after_s or 0.0)

    return failed


def test_a_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.repositories[NAME].token = "hf_secret"
    assert same(get(tmp_path / "cache"), model)
    at_cdn = [each for each in hub.requests if each.path.startswith("/repos/")]
    assert at_cdn
    assert not any(each.with_token for each in at_cdn)
    for fault in (faults.Status(403), faults.Status(500), faults.Redirected(f"{hub.url}/x?t=hf_secret")):
        hub.clear()
        hub.fail(fault, site="resolve", times=None)
        error = refused(tmp_path / "other", ExoError)
        assert "hf_secret" not in error.message + (error.hint or "")


SECRET = "what other programs keep here"


@pytest.mark.parametrize(
    "name",
    [
        "../../../../outside.json",
        "/outside.json",
        "..\\outside.json",
        "sub/../../outside.json",
        "model-00001-of-00002.safetensors/../../outside.json",
        "CONFIG.JSON",
        "Model-00001-of-00002.safetensors",
        ".gitattributes.safetensors",
        "a\0.safetensors",
        "model:stream.safetensors",
    ],
)
def test_names_that_nobody_should_write(hub: Hub, tmp_path: Path, name: str) -> None:
    """Refused, or left where they are; everything that was written lies in the cache."""
    model = served(tmp_path / "small", pieces_a_file=0.01)
    repository = hub.add(NAME, model)
    repository.listed = [*sorted(each.name for each in model.iterdir()), name]
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    (place / "outside.json").write_text(SECRET)
    before = set(tmp_path.rglob("*"))
    with suppress(BadData):
        found = get(place / "cache")
        assert {each.name for each in found.iterdir()} <= {each.name for each in model.iterdir()}
        assert same(found, model)
    new = set(tmp_path.rglob("*")) - before
    assert all(each.is_relative_to(place / "cache") or each.is_relative_to(tmp_path / "home") for each in new)
    assert (place / "outside.json").read_text() == SECRET
    assert not any(SECRET.encode() in each.read_bytes() for each in new if each.is_file())
    assert not any(each.read_bytes() == b"evil" * 25 for each in new if each.is_file())


@pytest.mark.parametrize("size", [0, -1, 1 << 62, 10**30])
def test_sizes_that_cannot_be(hub: Hub, tmp_path: Path, size: int) -> None:
    hub.repositories[NAME].sizes = {FIRST: size}
    refused(tmp_path / "cache", BadData)
    assert hub.downloads == []


@pytest.mark.parametrize("more", [-1, 1, 10_000_000])
def test_sizes_that_are_not_the_files(hub: Hub, model: Path, tmp_path: Path, more: int) -> None:
    hub.repositories[NAME].sizes = {FIRST: (model / FIRST).stat().st_size + more}
    refused(tmp_path / "cache", BadData, Unavailable)
