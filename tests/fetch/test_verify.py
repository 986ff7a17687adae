import hashlib
import threading
from pathlib import Path

from exo_cli.fetch.partial_writer import PartialWriter
from exo_cli.fetch.pieces import Span
from exo_cli.fetch.verify import Follower, file_is_content, is_content, to_be_whole

NAME, SIZE = "model.safetensors", 3_000_000
DATA = bytes(range(250)) * (SIZE // 250)
SUM = hashlib.sha256(DATA).hexdigest()
SOON_S = 30


def opened(tmp_path: Path) -> PartialWriter:
    writer = PartialWriter.open(tmp_path, "a" * 64)
    writer.add({NAME: SIZE}, {NAME: SUM})
    return writer


def kept(writer: PartialWriter, start: int, end: int, data: bytes = DATA) -> None:
    writer.write(NAME, start, [data[start:end]])
    writer.note(NAME, start, end)


def test_a_file_is_followed_while_it_grows(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        follower = Follower(writer, [NAME], threading.Event())
        follower.start()
        for start in (0, 2_000_000, 1_000_000):
            kept(writer, start, start + 1_000_000)
            follower.news()
        assert follower.finish() == []
        file = writer.file(NAME)
        assert file is not None
        assert file.verified


def test_what_will_be_whole(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        writer.add({"model-2.safetensors": 100})
        kept(writer, 0, 1000)
        rest = Span(NAME, 1000, SIZE)
        assert to_be_whole(writer, [Span("model-2.safetensors", 1, 100), rest]) == [NAME]
        assert to_be_whole(writer, [Span(NAME, 1001, SIZE)]) == []
        assert to_be_whole(writer, [Span(NAME, 1001, SIZE), Span(NAME, 500, 1001)]) == [NAME]
        assert to_be_whole(writer, []) == []


def test_one_bit_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        kept(writer, 0, SIZE, DATA[:-1] + bytes([DATA[-1] ^ 1]))
        follower = Follower(writer, [NAME], threading.Event())
        follower.start()
        assert follower.finish() == [NAME]


def test_what_does_not_become_whole_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    with opened(tmp_path) as writer:
        kept(writer, 0, SIZE - 1)
        follower = Follower(writer, [NAME], threading.Event())
        follower.start()
        assert follower.finish() == []
        file = writer.file(NAME)
        assert file is not None
        assert not file.verified


def test_one_that_is_stopped_ends(tmp_path: Path) -> None:
    """Also where more of the file is there than it has read."""
    stopped = threading.Event()
    stopped.set()
    with opened(tmp_path) as writer:
        kept(writer, 0, SIZE)
        follower = Follower(writer, [NAME], stopped)
        follower.start()
        ended: list[list[str]] = []
        waiting = threading.Thread(target=lambda: ended.append(follower.finish()), daemon=True)
        waiting.start()
        waiting.join(SOON_S)
        assert ended == [[]]


def test_both_names_of_the_hub(tmp_path: Path) -> None:
    data = b"what git keeps itself"
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    (tmp_path / "file").write_bytes(data)
    for etag in (git, hashlib.sha256(data).hexdigest()):
        assert is_content(data, etag)
        assert file_is_content(tmp_path / "file", etag)
        assert not is_content(data + b"x", etag)
