import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from exo_cli import config
from exo_cli.errors import BadData, CannotCreate, ExoError, NotAuthorised
from exo_cli.trust import changes, derive, keyfile
from exo_cli.trust.keyring import INSECURE, ClusterKey, Keyring, KeyringSource, load_keyring

SECRET = b"canary-secret-of-thirty-2-bytes!"
OTHER = bytes(range(32))


def test_a_key_shows_its_fingerprint_and_never_its_secret() -> None:
    key = ClusterKey(SECRET)
    assert key.fingerprint == derive.fingerprint(SECRET)
    for text in (repr(key), str(key), f"{key}", repr(Keyring("cluster", (key,))), repr([key])):
        assert key.fingerprint in text
        assert "canary" not in text
        assert SECRET.hex() not in text


def test_a_key_of_another_size_is_a_bug_and_not_shown() -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        ClusterKey(SECRET[:-1])
    assert "canary" not in str(caught.value)


def test_keys_are_values() -> None:
    assert ClusterKey(SECRET) == ClusterKey(bytes(SECRET))
    assert len({ClusterKey(SECRET), ClusterKey(SECRET), ClusterKey(OTHER)}) == 2


def test_a_ring_finds_its_keys() -> None:
    new, old = ClusterKey(OTHER), ClusterKey(SECRET)
    ring = Keyring("cluster", (new, old))
    assert ring.primary is new
    assert ring.fingerprints == (new.fingerprint, old.fingerprint)
    assert ring.by_fingerprint(old.fingerprint) is old
    assert ring.by_fingerprint("0" * 16) is None


def test_without_a_cluster_key_a_local_one_is_made_once_and_silently(
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = load_keyring()
    assert (first.kind, len(first.keys)) == ("local", 1)
    assert load_keyring() == first
    path = config.local_key_path()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert capfd.readouterr() == ("", "")


def test_the_cluster_key_comes_first() -> None:
    load_keyring()
    keyfile.create(config.cluster_key_path(), [OTHER, SECRET])
    ring = load_keyring()
    assert ring == Keyring("cluster", (ClusterKey(OTHER), ClusterKey(SECRET)))


def test_a_bad_cluster_key_is_never_replaced_by_the_local_one() -> None:
    path = config.cluster_key_path()
    keyfile.create(path, [SECRET])
    path.chmod(0o644)
    with pytest.raises(NotAuthorised):
        load_keyring()
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(BadData):
        KeyringSource()
    assert not config.local_key_path().exists()


def test_insecure_is_one_published_key_and_touches_no_file(clean_environment: Path) -> None:
    assert load_keyring(insecure=True) == INSECURE == KeyringSource(insecure=True).current()
    assert INSECURE.kind == "insecure"
    assert os.listdir(clean_environment) == []


def test_a_home_that_cannot_be_written_is_said(clean_environment: Path) -> None:
    (clean_environment / ".config").touch()
    with pytest.raises(CannotCreate) as caught:
        load_keyring()
    assert str(config.local_key_path()) in caught.value.message


def test_threads_that_start_at_once_agree_on_the_local_key() -> None:
    rings: list[Keyring] = []
    gate = threading.Barrier(8)

    def load() -> None:
        gate.wait()
        rings.append(load_keyring())

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rings) == 8
    assert len(set(rings)) == 1


# -- a source follows its files --------------------------------------------------------------------


def test_a_source_follows_the_whole_life_of_a_key() -> None:
    path = config.cluster_key_path()
    source = KeyringSource()
    local = source.current()
    assert local.kind == "local"
    changes.new(path)
    made = source.current()
    assert made.kind == "cluster"
    changes.rotate(path)
    rotating = source.current()
    assert rotating.keys[1:] == made.keys
    changes.finish(path)
    assert source.current().keys == rotating.keys[:1]
    path.unlink()
    assert source.current() == local
    assert source.problem is None


def test_an_unchanged_file_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    keyfile.create(config.cluster_key_path(), [SECRET])
    source = KeyringSource()
    ring = source.current()
    monkeypatch.setattr(keyfile, "read", lambda path: pytest.fail(f"{path} was read"))
    assert source.current() is ring


def _half_way(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _opened(path: Path) -> None:
    path.chmod(0o644)


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [(_half_way, BadData), (_emptied, BadData), (_opened, NotAuthorised), (_a_directory, BadData)],
)
def test_a_spoiled_file_leaves_the_last_good_ring(
    spoil: Callable[[Path], None], kind: type[ExoError]
) -> None:
    path = config.cluster_key_path()
    keyfile.create(path, [SECRET])
    source = KeyringSource()
    ring = source.current()
    spoil(path)
    assert source.current() == ring
    assert type(source.problem) is kind
    assert source.current() == ring
    if path.is_dir():
        path.rmdir()
    keyfile.replace(path, [OTHER])
    assert source.current().keys == (ClusterKey(OTHER),)
    assert source.problem is None


def test_a_passing_failure_is_tried_again_though_the_file_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = config.cluster_key_path()
    keyfile.create(path, [SECRET])
    source = KeyringSource()
    keyfile.replace(path, [OTHER])

    def no_descriptors(_path: Path) -> tuple[bytes, ...]:
        raise BadData("too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(keyfile, "read", no_descriptors)
        assert source.current().keys == (ClusterKey(SECRET),)
        assert source.problem is not None
    assert source.current().keys == (ClusterKey(OTHER),)
    assert source.problem is None
