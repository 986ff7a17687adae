import os
from pathlib import Path

import pytest

from exo_cli.fetch import journal
from exo_cli.fetch.journal import JOURNAL, Journal
from exo_cli.fetch.partial import MAP, Partial
from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Span

NAME, SIZE, DIGEST = "model.safetensors", 1_000_000, "a" * 64


def opened(tmp_path: Path) -> PartialWriter:
    writer = PartialWriter.open(tmp_path, DIGEST)
    writer.add({NAME: SIZE})
    return writer


def covered(tmp_path: Path) -> list[tuple[int, int]]:
    store = Partial.read(tmp_path / DIGEST)
    assert store is not None
    file = store.file(NAME)
    return [] if file is None else [(low, high) for low, high in file.ranges]


def test_what_is_noted_counts_before_the_map_is_saved(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        before = (tmp_path / DIGEST / MAP).read_bytes()
        writer.write(NAME, 5, [b"abc", b"defg"])
        writer.note(NAME, 5, 12)
        assert (tmp_path / DIGEST / MAP).read_bytes() == before
        assert covered(tmp_path) == [(5, 12)]
        writer.settle()
        assert not (tmp_path / DIGEST / JOURNAL).exists()
        assert covered(tmp_path) == [(5, 12)]
        assert (tmp_path / DIGEST / NAME).read_bytes()[5:12] == b"abcdefg"


def test_a_writer_that_was_killed_left_its_journal(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        writer.write(NAME, 0, [b"x" * 100])
        writer.note(NAME, 0, 100)
    # Closed without settling, as by kill -9.
    assert (tmp_path / DIGEST / JOURNAL).exists()
    with PartialWriter.open(tmp_path, DIGEST) as writer:
        assert not (tmp_path / DIGEST / JOURNAL).exists()
        assert covered(tmp_path) == [(0, 100)]


def test_after_a_new_start_of_the_machine_it_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as writer:
        writer.keep(NAME, 500, b"settled")
        writer.write(NAME, 0, [b"x" * 100])
        writer.note(NAME, 0, 100)
    monkeypatch.setattr(journal, "system_run", lambda: "another")
    assert covered(tmp_path) == [(500, 507)]
    monkeypatch.setattr(journal, "system_run", lambda: "")
    assert covered(tmp_path) == [(500, 507)]


@pytest.mark.parametrize(
    "tail", [b"7", b"100 2", b"100 200 model.safeten", b"9 4 model.safetensors\n", b"\xff\n"]
)
def test_a_line_that_is_half_written_says_nothing(tmp_path: Path, tail: bytes) -> None:
    made = Journal(tmp_path)
    made.note(NAME, 1, 2)
    made.close()
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(tail)
    assert journal.read(tmp_path) == {NAME: [(1, 2)]}


def test_what_is_kept_is_all_that_is_left(tmp_path: Path) -> None:
    made = Journal(tmp_path)
    made.note(NAME, 1, 2)
    made.keep([Span(NAME, 5, 9)])
    assert journal.read(tmp_path) == {NAME: [(5, 9)]}
    made.note(NAME, 20, 30)
    assert journal.read(tmp_path) == {NAME: [(5, 9), (20, 30)]}
    made.close()


def test_a_dropped_file_is_not_believed_after_a_crash(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        writer.write(NAME, 0, [b"x" * 100])
        writer.note(NAME, 0, 100)
        writer.drop(NAME)
        assert covered(tmp_path) == []
    with PartialWriter.open(tmp_path, DIGEST):
        assert covered(tmp_path) == []


def test_a_file_of_another_content_begins_anew(tmp_path: Path) -> None:
    with PartialWriter.open(tmp_path, DIGEST) as writer:
        writer.add({NAME: SIZE}, {NAME: "1" * 64})
        writer.keep(NAME, 0, b"old")
        writer.add({NAME: SIZE}, {NAME: "1" * 64})
        assert covered(tmp_path) == [(0, 3)]
        writer.add({NAME: SIZE}, {NAME: "2" * 64})
        assert covered(tmp_path) == []


def test_an_adopted_file_is_never_written_into(tmp_path: Path) -> None:
    elsewhere = tmp_path / "blob"
    elsewhere.write_bytes(b"b" * SIZE)
    with opened(tmp_path) as writer:
        assert not writer.adopt(NAME, tmp_path / "nowhere", verified=True)
        assert writer.adopt(NAME, elsewhere, verified=True)
        assert os.stat(elsewhere).st_nlink == 2
        writer.drop(NAME)
        writer.keep(NAME, 0, b"mine")
        assert elsewhere.read_bytes() == b"b" * SIZE
        writer.adopt(NAME, elsewhere, verified=True)
        writer.add({NAME: SIZE - 1})
        assert elsewhere.stat().st_size == SIZE
    with PartialWriter.open(tmp_path, DIGEST) as writer:
        writer.remove()
    assert elsewhere.read_bytes() == b"b" * SIZE
    assert not (tmp_path / DIGEST).exists()
