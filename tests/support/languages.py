"""Small tokenizers of the kinds that models have, trained on the spot, and model directories with them."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "A small cluster of three machines runs a large model, one part on each of them.",
    "The first machine reads the words, the last machine chooses the next word.",
    "Don't wait: it's faster, isn't it? We've tried, they're sure, I'm not.",
    "Żółta łódź płynie; cafe\u0301 und Straße, naïve façade. Привет, мир! Как дела?",
    "日本語のテキストと中文文本。 안녕하세요 세계. 🙂🚀👩‍👩‍👧 e\u0301a\u0308",
    "def f(x):\n    return x + 1  # two  spaces\n\n\tand a tab\n",
    "1 22 333 4444, 3.14159; 10% of 100 € is 10 €.",
] * 3

KINDS = ("byte-level", "byte-level-plain", "fallback", "fallback-strip", "metaspace", "unigram", "words")
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
PLAIN_ADDED = ("<think>", "</think>", "<tool_call>")


@lru_cache(maxsize=len(KINDS))
def trained(kind: str) -> str:
    """The tokenizer.json of one kind."""
    return str(
        {"byte": _byte_level, "fall": _fallback, "meta": _metaspace, "unig": _unigram, "word": _words}[
            kind[:4]
        ](kind).to_str()
    )


def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer.from_str(trained(kind))


def _with_added(made: Tokenizer) -> Tokenizer:
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False) for token in (*PLAIN_ADDED, "élan vital", "日本 x")])
    return made


def _byte_level(kind: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    _with_added(made)
    if kind == "byte-level":
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return made


def _fallback(kind: str) -> Tokenizer:
    """As sentencepiece models with byte fallback are converted: Llama 2's way, and Gemma's without Strip."""
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    before: list[Any] = [normalizers.Replace(" ", "▁")]
    if kind == "fallback-strip":
        steps.append(decoders.Strip(" ", 1, 0))
        before.insert(0, normalizers.Prepend("▁"))
    base = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.normalizer = normalizers.Sequence(before)
    base.train_from_iterator(
        [line for line in CORPUS if line.isascii()],
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        ),
    )
    # The bytes are of the vocabulary, not among the added tokens, as in the converted models.
    state = json.loads(base.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] == "<unk>"]
    made = Tokenizer.from_str(json.dumps(state))
    made.decoder = decoders.Sequence(steps)
    _with_added(made)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return made


def _metaspace(kind: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    return _with_added(made)


def _unigram(kind: str) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    made.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=400, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    return _with_added(made)


def _words(kind: str) -> Tokenizer:
    """No decoder at all: the words, with spaces between them."""
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    return _with_added(made)


def model_directory(root: Path, kind: str = "byte-level", **files: Any) -> Path:
    """A model directory with this kind's tokenizer; `files` by name (`__` for the dot), text or data."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "tokenizer.json").write_text(trained(kind), encoding="utf-8")
    usual: dict[str, Any] = {
        "tokenizer_config__json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "<|im_end|>",
        }
    }
    for name, content in (usual | files).items():
        path = root / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root
