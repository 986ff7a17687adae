import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exo_cli.drive.size import size_of
from exo_cli.errors import BadData
from exo_cli.models.directory import ModelDirectory
from tests.support import toy_model

TENSOR = 64
LAYER = "model.layers.{}.mlp.up_proj.weight"


def model(path: Path, names: list[str], **config: Any) -> ModelDirectory:
    import struct

    toy_model.write(path, tokenizer=False)
    said = json.loads((path / "config.json").read_text()) | config
    (path / "config.json").write_text(json.dumps({key: value for key, value in said.items() if value != "-"}))
    header = {
        name: {"dtype": "F32", "shape": [4, 4], "data_offsets": [at * TENSOR, (at + 1) * TENSOR]}
        for at, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(TENSOR * len(names)))
    return ModelDirectory.open(path)


def test_layers_ends_and_what_is_beside_them(tmp_path: Path) -> None:
    layers = [LAYER.format(n) for n in range(4)]
    extra = ["model.layers.2.mlp.down_proj.weight", "model.norm.weight"]
    size = size_of(model(tmp_path / "a", [*layers, *extra, "model.embed_tokens.weight", "lm_head.weight"]))
    assert size.layer_bytes == (TENSOR, TENSOR, 2 * TENSOR, TENSOR)
    assert (size.first_bytes, size.last_bytes) == (2 * TENSOR, 2 * TENSOR)
    work = replace(size, known=None).work
    assert work.stage_weights_bytes(0, 4) == sum(size.layer_bytes) + size.first_bytes + size.last_bytes
    assert work.stage_weights_bytes(1, 3) == 3 * TENSOR
    assert size.kv_bytes_per_token == 2 * 1 * 4 * 4
    assert size.context == 16384


def test_a_tied_head_is_the_embedding_again(tmp_path: Path) -> None:
    layers = [LAYER.format(n) for n in range(4)]
    size = size_of(model(tmp_path / "a", [*layers, "model.embed_tokens.weight"]))
    assert (size.first_bytes, size.last_bytes) == (TENSOR, TENSOR)


def test_extra_heads_a_second_stack_and_an_inner_config(tmp_path: Path) -> None:
    names = [f"language_model.{LAYER.format(n)}" for n in range(3)]
    vision = [f"vision.blocks.{n}.attn.weight" for n in range(2)]
    inner = {"num_hidden_layers": 2, "max_position_embeddings": 99, "kv_lora_rank": 6, "qk_rope_head_dim": 2}
    size = size_of(model(tmp_path / "a", [*names, *vision], num_hidden_layers="-", text_config=inner))
    assert size.layer_bytes == (TENSOR, TENSOR)
    # The layer after the last predicts further tokens; what stands beside the layers goes to both ends.
    assert (size.first_bytes, size.last_bytes) == (2 * TENSOR, 3 * TENSOR)
    assert (size.context, size.kv_bytes_per_token) == (99, 32)


def test_names_that_are_not_understood(tmp_path: Path) -> None:
    size = size_of(model(tmp_path / "a", ["stuff.weight", "more.weight", "model.embed_tokens.weight"]))
    assert size.layer_bytes == (TENSOR // 2,) * 4
    assert size.first_bytes == TENSOR
    with pytest.raises(BadData, match="how many layers"):
        size_of(model(tmp_path / "b", ["x.weight"], num_hidden_layers="-"))


def test_numbers_of_16_bits_become_float32_and_a_known_family_has_its_geometry(tmp_path: Path) -> None:
    import mlx.core as mx

    from tests.support import tiny_models

    wide = ModelDirectory.open(tiny_models.build("llama", tmp_path / "wide"))
    narrow = ModelDirectory.open(tiny_models.build("llama", tmp_path / "narrow", dtype=mx.bfloat16))
    assert narrow.weights_bytes < wide.weights_bytes
    assert size_of(narrow).layer_bytes == size_of(wide).layer_bytes
    size = size_of(narrow)
    assert size.known is not None
    assert size.known.stage_weights_bytes(1, 2) == size_of(wide).layer_bytes[1]
    assert size.work is size.known
    strange = ModelDirectory.open(tiny_models.build("olmo2", tmp_path / "strange"))
    assert size_of(strange).known is None
