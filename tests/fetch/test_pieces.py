import itertools

from hypothesis import given
from hypothesis import strategies as st

from exo_cli.fetch import pieces
from exo_cli.fetch.pieces import PIECE_BYTES, Span

SIZE = 60
edges = st.integers(0, SIZE)
spans = st.tuples(edges, edges).map(lambda pair: (min(pair), max(pair)))


def built(added: list[tuple[int, int]]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for low, high in added:
        ranges = pieces.add(ranges, low, high)
    return ranges


def numbers(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for low, high in ranges for number in range(low, high)}


@given(st.lists(spans, max_size=12), spans)
def test_ranges_are_sets_of_bytes(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges = built(added)
    assert pieces.well_formed(ranges, SIZE)
    assert numbers(ranges) == numbers(added)
    # Touching neighbours are one: the map of a whole file is one range.
    assert all(left[1] < right[0] for left, right in itertools.pairwise(ranges))
    wanted = set(range(*asked))
    assert pieces.covers(ranges, *asked) == (wanted <= numbers(ranges))
    assert numbers(pieces.missing(ranges, *asked)) == wanted - numbers(ranges)


@given(st.lists(st.tuples(st.sampled_from("ab"), spans), max_size=12))
def test_merged_spans_hold_the_same_bytes(given_spans: list[tuple[str, tuple[int, int]]]) -> None:
    found = pieces.merged(Span(path, low, high) for path, (low, high) in given_spans)
    bytes_of = {(path, number) for path, (low, high) in given_spans for number in range(low, high)}
    assert {(span.path, number) for span in found for number in range(span.start, span.end)} == bytes_of
    assert sum(span.size for span in found) == len(bytes_of)
    assert found == sorted(found)


@given(spans, st.integers(1, 9))
def test_cuts_end_at_multiples(span: tuple[int, int], most: int) -> None:
    shares = list(pieces.cut(*span, most))
    assert [number for low, high in shares for number in range(low, high)] == list(range(*span))
    assert all(high % most == 0 or high == span[1] for _, high in shares)
    assert all(0 < high - low <= most for low, high in shares)


def test_a_lying_map_is_seen() -> None:
    for wrong in ([(5, 3)], [(0, 70)], [(10, 20), (15, 30)], [(30, 40), (1, 2)], [(-1, 3)], [(4, 4)]):
        assert not pieces.well_formed(wrong, SIZE)
    assert pieces.well_formed([], 0)


def test_the_bitmap_counts_whole_pieces_only() -> None:
    size = 9 * PIECE_BYTES + 5
    assert pieces.bitmap([(0, size)], size) == b"\xff\x03"
    assert pieces.bitmap([(1, size)], size) == b"\xfe\x03"
    assert pieces.bitmap([(0, size - 1)], size) == b"\xff\x01"
    assert pieces.bitmap([(PIECE_BYTES, 3 * PIECE_BYTES - 1)], size) == b"\x02\x00"
    assert pieces.bitmap([], 1) == b"\x00"
    assert pieces.bitmap([], 0) == b""


def test_pieces_by_their_end() -> None:
    size = PIECE_BYTES + 7
    assert pieces.piece_of(1, size) == (0, PIECE_BYTES)
    assert pieces.piece_of(PIECE_BYTES, size) == (0, PIECE_BYTES)
    assert pieces.piece_of(PIECE_BYTES + 1, size) == (PIECE_BYTES, size)
