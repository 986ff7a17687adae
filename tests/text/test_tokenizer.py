"""Tokenizers from model directories, sound and broken."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from exo_cli.errors import BadData, ExoError, NotFound
from exo_cli.text import files
from exo_cli.text import tokenizer as module
from exo_cli.text.tokenizer import load_tokenizer
from tests.support.languages import KINDS, model_directory, trained


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("words", "metaspace", "unigram")])
def test_text_comes_back(kind: str, tmp_path: Path) -> None:
    made = load_tokenizer(model_directory(tmp_path / "m", kind))
    text = "Hello world, naïve 日本 🙂\n\tx"
    assert made.decode(made.encode(text)) == text
    assert made.decode([10**6]) == ""


def test_special_tokens_around_a_text(tmp_path: Path) -> None:
    made = load_tokenizer(model_directory(tmp_path / "m"))
    plain = made.encode("Hello", special=False)
    assert made.encode("Hello") == [made.id_of("<s>"), *plain]
    assert made.bos_token == "<s>"
    assert made.special_tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    assert made.added_tokens["<think>"] == made.id_of("<think>")
    assert made.id_of("no such token") is None


def test_all_files_say_where_to_stop(tmp_path: Path) -> None:
    made = load_tokenizer(
        model_directory(
            tmp_path / "m",
            generation_config__json={"eos_token_id": [3, 4]},
            config__json={"eos_token_id": 5, "text_config": {"eos_token_id": 6}},
        )
    )
    assert made.stop_ids == {3, 4, 5, 6, made.id_of("<|im_end|>")}


def test_without_the_other_files(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "tokenizer_config.json").unlink()
    made = load_tokenizer(directory)
    assert (made.special_tokens, made.stop_ids) == ({}, frozenset())
    assert made.encode("Hello")


def test_training_leftovers_do_not_cut_prompts(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    content = json.loads(trained("byte-level"))
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (directory / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(directory).encode("Hello world") == load_tokenizer(
        model_directory(tmp_path / "sound")
    ).encode("Hello world")


def test_missing_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(NotFound):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["tokenizer.model", "tiktoken.model", "tekken.json"])
def test_another_kind_is_refused_with_a_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x00")
    with pytest.raises(BadData, match=name) as caught:
        load_tokenizer(tmp_path)
    assert "save_pretrained" in str(caught.value.hint)


BROKEN: dict[str, dict[str, Any]] = {
    "empty": {"tokenizer__json": ""},
    "half": {"tokenizer__json": trained("byte-level")[:5000]},
    "list": {"tokenizer__json": "[]"},
    "other": {"tokenizer__json": "{}"},
    "deep": {"tokenizer__json": "[" * 100_000},
    "merges": {
        "tokenizer__json": {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}
    },
    "config": {"tokenizer_config__json": "not JSON"},
    "config-list": {"tokenizer_config__json": "[1]"},
    "config-deep": {"tokenizer_config__json": "[" * 200_000},
    "config-bytes": {"tokenizer_config__json": "\udcff"},
    "stop-text": {"config__json": {"eos_token_id": "2"}},
    "stop-true": {"config__json": {"eos_token_id": [True]}},
    "stop-less": {"generation_config__json": {"eos_token_id": -1}},
    "stop-huge": {"generation_config__json": {"eos_token_id": 2**40}},
    "added-list": {"tokenizer_config__json": {"added_tokens_decoder": [1]}},
    "added-key": {"tokenizer_config__json": {"added_tokens_decoder": {"x": {"content": "a"}}}},
    "added-text": {"tokenizer_config__json": {"added_tokens_decoder": {"1": "a"}}},
    "added-far": {"tokenizer_config__json": {"added_tokens_decoder": {"999999": {"content": "far away"}}}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_bad_data_in_one_sentence(name: str, tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    for file, content in BROKEN[name].items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / file.replace("__", ".")).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadData) as caught:
        load_tokenizer(directory)
    assert caught.value.exit == 65
    assert str(directory) in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600 + len(str(directory))


def test_every_flipped_byte_is_an_answer(tmp_path: Path) -> None:
    """Whatever stands in the file, it loads or it is refused: no panic, no bare exception."""
    directory = model_directory(tmp_path / "m")
    sound = trained("byte-level").encode()
    outcomes = set()
    for place in [*range(0, 3000, 61), *range(len(sound) - 3000, len(sound), 97)]:
        (directory / "tokenizer.json").write_bytes(
            sound[:place] + bytes([sound[place] ^ 0x15]) + sound[place + 1 :]
        )
        try:
            made = load_tokenizer(directory)
            made.decode(made.encode("Hello world"))
            outcomes.add("loads")
        except ExoError as error:
            outcomes.add(error.code)
    assert outcomes == {"loads", "bad-data"}


def test_absurd_sizes_are_refused_unread(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    for name, limit in (
        ("tokenizer.json", module.MAX_TOKENIZER_BYTES),
        ("tokenizer_config.json", files.MAX_JSON_BYTES),
    ):
        directory = model_directory(tmp_path / "m")
        with open(directory / name, "wb") as file:
            file.truncate(limit + 1)  # a hole: no disk is used
        with pytest.raises(BadData, match=f"has {limit + 1} bytes"):
            load_tokenizer(directory)


def test_a_pipe_does_not_hold_us(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "tokenizer.json").unlink()
    os.mkfifo(directory / "tokenizer.json")
    with pytest.raises(BadData, match="not a regular file"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").mkdir()
    with pytest.raises(BadData, match="not a regular file"):
        load_tokenizer(directory)


def test_a_link_as_in_the_hub_cache_is_followed(tmp_path: Path) -> None:
    directory = model_directory(tmp_path / "m")
    (directory / "tokenizer.json").rename(tmp_path / "blob")
    (directory / "tokenizer.json").symlink_to(tmp_path / "blob")
    assert load_tokenizer(directory).encode("Hello")


def test_text_that_is_no_unicode(tmp_path: Path) -> None:
    made = load_tokenizer(model_directory(tmp_path / "m"))
    with pytest.raises(BadData, match="not valid Unicode"):
        made.encode("half \ud800")
    with pytest.raises(BadData, match="cannot decode"):
        made.decode([-1])


def test_a_named_token_that_is_not_there_gets_no_id(tmp_path: Path) -> None:
    made = load_tokenizer(
        model_directory(tmp_path / "m", tokenizer_config__json={"eos_token": "<gone>", "pad_token": None})
    )
    assert made.special_tokens == {"eos_token": "<gone>"}
    assert made.id_of("<gone>") is None
    assert made.stop_ids == frozenset()
