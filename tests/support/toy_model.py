"""A model directory for drivers: real config, safetensors and tokenizer files, whose weights are zeros.

Its tokens are the words t0 … t999, so that what `HashCompute` says can be read.
"""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

LAYERS = 4
WORDS = 1000
END = WORDS
UNKNOWN = WORDS + 1


def write(path: Path, *, template: bool = True, tokenizer: bool = True, layers: int = LAYERS) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16384,
        "eos_token_id": END,
    }
    (path / "config.json").write_text(json.dumps(config))
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(layers)]
    header, at = {}, 0
    for name in names:
        header[name] = {"dtype": "F32", "shape": [4, 4], "data_offsets": [at, at + 64]}
        at += 64
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    if tokenizer:
        write_tokenizer(path, template)
    return path


def write_tokenizer(path: Path, template: bool = True) -> None:
    words = {f"\u2581t{number}": number for number in range(WORDS)}
    library = Tokenizer(models.WordLevel({**words, "</s>": END, "<unk>": UNKNOWN}, unk_token="<unk>"))
    library.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(["</s>", "<unk>"])
    library.save(str(path / "tokenizer.json"))
    config = {"eos_token": "</s>", "unk_token": "<unk>"}
    if template:
        # The system's text and every turn, each word a token; a question is marked by t1.
        config["chat_template"] = (
            "{% for m in messages %}{{ '' if loop.first else ' ' }}"
            "{{ 't1 ' if m.role == 'user' else '' }}{{ m.content }}{% endfor %}"
        )
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def text(ids: Sequence[int]) -> str:
    """What the tokenizer makes of words."""
    return " ".join(f"t{number}" for number in ids)
