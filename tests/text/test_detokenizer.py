"""The streamed text is the decoded text, for every kind of tokenizer and any ids."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from exo_cli.text.detokenizer import Detokenizer
from tests.support import languages

TEXTS = [
    "Hello world",
    "  two spaces first",
    "🙂🚀 👩‍👩‍👧 flags 🇵🇱",
    "日本語と中文 안녕",
    "e\u0301a\u0308 combining",
    "line\n\n\tindent",
    "<think>no</think> élan vital 日本 x",
    "\ufffd already",
    "",
]


@cache
def made(kind: str) -> Tokenizer:
    return languages.tokenizer(kind)


def ids_of(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    found = [tokenizer.token_to_id(token) for token in tokens]
    return [id_ for id_ in found if id_ is not None]


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip: bool) -> list[str]:
    stream = Detokenizer(tokenizer, skip_special=skip)
    return [*(stream.feed(id_) for id_ in ids), stream.flush()]


@st.composite
def id_lists(draw: st.DrawFn, kind: str) -> list[int]:
    """Ids as they come from text, mixed with any ids: half characters, added tokens, ids of no token."""
    tokenizer = made(kind)
    some = st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=12)
    low = st.lists(st.integers(0, 260), max_size=8)
    text = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12)).map(
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
    )
    return [id_ for part in draw(st.lists(st.one_of(some, low, text), max_size=5)) for id_ in part]


@pytest.mark.parametrize("kind", languages.KINDS)
@pytest.mark.parametrize("skip", [True, False], ids=["skip", "show"])
def test_joined_pieces_are_the_decoded_text(kind: str, skip: bool) -> None:
    @settings(max_examples=150, deadline=None)
    @given(id_lists(kind))
    def check(ids: list[int]) -> None:
        expected = made(kind).decode(ids, skip_special_tokens=skip)
        assert "".join(streamed(made(kind), ids, skip=skip)) == expected

    check()


@pytest.mark.parametrize("kind", languages.KINDS)
def test_what_is_shown_stays(kind: str) -> None:
    """At every moment the shown text is the start of what any continuation decodes to."""

    @settings(max_examples=60, deadline=None)
    @given(id_lists(kind), id_lists(kind))
    def check(ids: list[int], more: list[int]) -> None:
        stream = Detokenizer(made(kind))
        shown = "".join(stream.feed(id_) for id_ in ids)
        assert made(kind).decode(ids + more).startswith(shown)

    check()


@pytest.mark.parametrize("kind", languages.KINDS)
@pytest.mark.parametrize("text", ["The first machine reads the words", "日本語 🙂 Straße"])
def test_text_comes_at_once(kind: str, text: str) -> None:
    """After each id, all of the text but an unfinished character or run of bytes has been shown."""
    tokenizer = made(kind)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    stream = Detokenizer(tokenizer)
    shown = ""
    for count, id_ in enumerate(ids, 1):
        shown += stream.feed(id_)
        now = tokenizer.decode(ids[:count])
        waits = str(tokenizer.id_to_token(id_)).startswith("<0x") or now.endswith("\ufffd")
        assert waits or shown == now


def test_half_a_character_waits_and_nonsense_does_not() -> None:
    tokenizer = made("byte-level")
    first, second, third = ids_of(tokenizer, *"æĹ¥")  # the bytes of 日
    stream = Detokenizer(tokenizer)
    assert [stream.feed(id_) for id_ in (first, second, third)] == ["", "", "日"]
    assert [stream.feed(id_) for id_ in (first, first)] == ["", "\ufffd"]
    assert stream.flush() == "\ufffd"


def test_a_run_of_bytes_is_all_or_nothing() -> None:
    tokenizer = made("fallback")
    ids = ids_of(tokenizer, "<0xC3>", "<0xA9>", "<0xC3>", "a")
    assert streamed(tokenizer, ids, skip=True) == ["", "", "", "\ufffd\ufffd\ufffda", ""]
    assert streamed(tokenizer, [*ids[:2], ids[3]], skip=True) == ["", "", "éa", ""]


def test_special_tokens_are_skipped_shown_or_kept() -> None:
    tokenizer = made("byte-level")
    ids = tokenizer.encode("a<|im_start|>b<|im_end|><think>", add_special_tokens=False).ids
    assert "".join(streamed(tokenizer, ids, skip=True)) == "ab<think>"
    assert "".join(streamed(tokenizer, ids, skip=False)) == "a<|im_start|>b<|im_end|><think>"
    stream = Detokenizer(tokenizer, keep=ids_of(tokenizer, "<|im_start|>"))
    assert "".join(map(stream.feed, ids)) + stream.flush() == "a<|im_start|>b<think>"


def test_an_unknown_decoder_is_exact_at_the_end() -> None:
    tokenizer = Tokenizer(models.WordLevel({"play": 0, "##ing": 1, "now": 2, ".": 3}, unk_token="now"))
    tokenizer.decoder = decoders.WordPiece()
    assert streamed(tokenizer, [0, 1, 2, 3], skip=True) == ["", "", "", "", "playing now."]


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([decoders.Strip("▁", 2, 0), decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("▁", " ")]),
        decoders.Sequence([decoders.Sequence([decoders.Replace("▁", " ")]), decoders.ByteFallback()]),
        decoders.Metaspace(prepend_scheme="never"),
        decoders.BPEDecoder(),
    ],
    ids=["strips", "replace-after-fuse", "nested", "never", "suffix"],
)
def test_other_chains(decoder: decoders.Decoder) -> None:
    words = ["▁▁▁a", "▁", "  b", "<0xC3>", "<0xA9>", "c</w>", ""]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token=""))
    tokenizer.decoder = decoder

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, len(words) - 1), max_size=8))
    def check(ids: list[int]) -> None:
        assert "".join(streamed(tokenizer, ids, skip=True)) == tokenizer.decode(ids)

    check()


def test_a_stream_may_be_used_again_after_flush() -> None:
    tokenizer = made("fallback-strip")
    ids = tokenizer.encode("Hello", add_special_tokens=False).ids
    stream = Detokenizer(tokenizer)
    texts = ["".join(map(stream.feed, ids)) + stream.flush() for _ in range(2)]
    assert texts == ["Hello", "Hello"]


def test_ids_outside_the_vocabulary() -> None:
    stream = Detokenizer(made("byte-level"))
    assert stream.feed(99_999) == ""
    with pytest.raises(ValueError, match="not negative"):
        stream.feed(-1)


def test_a_long_stream_costs_the_same_for_each_id() -> None:
    """Counted, not timed: nothing is decoded again, so the tokenizer is asked once for each id."""
    asked = 0

    class Counting:
        decoder = made("byte-level").decoder

        def __getattr__(self, name: str) -> object:
            nonlocal asked
            asked += name in ("id_to_token", "decode")
            return getattr(made("byte-level"), name)

    stream = Detokenizer(Counting())  # type: ignore[arg-type]
    for _ in range(5_000):
        stream.feed(70)
    assert asked == 5_000
