import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from exo_cli.errors import BadData, CannotCreate, NotFound
from exo_cli.trust import changes, keyfile
from exo_cli.trust.derive import fingerprint

OLD, NEW, ELSE = (bytes([n]) * 32 for n in (1, 2, 3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "exo" / "cluster.key"


def test_new_once(path: Path) -> None:
    change = changes.new(path)
    assert (change.changed, change.dropped) == (True, ())
    with pytest.raises(CannotCreate) as caught:
        changes.new(path)
    assert caught.value.exit == 73
    again = changes.new(path, if_missing=True)
    assert (again.changed, again.fingerprints) == (False, change.fingerprints)
    assert changes.new(path.parent / "other").fingerprints != change.fingerprints


@pytest.mark.parametrize(
    ("ours", "theirs", "after"),
    [
        ((OLD,), (OLD,), (OLD,)),
        ((OLD,), (NEW,), None),
        # a rotation arrives
        ((OLD,), (NEW, OLD), (NEW, OLD)),
        ((NEW, OLD), (NEW, OLD), (NEW, OLD)),
        # from a machine that finished before us, or has not joined: nothing is dropped by joining
        ((NEW, OLD), (NEW,), (NEW, OLD)),
        ((NEW, OLD), (OLD,), (NEW, OLD)),
        # from a machine that has not finished: what we dropped does not come back
        ((NEW,), (NEW, OLD), (NEW,)),
        # the next rotation, before we finished this one
        ((NEW, OLD), (ELSE, NEW), (ELSE, NEW)),
        # two machines rotated at once: both still hold the old key, so nobody is cut off
        ((NEW, OLD), (ELSE, OLD), (ELSE, OLD)),
        ((NEW,), (ELSE, OLD), None),
        ((NEW, OLD), (ELSE,), None),
        # a primary that we hold is ours, whatever stands beside it
        ((OLD,), (OLD, ELSE), (OLD,)),
    ],
)
def test_joining(
    path: Path, ours: tuple[bytes, ...], theirs: tuple[bytes, ...], after: tuple[bytes, ...] | None
) -> None:
    keyfile.create(path, ours)
    if after is None:
        with pytest.raises(CannotCreate, match="another cluster"):
            changes.join(path, theirs)
        assert keyfile.read(path) == ours
    else:
        change = changes.join(path, theirs)
        assert keyfile.read(path) == after
        assert change.changed == (after != ours)
        assert change.fingerprints == tuple(map(fingerprint, after))
        assert change.dropped == tuple(fingerprint(key) for key in ours if key not in after)
        assert not changes.join(path, theirs).changed
    changes.join(path, theirs, replace=True)
    assert keyfile.read(path) == theirs


def test_joining_without_a_key(path: Path) -> None:
    assert changes.join(path, (NEW, OLD)).changed
    assert keyfile.read(path) == (NEW, OLD)


def test_rotating_and_finishing(path: Path) -> None:
    keyless: tuple[Callable[[Path], object], ...] = (changes.rotate, changes.finish, changes.cluster_secrets)
    for act in keyless:
        with pytest.raises(NotFound, match="no cluster key"):
            act(path)
    keyfile.create(path, (OLD,))
    assert not changes.finish(path).changed
    rotated = changes.rotate(path)
    assert rotated.fingerprints[1:] == (fingerprint(OLD),)
    with pytest.raises(CannotCreate) as caught:
        changes.rotate(path)
    assert "--finish" in str(caught.value.hint)
    finished = changes.finish(path)
    assert (finished.fingerprints, finished.dropped) == (rotated.fingerprints[:1], (fingerprint(OLD),))
    assert not changes.finish(path).changed


def test_a_file_that_cannot_be_read_is_never_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o600)
    path.write_text("not a key")
    acts: tuple[Callable[[], changes.Change], ...] = (
        lambda: changes.new(path, if_missing=True),
        lambda: changes.join(path, (NEW,), replace=True),
        lambda: changes.rotate(path),
        lambda: changes.finish(path),
    )
    for act in acts:
        with pytest.raises(BadData):
            act()
    assert path.read_text() == "not a key"


def _rotate_and_finish(path: Path, times: int) -> None:
    for _ in range(times):
        try:
            changes.rotate(path)
        except CannotCreate:
            changes.finish(path)


@pytest.mark.process
def test_changes_made_at_once_happen_one_after_the_other(path: Path) -> None:
    # With a lock, a rotation never starts from keys that somebody else replaced meanwhile.
    keyfile.create(path, (OLD,))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_rotate_and_finish, args=(path, 30)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert 1 <= len(keyfile.read(path)) <= 2


def test_a_second_change_waits_for_the_first(path: Path) -> None:
    keyfile.create(path, (OLD,))
    started = threading.Event()

    def rotate() -> None:
        started.set()
        changes.rotate(path)

    second = threading.Thread(target=rotate)
    with keyfile.locked(path):
        second.start()
        started.wait()
        second.join(0.2)
        assert keyfile.read(path) == (OLD,)
    second.join(30)
    assert len(keyfile.read(path)) == 2
