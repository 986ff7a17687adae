import base64
import multiprocessing
import os
import stat
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo_cli.errors import (
    BadData,
    CannotCreate,
    ExoError,
    NotAuthorised,
    NotFound,
    VersionMismatch,
)
from exo_cli.trust import keyfile

SECRET = b"canary-secret-of-thirty-2-bytes!"
TEXT = base64.urlsafe_b64encode(SECRET).decode().rstrip("=")
OTHER = bytes(range(32))

secrets = st.binary(min_size=32, max_size=32)


def key_text(*lines: str) -> bytes:
    return "\n".join(("exo.key/1", *lines, "")).encode()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- the format ------------------------------------------------------------------------------------


@given(st.lists(secrets, min_size=1, max_size=2, unique=True))
def test_what_is_written_is_read(written: list[bytes]) -> None:
    assert keyfile.decode(keyfile.encode(written), "here") == tuple(written)


@given(secrets, st.lists(st.sampled_from(["", "   ", "# a comment", "\t", "\r"]), max_size=3))
def test_blank_lines_comments_and_line_ends_of_other_systems_do_not_matter(
    secret: bytes, noise: list[str]
) -> None:
    lines = keyfile.encode([secret]).decode().split("\n")
    mixed = "\r\n".join([*noise, lines[0], *noise, *(f"  {line} " for line in lines[1:]), *noise])
    assert keyfile.decode(mixed.encode(), "here") == (secret,)


@given(st.binary(max_size=keyfile.MAX_BYTES + 50))
def test_any_bytes_give_secrets_or_one_sentence(data: bytes) -> None:
    read_or_refused(data)


@given(secrets, st.data())
def test_a_damaged_key_file_is_refused_or_another_key(secret: bytes, draw: st.DataObject) -> None:
    whole = bytearray(keyfile.encode([secret]))
    at = draw.draw(st.integers(0, len(whole) - 1))
    damage = draw.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
    if damage == "flip":
        whole[at] ^= draw.draw(st.integers(1, 255))
    elif damage == "cut":
        del whole[at:]
    elif damage == "insert":
        whole[at:at] = draw.draw(st.binary(min_size=1, max_size=5))
    else:
        del whole[at]
    read_or_refused(bytes(whole))


@given(st.lists(st.text(max_size=60), max_size=6))
def test_any_lines_under_the_header_give_secrets_or_one_sentence(lines: list[str]) -> None:
    read_or_refused(("exo.key/1\n" + "\n".join(lines)).encode())


def read_or_refused(data: bytes) -> None:
    refusal: ExoError | None = None
    try:
        found = keyfile.decode(data, "here")
    except (BadData, VersionMismatch) as error:
        refusal = error
    if refusal is None:
        assert 1 <= len(found) <= 2
        assert all(len(secret) == 32 for secret in found)
        assert keyfile.decode(keyfile.encode(found), "here") == found
    else:
        assert refusal.message.startswith(("here ", "here: line "))
        assert refusal.hint
        assert refusal.__cause__ is None
        assert refusal.__suppress_context__ or refusal.__context__ is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n# nothing but this\n",
        b"exo.key/1\n",
        b"ssh-ed25519 AAAA\n",
        f"exo.key/01\n{TEXT}\n".encode(),
        key_text(TEXT, TEXT),
        key_text(TEXT, base64.urlsafe_b64encode(OTHER).decode().rstrip("="), "A" * 43),
        key_text(TEXT[:-1]),
        key_text(TEXT + "="),
        key_text(TEXT + "A"),
        key_text(TEXT.replace("-", "+")[:42] + "+"),
        key_text(f"{TEXT} {TEXT}"),
        key_text(TEXT[:-1] + "B"),  # the last character with bits that no secret has
        key_text(TEXT[:-1] + "é"),
        b"exo.key/1\n\xff\xfe\x00",
        key_text(TEXT) + b"#" * keyfile.MAX_BYTES,
    ],
)
def test_garbage_is_bad_data_and_not_quoted(data: bytes) -> None:
    with pytest.raises(BadData) as caught:
        keyfile.decode(data, "here")
    assert caught.value.exit == 65
    assert TEXT[:10] not in f"{caught.value.message} {caught.value.hint}"


def test_a_newer_format_says_so() -> None:
    with pytest.raises(VersionMismatch) as caught:
        keyfile.decode(f"exo.key/2\n{TEXT}\n".encode(), "here")
    assert caught.value.exit == 76


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_new_file_is_private_under_any_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "deep" / "exo" / "cluster.key"
    before = os.umask(umask)
    try:
        if umask == 0o777:
            (tmp_path / "deep").mkdir()
            (tmp_path / "deep").chmod(0o700)
        keyfile.create(path, [SECRET])
        assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
        keyfile.replace(path, [OTHER, SECRET])
        assert mode_of(path) == 0o600
    finally:
        os.umask(before)
    assert keyfile.read(path) == (OTHER, SECRET)
    assert os.listdir(path.parent) == ["cluster.key"]


def test_a_directory_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    keyfile.create(tmp_path / "cluster.key", [SECRET])
    assert mode_of(tmp_path) == 0o755


def test_nothing_is_overwritten_by_create(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    keyfile.create(path, [SECRET])
    with pytest.raises(CannotCreate) as caught:
        keyfile.create(path, [OTHER])
    assert caught.value.exit == 73
    assert keyfile.read(path) == (SECRET,)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotCreate):
        keyfile.create(dangling, [OTHER])
    assert sorted(os.listdir(tmp_path)) == ["cluster.key", "home", "link"]


def test_replacing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    target = tmp_path / "other"
    target.write_text("untouched")
    link = tmp_path / "cluster.key"
    link.symlink_to(target)
    keyfile.replace(link, [SECRET])
    assert target.read_text() == "untouched"
    assert keyfile.read(link) == (SECRET,)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601, 0o620])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "my key"
    keyfile.create(path, [SECRET])
    path.chmod(mode)
    with pytest.raises(NotAuthorised) as caught:
        keyfile.read(path)
    assert caught.value.exit == 77
    assert f"{mode:04o}" in caught.value.message
    assert caught.value.hint == f"chmod 600 '{path}'"
    path.chmod(0o600)
    assert keyfile.read(path) == (SECRET,)


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cluster.key"
    keyfile.create(path, [SECRET])
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(NotAuthorised, match="another user"):
        keyfile.read(path)


def test_links_pipes_and_directories_are_refused_without_waiting(tmp_path: Path) -> None:
    keyfile.create(tmp_path / "real", [SECRET])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(NotAuthorised, match="symbolic link"):
        keyfile.read(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for odd in (tmp_path / "pipe", tmp_path):
        with pytest.raises(BadData, match="regular"):
            keyfile.read(odd)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        keyfile.read(tmp_path / "none")
    assert missing.value.exit == 66
    (tmp_path / "file").touch()
    with pytest.raises(NotFound):
        keyfile.read(tmp_path / "file" / "below")
    with pytest.raises(CannotCreate):
        keyfile.create(tmp_path / "file" / "below" / "key", [SECRET])


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    path.touch(0o600)
    os.truncate(path, 10**12)
    with pytest.raises(BadData, match="larger than"):
        keyfile.read(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "exo" / "cluster.key"
    keyfile.create(path, [SECRET])

    def full(_descriptor: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CannotCreate, match="no space left"):
        keyfile.replace(path, [OTHER])
    monkeypatch.undo()
    assert keyfile.read(path) == (SECRET,)
    assert os.listdir(path.parent) == ["cluster.key"]


def _create(path: Path, secret: bytes, start: Event) -> None:
    start.wait()
    with suppress(CannotCreate):
        keyfile.create(path, [secret])
    assert len(keyfile.read(path)) == 1


@pytest.mark.process
def test_of_many_creators_one_wins_and_all_read_a_whole_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    path = tmp_path / "exo" / "cluster.key"
    workers = [context.Process(target=_create, args=(path, bytes([n]) * 32, start)) for n in range(6)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert os.listdir(path.parent) == ["cluster.key"]


def test_no_secret_in_any_error(tmp_path: Path) -> None:
    path = tmp_path / "cluster.key"
    said = []
    keyfile.create(path, [SECRET])
    for data, mode in ((key_text(TEXT, TEXT), 0o600), (key_text(TEXT + "!"), 0o600), (key_text(TEXT), 0o644)):
        path.chmod(0o600)
        path.write_bytes(data)
        path.chmod(mode)
        with pytest.raises(ExoError) as caught:
            keyfile.read(path)
        said.append(f"{caught.value!r} {caught.value.hint} {caught.getrepr(chain=True)!r}")
    assert len(said) == 3
    assert not any(TEXT[:8] in text or SECRET.decode() in text or SECRET.hex() in text for text in said)
