"""Weights straight from their file: the same numbers as through MLX, looked at, and never read twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from exo_cli.engine import on_disk
from exo_cli.engine.caches import Prefixes
from exo_cli.engine.cpu import expand, recognise, start
from exo_cli.engine.cpu.compute import NativeCompute
from exo_cli.engine.cpu.dots import HALF
from exo_cli.engine.cpu.expand import NotNative
from exo_cli.engine.cpu.layout import Packed, tiled
from exo_cli.engine.loading import Opened, load_stage, look, open_stage
from exo_cli.engine.scheduler import Row
from exo_cli.errors import BadData
from exo_cli.models.directory import ModelDirectory
from tests.support.tiny_models import Tiny

LAYERS = 4
TOKENS = [(37 * place + 5) % 96 for place in range(20)]
FORMATS: dict[str, dict[str, Any]] = {
    "affine4-64": {"bits": 4, "group_size": 64, "dtype": mx.bfloat16},
    "affine4-32": {"bits": 4, "group_size": 32, "dtype": mx.float16},
    "affine2": {"bits": 2, "group_size": 32},
    "affine8": {"bits": 8, "group_size": 64, "dtype": mx.float16},
    "bf16": {"dtype": mx.bfloat16},
    "f16": {"dtype": mx.float16},
    "f32": {},
}


def opened(directory: Path, first: int = 0, last: int = LAYERS) -> Opened:
    return open_stage(look(ModelDirectory.open(directory)), first, last)


def logits(compute: NativeCompute) -> bytes:
    held = compute.request(len(TOKENS))
    [found] = compute.logits([(held, Row(1, 0, len(TOKENS)))], TOKENS, None)
    return np.array(found).tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_a_stage_from_its_file_says_what_one_through_mlx_says(name: str, tiny: Tiny) -> None:
    directory = tiny("llama", **FORMATS[name])
    stage = opened(directory)
    straight = on_disk.attach(stage)
    # Seven matrices a layer and the embedding, head or none.
    linear = {path.rpartition(".")[0] for path in straight}
    assert len(linear) >= 7 * LAYERS + 1
    assert {path for path in stage.mine if not path.endswith("norm.weight")} == straight
    on_disk.detach(stage)

    said: list[tuple[str, int, int]] = []
    compute, *_ = start.native(stage, 96, "", lambda *line: said.append(line))
    assert ("pack", LAYERS, LAYERS) in said
    through = load_stage(look(ModelDirectory.open(directory)), 0, LAYERS).stage
    other = NativeCompute(through, recognise.decoder(through), Prefixes(0), vocabulary=96, threads=1)
    assert logits(compute) == logits(other)
    # Nobody holds the file any more.
    assert all(on_disk.of(module) is None for module in stage.stage.model.modules())


def test_formats_that_are_not_taken_as_they_lie_are_read_by_mlx(tiny: Tiny) -> None:
    assert on_disk.attach(opened(tiny("llama", bits=4, mode="mxfp4", group_size=32))) == frozenset()


def test_only_the_stages_own_weights_are_taken(tiny: Tiny) -> None:
    straight = on_disk.attach(opened(tiny("llama", bits=4), 1, 2))
    assert straight
    assert all(path.startswith("model.layers.1.") for path in straight)


def test_a_format_without_a_kernel_is_refused_before_anything_is_read(tiny: Tiny) -> None:
    stage = opened(tiny("llama", bits=8, mode="mxfp8", group_size=32))
    with pytest.raises(NotNative, match="weights in mxfp8"):
        start.native(stage, 96, "", lambda *line: None)
    loaded = stage.read()
    assert loaded.weights_bytes > 0
    assert loaded.stage is stage.stage


@pytest.mark.parametrize(
    ("form", "tensor", "damage"),
    [
        ("affine4-64", "model.layers.2.self_attn.v_proj.scales", b"\x80\xff"),
        ("affine4-32", "model.layers.3.mlp.down_proj.biases", b"\x00\x7c"),
        ("f32", "model.layers.0.mlp.up_proj.weight", b"\x00\x00\xc0\x7f"),
        ("bf16", "model.embed_tokens.weight", b"\x80\x7f"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_what_is_no_number_is_refused_by_name(
    form: str, tensor: str, damage: bytes, last: bool, tiny: Tiny, tmp_path: Path
) -> None:
    shutil.copytree(tiny("llama", **FORMATS[form]), tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        length = int.from_bytes(data[:8], "little")
        entry = json.loads(data[8 : 8 + length]).get(tensor)
        if entry is not None:
            begin, end = (8 + length + each for each in entry["data_offsets"])
            at = end - len(damage) if last else begin
            data[at : at + len(damage)] = damage
            path.write_bytes(data)
    with pytest.raises(BadData, match=tensor.rpartition(".")[0]) as error:
        start.native(opened(tmp_path / "model"), 96, "", lambda *line: None)
    assert error.value.hint


def test_a_file_that_became_shorter_is_not_mapped(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("llama", bits=4), tmp_path / "model")
    stage = opened(tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 4096)
    with pytest.raises(BadData, match="changed while"):
        on_disk.attach(stage)


def test_rows_may_begin_at_any_byte() -> None:
    made = nn.QuantizedLinear(128, 70, bias=False, group_size=32, bits=4)
    made.scales, made.biases = made.scales.astype(mx.float16), made.biases.astype(mx.float16)
    right = expand.one_matrix([made])
    parts = {}
    for name in ("weight", "scales", "biases"):
        plain = np.array(made[name] if name == "weight" else made[name].view(mx.uint16))
        room = np.zeros(plain.nbytes + 1, np.uint8)
        room[1:] = plain.reshape(-1).view(np.uint8)
        parts[name] = np.frombuffer(room, plain.dtype, plain.size, 1).reshape(plain.shape)
        assert not parts[name].flags.aligned
    matrix = tiled([Packed(parts["weight"], parts["scales"], parts["biases"], 4, 32, HALF)])
    assert matrix.tiles.tobytes() == right.tiles.tobytes()
